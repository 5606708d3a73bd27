import hashlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import schema
from pipeline.collect import CollectConfig, Collector
from pipeline.fetch import FetchConfig
from pipeline.isolation import Limits
from pipeline.phash import distance, phash

Serve = Callable[[dict[str, Any]], str]
Pair = tuple[str | None, str | None]


def jpeg(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    blobs = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8))
    stream = io.BytesIO()
    blobs.resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
    return stream.getvalue()


class Shelf:
    """A reader of stored images that also tells who reads."""

    def __init__(self) -> None:
        self.read_by: list[str] = []

    def read(self, locator: str) -> bytes | str:
        self.read_by.append(threading.current_thread().name)
        return {"good": jpeg(seed=3), "page": b"<html>"}.get(locator, "stored_missing")


def release(handler: BaseHTTPRequestHandler) -> None:
    SLOW.wait(10)
    handler.wfile.write(b"HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n")


SLOW = threading.Event()
ROUTES: dict[str, Any] = {
    **{f"/{number}.jpg": jpeg(seed=number) for number in range(4)},
    "/large.jpg": jpeg(600, 400),
    "/page.jpg": b"<html>image removed</html>",
    "/cut.jpg": jpeg()[:-200],
    "/slow": release,
}


@pytest.fixture(scope="module")
def base(serve: Serve) -> str:
    return serve(ROUTES)


@pytest.fixture(scope="module")
def collect(base: str) -> Iterator[Collector]:
    fetch = FetchConfig(allow_hosts=(base.removeprefix("http://"),), max_attempts=1, max_per_host=32)
    config = CollectConfig(fetch=fetch, image_size_px=300, max_side_px=400, decode=Limits(processes=2))
    with Collector(config, Shelf()) as collector:
        yield collector


def pairs(rows: Sequence[Pair], first: int = 0) -> pa.Table:
    keyed = enumerate(rows, first)
    return schema.to_table(
        [{"key": key, "url": url, "caption": f"c{key}", "stored": stored} for key, (url, stored) in keyed],
        schema.PAIRS,
    )


def test_every_pair_keeps_its_row_and_gets_its_outcome(collect: Collector, base: str) -> None:
    expected: list[tuple[Pair, str]] = [
        ((f"{base}/0.jpg", None), "success:None"),
        ((None, None), "failed_to_download:bad_line"),
        ((f"{base}/gone.jpg", None), "failed_to_download:http_404"),
        ((None, "good"), "success:None"),
        ((f"{base}/page.jpg", None), "failed_to_resize:not_an_image"),
        (("http://10.0.0.1/a.jpg", None), "failed_to_download:forbidden_address"),
        ((f"{base}/cut.jpg", None), "failed_to_resize:truncated_image"),
        ((f"{base}/gone.jpg", "good"), "success:None"),
        ((f"{base}/0.jpg", "lost"), "failed_to_download:stored_missing"),
        ((None, "page"), "failed_to_resize:not_an_image"),
        ((f"{base}/large.jpg", None), "success:None"),
    ]
    given = pairs([pair for pair, _ in expected], first=7)
    images = collect(given)
    assert images.schema.equals(schema.IMAGES, check_metadata=True)
    images.validate(full=True)
    assert [f"{row['status']}:{row['reason']}" for row in images.to_pylist()] == [outcome for _, outcome in expected]
    assert images.select(schema.PAIRS.names).to_pylist() == given.to_pylist()


def test_what_is_stored_is_described_exactly(collect: Collector, base: str) -> None:
    for row in collect(pairs([(f"{base}/1.jpg", None), (f"{base}/large.jpg", None), (None, "good")])).to_pylist():
        data = row["image"]["bytes"]
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (row["width"], row["height"]))
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert distance(row["phash"], phash(np.asarray(image.convert("L")))) <= 2
        assert row["image"]["path"] is None


def test_sizes_before_and_after_are_told(collect: Collector, base: str) -> None:
    (row,) = collect(pairs([(f"{base}/large.jpg", None)])).to_pylist()
    sizes = [row[name] for name in ("original_width", "original_height", "width", "height")]
    assert sizes == [600, 400, 400, 267]


def test_the_bytes_as_they_came_are_hashed_refused_or_not(collect: Collector, base: str) -> None:
    rows = collect(pairs([(f"{base}/2.jpg", None), (f"{base}/page.jpg", None), (f"{base}/gone", None)])).to_pylist()
    came = [hashlib.sha256(ROUTES[path]).hexdigest() for path in ("/2.jpg", "/page.jpg")]
    assert [row["source_sha256"] for row in rows] == [*came, None]


