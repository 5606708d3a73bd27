"""Bytes from anywhere to an upright, bounded, three-channel JPEG, or to the reason why not.

img2dataset's ``Resizer`` decodes, shrinks and encodes. What it gets wrong is put right before it sees the picture: it
ignores EXIF orientation, saturates 16-bit pixels, keeps grey as one channel and decodes bombs. The usual picture (a
JPEG in colour, upright) costs only a look at its header; every other one is loaded by Pillow, which is strict about
missing data, and handed over as a bitmap.

Decoders of images crash: use `IsolatedDecoder`, whose process also holds OpenCV, which its caller then need not load.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass, fields

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.img2dataset_parts import Picture, make_resizer
from pipeline.isolation import Isolated, Limits, Work

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
"""What Pillow may open (MPO comes with JPEG). By itself it knows dozens more, and starts Ghostscript for EPS."""

_PILLOW_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises on bad data (AVIF: RuntimeError). So wide a net is right only where nothing but Pillow runs."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what undoes it."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Which pictures are taken, and how they are stored."""

    image_size_px: int = 800
    """Longest short side of a stored image, in pixels. A smaller picture is never enlarged."""
    max_side_px: int = 1333
    """Longest long side of a stored image, in pixels."""
    encode_quality: int = 90
    """JPEG quality of the stored image, 1 to 100."""
    min_side_px: int = 32
    """Shortest side a picture may have, in pixels; below it is refused as `too_small`."""
    max_aspect_ratio: float = 20.0
    """Long side over short side; above it is refused as `aspect_ratio`."""
    max_pixels: int = 50_000_000
    """Most pixels a picture may have before it is decoded; above it is refused as `too_many_pixels`."""

    def __post_init__(self) -> None:
        """Refuse bounds that contradict each other."""
        if not 1 <= self.encode_quality <= 100:
            raise ValueError(f"encode_quality is {self.encode_quality} but must be 1 to 100; 90 is the default")
        if not 1 <= self.min_side_px <= self.image_size_px <= self.max_side_px:
            raise ValueError(
                f"min_side_px {self.min_side_px}, image_size_px {self.image_size_px} and max_side_px "
                f"{self.max_side_px} must rise from 1; change the one that is out of order"
            )
        if not 1 <= self.max_aspect_ratio <= self.max_side_px:
            raise ValueError(
                f"max_aspect_ratio is {self.max_aspect_ratio} but must be 1 to {self.max_side_px} (max_side_px), or "
                f"short sides shrink to nothing; 20 is the default"
            )
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels} but must be above 0; leave it out for the default")


class Decoder:
    """Turns fetched bytes into stored images. Not for two threads at once: ``Resizer`` redirects stdout meanwhile."""

    def __init__(self, config: ImageConfig) -> None:
        """Load img2dataset (seconds) and prepare for either side to be the one that is too long."""
        self._config = config
        self._bound_short = make_resizer("keep_ratio", config.image_size_px, config.encode_quality)
        self._bound_long = make_resizer("keep_ratio_largest", config.max_side_px, config.encode_quality)

    def __call__(self, data: bytes) -> Picture | str:
        """Decode, put upright, shrink and encode one image.

        Returns:
            The picture, or why there is none: `empty_body`, `not_an_image`, `too_many_pixels`, `too_small`,
            `aspect_ratio`, `truncated_image`, `corrupt_image`, `unknown_pixels`, `out_of_memory`.

        Raises:
            MemoryError: there was not enough for a sound picture.
        """
        if not data:
            return "empty_body"
        with warnings.catch_warnings(action="ignore"):  # Pillow's, about odd metadata
            try:
                image = Image.open(io.BytesIO(data), formats=FORMATS)
                if reason := self._refuse(*image.size):
                    return reason
                plain = image.format == "JPEG" and image.mode == "RGB" and _orientation(image) == 1
                # What OpenCV cannot read goes to Pillow as well: one decoder has the last word on bad data.
                if plain and isinstance(picture := self._store(data, *image.size), Picture):
                    return picture
                upright = _normalise(image)
            except _PILLOW_ERRORS as error:
                return _name(error)
        if upright is None:
            return "unknown_pixels"
        picture = self._store(_bitmap(upright), *upright.size)
        if isinstance(picture, str):
            raise RuntimeError(f"img2dataset's Resizer failed on a plain bitmap of {upright.size}: {picture}")
        return picture

    def _refuse(self, width: int, height: int) -> str | None:
        config = self._config
        short, long = sorted((width, height))
        if short * long > config.max_pixels:
            return "too_many_pixels"
        if short < config.min_side_px:
            return "too_small"
        return "aspect_ratio" if long > short * config.max_aspect_ratio else None

    def _store(self, data: bytes, width: int, height: int) -> Picture | str:
        """Shrink and encode, bound by whichever side is further out of bounds."""
        short, long = sorted((width, height))
        too_long = long * self._config.image_size_px > short * self._config.max_side_px
        return (self._bound_long if too_long else self._bound_short)(data)


class IsolatedDecoder:
    """A `Decoder` in child processes; any number of threads may call."""

    def __init__(self, config: ImageConfig, limits: Limits) -> None:
        """Start the processes, which takes seconds."""
        # Only what a decoder needs: a subclass would have the children import the module it comes from.
        self._config = ImageConfig(**{part.name: getattr(config, part.name) for part in fields(ImageConfig)})
        self._isolated = Isolated(limits, make_work, self._config)

    def __call__(self, data: bytes) -> Picture | str:
        """Decode one image.

        Returns:
            What `Decoder` returns, or `decoder_crash`, `decoder_timeout`, `out_of_memory`.
        """
        answer = self._isolated(data)
        return answer if isinstance(answer, str) else _unpack(answer)

    def close(self) -> None:
        """End the processes; nobody may be calling."""
        self._isolated.close()


def make_work(config: ImageConfig) -> Work:
    """Make a decoder that answers in bytes, as it must between processes."""
    decoder = Decoder(config)
    return lambda data: _pack(decoder(data))


_HEAD = struct.Struct("<4Iq64s")


def _pack(outcome: Picture | str) -> bytes:
    if isinstance(outcome, str):
        return outcome.encode()
    sizes = outcome.width, outcome.height, outcome.original_width, outcome.original_height
    return b"\0" + _HEAD.pack(*sizes, outcome.phash, outcome.sha256.encode()) + outcome.data


def _unpack(answer: bytes) -> Picture | str:
    if answer[:1] != b"\0":
        return answer.decode()
    width, height, original_width, original_height, phash, sha256 = _HEAD.unpack_from(answer, 1)
    return Picture(
        data=answer[1 + _HEAD.size :],
        width=width,
        height=height,
        original_width=original_width,
        original_height=original_height,
        sha256=sha256.decode(),
        phash=phash,
    )


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation; damaged EXIF says nothing and costs no picture."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _PILLOW_ERRORS:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _normalise(image: Image.Image) -> Image.Image | None:
    """Load the first frame, put it upright and make it RGB; None if what its numbers mean is unknown."""
    image.load()
    orientation = _orientation(image)  # of PNG and TIFF known only now, and TIFF is already upright
    if image.mode in ("I", "F"):
        return None  # 32 bits of any range: there is no telling which value is white
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("RGB")
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _bitmap(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "BMP")
    return stream.getvalue()


def _name(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not_an_image"
    if isinstance(error, Image.DecompressionBombError):
        return "too_many_pixels"
    if isinstance(error, MemoryError):
        return "out_of_memory"
    missing = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return "truncated_image" if missing else "corrupt_image"
