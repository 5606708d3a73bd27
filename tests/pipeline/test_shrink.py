"""The pictures stored are img2dataset's, to the byte."""

import importlib.util
import io
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.decode import Decoder, ImageConfig, Picture


@pytest.fixture(scope="module")
def resizer() -> Any:
    """The module of img2dataset's ``Resizer``; the package around it loads PyTorch and a tracker."""
    package = importlib.util.find_spec("img2dataset")
    assert package is not None
    path = Path(str(package.origin)).with_name("resizer.py")
    module = types.ModuleType("resizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network
        exec(compile(path.read_text(encoding="utf-8"), path, "exec"), module.__dict__)
    return module


def check(decode: Decoder, theirs: Any, data: bytes) -> None:
    wanted, width, height, original_width, original_height, error = theirs(io.BytesIO(data))
    picture = decode(data)
    assert error is None
    assert isinstance(picture, Picture)
    assert (picture.width, picture.height) == (width, height)
    assert (picture.original_width, picture.original_height) == (original_width, original_height)
    assert picture.data == wanted


@pytest.mark.parametrize("size", [(500, 400), (401, 377), (192, 96), (97, 333), (96, 96), (60, 90), (385, 1000)])
@pytest.mark.parametrize(("mode", "bounds"), [("keep_ratio", (96, 9999)), ("keep_ratio_largest", (96, 96))])
def test_pictures_of_any_size_are_those_of_img2dataset(
    resizer: Any, size: tuple[int, int], mode: str, bounds: tuple[int, int]
) -> None:
    rough = np.random.default_rng(0).integers(0, 255, (size[1] // 3, size[0] // 3, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=92)
    theirs = resizer.Resizer(96, mode, resize_only_if_bigger=True, encode_quality=90)
    decode = Decoder(ImageConfig(image_size_px=bounds[0], max_side_px=bounds[1], encode_quality=90))
    check(decode, theirs, stream.getvalue())


def test_real_photos_are_those_of_img2dataset(test_data: Path, resizer: Any) -> None:
    theirs = resizer.Resizer(384, "keep_ratio", resize_only_if_bigger=True, encode_quality=95)
    decode = Decoder(ImageConfig(image_size_px=384, max_side_px=9999, encode_quality=95))
    for path in sorted((test_data / "captioned_photos" / "images").glob("*.jpg"))[:10]:
        check(decode, theirs, path.read_bytes())