def test_a_failed_pair_stores_nothing(collect: Collector, base: str) -> None:
    empty = ["image", "width", "height", "original_width", "original_height", "sha256", "phash"]
    for row in collect(pairs([(None, None), (f"{base}/gone", None), (f"{base}/page.jpg", None)])).to_pylist():
        assert [row[name] for name in empty] == [None] * len(empty)


def test_an_empty_block_stays_empty(collect: Collector) -> None:
    assert collect(pairs([])).equals(schema.IMAGES.empty_table())


def test_blocks_share_the_collector_and_none_waits_for_the_slowest_address_of_another(
    collect: Collector, base: str
) -> None:
    SLOW.clear()
    done: list[int] = []

    def take(first: int, urls: list[str]) -> None:
        images = collect(pairs([(url, None) for url in urls], first))
        assert images["key"].to_pylist() == list(range(first, first + len(urls)))
        done.append(first)

    slow = threading.Thread(target=take, args=(0, [f"{base}/slow"]))
    others = [
        threading.Thread(target=take, args=(first, [f"{base}/{n % 4}.jpg" for n in range(20)])) for first in (10, 30)
    ]
    for thread in (slow, *others):
        thread.start()
    for thread in others:
        thread.join(10)
    assert sorted(done) == [10, 30]
    SLOW.set()
    slow.join()
    assert done[-1] == 0


def test_stored_images_are_read_on_several_threads(collect: Collector) -> None:
    collect(pairs([(None, "good")] * 20))
    assert isinstance(collect._reader, Shelf)
    assert len(set(collect._reader.read_by)) > 1


def test_a_decoder_that_crashes_costs_one_row(collect: Collector, base: str, tmp_path: Path) -> None:
    """The decoder of the collector is exchanged for one that dies on certain bytes."""
    from pipeline.isolation import Isolated

    (tmp_path / "dying.py").write_text(
        "import os\n"
        "from pipeline.decode import ImageConfig, make_work\n"
        "def make(config):\n"
        "    work = make_work(config)\n"
        "    return lambda data: os.abort() if data.startswith(b'<html>') else work(data)\n"
    )
    sys.path.insert(0, str(tmp_path))
    import dying  # type: ignore[import-not-found]

    kept = collect._decode._isolated
    collect._decode._isolated = Isolated(Limits(), dying.make, collect._decode._config)
    rows = collect(pairs([(f"{base}/0.jpg", None), (f"{base}/page.jpg", None), (f"{base}/1.jpg", None)])).to_pylist()
    collect._decode._isolated.close()
    collect._decode._isolated = kept
    sys.path.remove(str(tmp_path))
    assert [row["reason"] for row in rows] == [None, "decoder_crash", None]


def test_a_collector_loads_no_decoder_itself_and_ends_its_processes() -> None:
    import subprocess

    script = (
        "import os, sys\n"
        "from pipeline.collect import CollectConfig, Collector\n"
        "with Collector(CollectConfig()) as collector: pid = collector._decode._isolated._helper.pid\n"
        "print(sorted({'cv2', 'albumentations', 'img2dataset', 'torch', 'ray'} & sys.modules.keys()))\n"
        "print(os.path.exists(f'/proc/{pid}'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["[]", "False"]


def test_same_pixels_as_img2dataset(test_data: Path) -> None:
    from pipeline.decode import Decoder, ImageConfig
    from pipeline.img2dataset_parts import _resizer_module

    theirs = _resizer_module().Resizer(384, "keep_ratio", resize_only_if_bigger=True, encode_quality=95)
    ours = Decoder(ImageConfig(image_size_px=384, encode_quality=95))
    for path in sorted((test_data / "captioned_photos" / "images").glob("*.jpg"))[:10]:
        picture = ours(path.read_bytes())
        assert not isinstance(picture, str)
        assert picture.data == theirs(io.BytesIO(path.read_bytes()))[0]


def test_time_is_not_spent_twice_on_a_slow_block(collect: Collector, base: str) -> None:
    """A hundred rows of which some wait for a pause of the server take about one pause."""
    SLOW.clear()
    threading.Timer(0.5, SLOW.set).start()
    started = time.monotonic()
    collect(pairs([(f"{base}/slow" if n % 10 == 0 else f"{base}/1.jpg", None) for n in range(60)]))
    assert time.monotonic() - started < 3
