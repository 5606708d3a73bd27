"""What goes wrong with addresses found on the web, one row of the list each: files here, answers in `server`.

``expected`` follows one rule. No complete and permitted body arrives: ``failed_to_download``. A body arrives that is
no usable picture: ``failed_to_resize``. Where careful people differ (a slow host, half a picture, one pixel):
``either``, as long as the row is accounted for and nothing crashes, hangs or fills the memory.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.miniature.parts import FileKind, encode_jpeg
from pipeline.schema import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, SUCCESS

EITHER = "either"
FOLDER = "hazard"
"""First part of the path of every hazard, on disk and in addresses; the second is the hazard's name."""


@dataclass(frozen=True, kw_only=True)
class Hazard(FileKind):
    """One kind of trouble."""

    hazard: str
    """Its name, second part of the path; the server answers by it."""
    expected: str
    """SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE or EITHER."""
    shows_scene: bool
    """Whether who gets the picture gets the drawn scene, upright and whole, so that its boxes hold."""
    url: str
    """The address in the list."""


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _webp(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=90)
    return stream.getvalue()


def _grey(image: Image.Image) -> bytes:
    return encode_jpeg(image.convert("L"))


def _transparent(image: Image.Image) -> bytes:
    faded = image.convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(image.size).point(lambda level: 170 + level // 3))
    return _png(faded)


def _rotated(image: Image.Image) -> bytes:
    """Store a picture lying on its side, with the note of how to put it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise by 90 degrees to view
    stream = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", quality=90, exif=exif)
    return stream.getvalue()


def _deep(image: Image.Image) -> bytes:
    return _png(Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257))


def _half(image: Image.Image) -> bytes:
    whole = encode_jpeg(image)
    return whole[: len(whole) // 2]


def _dot(image: Image.Image) -> bytes:
    return encode_jpeg(image.resize((1, 1)))


def _thread(image: Image.Image) -> bytes:
    return encode_jpeg(image.resize((1600, 8)))


def _nothing(image: Image.Image) -> bytes:
    return b""


def _html(image: Image.Image) -> bytes:
    return b"<!doctype html><html><body><h1>This image has been removed</h1></body></html>"


def _svg(image: Image.Image) -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle r="4" cx="4" cy="4"/></svg>'


def _bomb(image: Image.Image) -> bytes:
    """Claim 3,600 megapixels in under a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


def _hazard(
    hazard: str,
    expected: str,
    suffix: str = ".jpg",
    *,
    encode: Callable[[Image.Image], bytes] = encode_jpeg,
    shows_scene: bool = False,
    url: str = f"{{base}}/{FOLDER}/{{name}}",
) -> Hazard:
    name = f"{hazard}/{{index:05d}}{suffix}"
    return Hazard(hazard=hazard, expected=expected, name=name, encode=encode, shows_scene=shows_scene, url=url)


HAZARDS = (
    _hazard("not_found", FAILED_TO_DOWNLOAD),
    _hazard("gone", FAILED_TO_DOWNLOAD),
    _hazard("server_error", FAILED_TO_DOWNLOAD),
    _hazard("redirect", SUCCESS, shows_scene=True),
    _hazard("redirect_loop", FAILED_TO_DOWNLOAD),
    _hazard("slow", EITHER, shows_scene=True),
    _hazard("trickle", EITHER, shows_scene=True),
    _hazard("reset", FAILED_TO_DOWNLOAD),
    _hazard("short_body", FAILED_TO_DOWNLOAD),
    _hazard("opted_out", FAILED_TO_DOWNLOAD),
    _hazard("dead_host", FAILED_TO_DOWNLOAD, url="http://127.0.0.1:1/{name}"),
    _hazard("file_scheme", FAILED_TO_DOWNLOAD, url="file:///etc/hostname"),
    _hazard("not_an_address", FAILED_TO_DOWNLOAD, url="image {name}"),
    _hazard("cut_file", EITHER, encode=_half),
    _hazard("empty", FAILED_TO_RESIZE, encode=_nothing),
    _hazard("html", FAILED_TO_RESIZE, encode=_html),
    _hazard("svg", FAILED_TO_RESIZE, encode=_svg),
    _hazard("bomb", FAILED_TO_RESIZE, ".png", encode=_bomb),
    _hazard("one_pixel", EITHER, encode=_dot),
    _hazard("thread", EITHER, encode=_thread),
    _hazard("greyscale", SUCCESS, encode=_grey, shows_scene=True),
    _hazard("transparent", SUCCESS, ".png", encode=_transparent, shows_scene=True),
    _hazard("rotated", SUCCESS, encode=_rotated, shows_scene=True),
    _hazard("deep", SUCCESS, ".png", encode=_deep, shows_scene=True),
    _hazard("webp", SUCCESS, ".webp", encode=_webp, shows_scene=True),
    _hazard("wrong_extension", SUCCESS, encode=_png, shows_scene=True),
)
"""Every kind once; the list takes them in turn."""
