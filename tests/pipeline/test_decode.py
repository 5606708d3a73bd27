import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from pipeline.decode import Decoder, ImageConfig, IsolatedDecoder
from pipeline.img2dataset_parts import Picture
from pipeline.isolation import Limits
from pipeline.phash import distance, phash

CONFIG = ImageConfig(image_size_px=100, max_side_px=200, min_side_px=8, max_aspect_ratio=10, max_pixels=1_000_000)


@pytest.fixture(scope="module")
def decode() -> Decoder:
    return Decoder(CONFIG)


def drawn(width: int = 64, height: int = 32) -> Image.Image:
    """Red at the top left, green at the top right, blue at the bottom: every flip and turn shows."""
    image = Image.new("RGB", (width, height), "blue")
    image.paste("red", (0, 0, width // 2, height // 2))
    image.paste("lime", (width // 2, 0, width, height // 2))
    return image


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def stored(decode: Decoder, data: bytes) -> tuple[Picture, Image.Image]:
    picture = decode(data)
    assert isinstance(picture, Picture), picture
    image = Image.open(io.BytesIO(picture.data))
    image.load()
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (picture.width, picture.height))
    return picture, image


def assert_alike(image: Image.Image, wanted: Image.Image) -> None:
    assert image.size == wanted.size
    difference = np.abs(np.asarray(image, np.int16) - np.asarray(wanted.convert("RGB"), np.int16))
    assert difference.mean() < 15  # JPEG blurs the edges (about 7); a wrong turn or colour is above 60


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((64, 32), (64, 32)),  # never enlarged
        ((300, 200), (150, 100)),  # bound by the short side
        ((200, 300), (100, 150)),
        ((800, 200), (200, 50)),  # bound by the long side
        ((150, 120), (125, 100)),
        ((400, 90), (200, 45)),  # the short side is within bounds, the long is not
    ],
)
def test_a_picture_shrinks_into_both_bounds_and_keeps_its_ratio(
    decode: Decoder, size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    picture, image = stored(decode, encoded(drawn(*size), quality=95))
    assert (picture.width, picture.height) == wanted
    assert (picture.original_width, picture.original_height) == size
    assert_alike(image, drawn(*size).resize(wanted))


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {"quality": 95}),
        ("MPO", {"quality": 95, "save_all": True, "append_images": [Image.new("RGB", (64, 32))]}),
    ],
)
def test_every_format_allowed_is_taken(decode: Decoder, format: str, options: dict[str, Any]) -> None:
    _, image = stored(decode, encoded(drawn(), format, **options))
    assert_alike(image, drawn())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_kind_of_pixel_becomes_rgb(decode: Decoder, mode: str) -> None:
    source = drawn().convert(mode)
    format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    assert_alike(stored(decode, encoded(source, format, quality=95))[1], source)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_divided_not_saturated(decode: Decoder, format: str) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(32, axis=0)
    _, image = stored(decode, encoded(Image.fromarray(ramp), format))
    assert_alike(image, Image.fromarray((ramp // 257).astype(np.uint8)))


def test_numbers_without_a_known_white_are_refused(decode: Decoder) -> None:
    assert decode(encoded(Image.fromarray(np.ones((32, 64), np.float32)), "TIFF")) == "unknown_pixels"


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_what_is_transparent_becomes_white(decode: Decoder, mode: str) -> None:
    source = drawn().convert("RGBA")
    source.paste((0, 0, 0, 0), (0, 16, 64, 32))
    data = encoded(source if mode == "RGBA" else source.quantize(8), "PNG")
    wanted = drawn()
    wanted.paste("white", (0, 16, 64, 32))
    assert_alike(stored(decode, data)[1], wanted)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_stored_upright(decode: Decoder, format: str, orientation: int) -> None:
    undo = [
        None,
        "FLIP_LEFT_RIGHT",
        "ROTATE_180",
        "FLIP_TOP_BOTTOM",
        "TRANSPOSE",
        "ROTATE_90",
        "TRANSVERSE",
        "ROTATE_270",
    ]
    name = undo[orientation - 1]
    lying = drawn().transpose(Image.Transpose[name]) if name else drawn()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture, image = stored(decode, encoded(lying, format, exif=exif, quality=95))
    assert (picture.original_width, picture.original_height) == (64, 32)
    assert_alike(image, drawn())
    assert not image.getexif()


def test_damaged_exif_costs_no_picture(decode: Decoder) -> None:
    data = encoded(drawn(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95)
    assert_alike(stored(decode, data)[1], drawn())


def test_of_a_moving_picture_the_first_frame_counts(decode: Decoder) -> None:
    data = encoded(drawn(), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 32))])
    assert_alike(stored(decode, data)[1], drawn())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<html>image removed</html>", "not_an_image"),
        (b"", "empty_body"),
        (encoded(drawn(), "EPS"), "not_an_image"),  # Pillow would start Ghostscript
        (encoded(drawn(), "TGA"), "not_an_image"),
        (encoded(Image.new("1", (2000, 2000)), "PNG"), "too_many_pixels"),
        (encoded(Image.new("1", (20_000, 20_000)), "PNG"), "too_many_pixels"),
        (encoded(drawn(64, 7)), "too_small"),
        (encoded(drawn(1, 1), "GIF"), "too_small"),
        (encoded(drawn(89, 8)), "aspect_ratio"),
        (encoded(drawn(8, 89)), "aspect_ratio"),
    ],
)
def test_a_picture_out_of_bounds_is_refused_with_its_reason(decode: Decoder, data: bytes, reason: str) -> None:
    assert decode(data) == reason


