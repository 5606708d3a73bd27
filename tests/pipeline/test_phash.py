import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.phash import distance, phash

Grey = npt.NDArray[np.uint8]


def scene(seed: int) -> Image.Image:
    blobs = np.random.default_rng(seed).integers(0, 255, (6, 8), np.uint8)
    return Image.fromarray(blobs).resize((320, 240), Image.Resampling.BICUBIC)


def grey(image: Image.Image) -> Grey:
    return np.asarray(image.convert("L"))


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def assert_alike(image: Image.Image) -> None:
    wanted = phash(grey(image))
    width, height = image.size
    for other in (
        image.resize((width // 2, height // 2)),
        image.resize((width // 3, height // 3 + 1)),
        image.resize((2 * width, 2 * height)),
        recompressed(image, 30),
        image.point(lambda value: int(0.8 * value + 20)),
    ):
        assert distance(wanted, phash(grey(other))) <= 6


@pytest.mark.parametrize("seed", range(5))
def test_a_picture_resized_or_compressed_again_hashes_nearly_the_same(seed: int) -> None:
    assert_alike(scene(seed))


def test_other_pictures_hash_otherwise() -> None:
    hashes = [phash(grey(scene(seed))) for seed in range(20)]
    apart = [distance(a, b) for number, a in enumerate(hashes) for b in hashes[:number]]
    assert min(apart) > 12
    assert 26 < np.mean(apart) < 38


def test_turns_and_flips_hash_otherwise() -> None:
    image = scene(0)
    for turn in Image.Transpose:
        assert distance(phash(grey(image)), phash(grey(image.transpose(turn)))) > 12


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (1333, 800)])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_an_even_picture_of_any_size_hashes_to_nothing(shape: tuple[int, int], value: int) -> None:
    assert phash(np.full(shape, value, np.uint8)) == 0


def test_a_hash_is_a_signed_number_of_64_bits() -> None:
    hashes = [phash(grey(scene(seed))) for seed in range(20)]
    assert all(-(1 << 63) <= value < 1 << 63 for value in hashes)
    assert min(hashes) < 0 < max(hashes)


@pytest.mark.parametrize(("a", "b", "apart"), [(0, 0, 0), (-1, 0, 64), (-1, 1, 63), (5, 6, 2), (-(1 << 63), 0, 1)])
def test_the_distance_counts_bits_of_signed_numbers(a: int, b: int, apart: int) -> None:
    assert distance(a, b) == distance(b, a) == apart


@pytest.mark.parametrize("shape", [(4, 4, 3), (0, 4)])
def test_colours_and_nothing_are_refused(shape: Any) -> None:
    with pytest.raises(ValueError, match="pixels have shape"):
        phash(np.zeros(shape, np.uint8))


def test_real_photos_keep_their_hash_and_differ(test_data: Path) -> None:
    lines = (test_data / "captioned_photos" / "captions.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    folder = test_data / "captioned_photos" / "images"
    images = [Image.open(folder / Path(json.loads(line)["file"]).name) for line in lines]
    for image in images[:10]:
        assert_alike(image.convert("RGB"))
    hashes = [phash(grey(image)) for image in images]
    assert min(distance(a, b) for number, a in enumerate(hashes) for b in hashes[:number]) > 8