def noisy() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.995])
@pytest.mark.parametrize(
    ("format", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {})],
)
def test_a_picture_cut_off_is_never_taken_half(
    decode: Decoder, format: str, options: dict[str, Any], share: float
) -> None:
    data = encoded(noisy(), format, **options)
    assert decode(data[: int(len(data) * share)]) in ("truncated_image", "not_an_image")


def test_a_picture_damaged_inside_is_a_reason_not_an_exception(decode: Decoder) -> None:
    data = encoded(noisy(), "PNG")
    assert decode(data[:2000] + bytes(100) + data[2100:]) == "corrupt_image"


def test_the_hash_is_that_of_the_stored_bytes(decode: Decoder) -> None:
    picture, _ = stored(decode, encoded(drawn()))
    assert picture.sha256 == hashlib.sha256(picture.data).hexdigest()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(64, 48), (500, 375)])
def test_the_perceptual_hash_is_that_of_the_stored_pixels(decode: Decoder, format: str, size: tuple[int, int]) -> None:
    blobs = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8))
    picture, image = stored(decode, encoded(blobs.resize(size, Image.Resampling.BICUBIC), format))
    assert distance(picture.phash, phash(np.asarray(image.convert("L")))) <= 2


def test_a_stored_image_carries_no_metadata(decode: Decoder) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    _, image = stored(decode, encoded(drawn(), exif=exif, comment=b"a remark", icc_profile=b"a profile"))
    assert not image.getexif()
    assert not {"exif", "icc_profile", "comment", "xmp"} & image.info.keys()


@pytest.fixture(scope="module")
def isolated() -> Iterator[IsolatedDecoder]:
    wide = replace(CONFIG, image_size_px=800, max_side_px=1333, min_side_px=1, max_aspect_ratio=1333)
    decode = IsolatedDecoder(replace(wide, max_pixels=89_478_485), Limits(processes=2, timeout_s=30))
    yield decode
    decode.close()


def test_a_picture_decoded_in_isolation_is_the_same(decode: Decoder, isolated: IsolatedDecoder) -> None:
    assert isolated(encoded(drawn())) == decode(encoded(drawn()))
    assert isolated(b"<html>") == "not_an_image"
    assert isolated(b"") == "empty_body"


def test_a_bomb_within_the_bounds_meets_the_limit_of_memory() -> None:
    config = replace(CONFIG, max_pixels=89_478_485)
    decode = IsolatedDecoder(config, Limits(memory_bytes=100 << 20))
    for image in (Image.new("1", (9000, 9000)), Image.new("L", (9000, 9000))):
        assert decode(encoded(image, "PNG")) == "out_of_memory"
    assert isinstance(decode(encoded(drawn())), Picture)
    decode.close()


def test_real_bad_images_end_as_expected(test_data: Path, isolated: IsolatedDecoder) -> None:
    lines = (test_data / "bad_images" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]

    def outcome(record: dict[str, Any]) -> Picture | str:
        return isolated((test_data / "bad_images" / record["file"]).read_bytes())

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, records))
    wrong = []
    for record, result in zip(records, outcomes, strict=True):
        # Wider than 1333:1 there would be no pixel left when it is shrunk.
        taken = isinstance(result, Picture) or result == "aspect_ratio"
        allowed = {"decode": taken, "reject": isinstance(result, str), "either": True}
        if not allowed[record["expected"]] or result in ("decoder_crash", "decoder_timeout"):
            wrong.append((record["file"], result))
    assert not wrong


def test_real_photos_keep_their_size_and_content(test_data: Path) -> None:
    decode = Decoder(ImageConfig())
    records = (test_data / "captioned_photos" / "captions.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    for record in map(json.loads, records):
        path = test_data / "captioned_photos" / "images" / Path(record["file"]).name
        picture, image = stored(decode, path.read_bytes())
        assert (picture.width, picture.height) == (record["width"], record["height"])
        assert_alike(image, Image.open(path))


@pytest.mark.parametrize(
    "options",
    [
        {"encode_quality": 0},
        {"min_side_px": 900},
        {"max_side_px": 700},
        {"max_aspect_ratio": 0.5},
        {"max_aspect_ratio": 2000},
        {"max_pixels": 0},
    ],
)
def test_bounds_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ImageConfig(**options)
