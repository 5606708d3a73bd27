import hashlib
import io
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from pipeline import schema, shards
from pipeline.download import DownloadConfig, download
from pipeline.fetch import FetchConfig
from pipeline.storage import Place

pytestmark = pytest.mark.ray

Serve = Callable[[dict[str, Any]], str]
FETCH = FetchConfig(timeout_s=3, connect_timeout_s=1, max_bytes=100_000, max_attempts=1)
CONFIG = DownloadConfig(fetch=FETCH, image_size_px=100, max_side_px=200, rows_per_block=8)


def reaching(base: str, config: DownloadConfig = CONFIG) -> DownloadConfig:
    """Open loopback for one server: it is closed otherwise."""
    return replace(config, fetch=replace(config.fetch, allow_hosts=(base.removeprefix("http://"),)))


def jpeg(width: int = 64, height: int = 32, orientation: int = 1) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (width, height), "teal").save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def write_pairs(path: Path, urls: Sequence[str | None]) -> Place:
    rows: list[dict[str, object]] = [{"key": key, "url": url, "caption": f"c{key}"} for key, url in enumerate(urls)]
    pq.write_table(schema.to_table(rows, schema.PAIRS), path)
    return Place.of(path)


def read(out: Place) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = shards.open_rows(out).to_table().to_pylist()
    return sorted(rows, key=lambda row: row["key"])


PATHS: dict[str, tuple[Any, str]] = {
    "/good.jpg": (jpeg(), "success:None"),
    "/large.jpg": (jpeg(600, 300), "success:None"),
    "/lying.jpg": (jpeg(64, 32, orientation=6), "success:None"),
    "/gone.jpg": ((404, {}, b""), "failed_to_download:http_404"),
    "/page.jpg": (b"<html>image removed</html>", "failed_to_resize:not_an_image"),
    "/empty.jpg": (b"", "failed_to_resize:empty_body"),
    "/tiny.jpg": (jpeg(64, 16), "failed_to_resize:too_small"),
    "/cut.jpg": (jpeg(600, 300)[:-200], "failed_to_resize:truncated_image"),
    "/huge.jpg": (bytes(200_000), "failed_to_download:too_large"),
}


@dataclass
class Finished:
    """A finished download and what went into it."""

    config: DownloadConfig
    pairs: Place
    out: Place
    expected: list[str]
    manifest: shards.Manifest
    reports: list[tuple[int, int, str]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read(self.out)


@pytest.fixture(scope="module")
def finished(ray_session: None, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One download of every kind of pair, for all tests that only look at it."""
    folder = tmp_path_factory.mktemp("download")
    base = serve({path: answer for path, (answer, _) in PATHS.items()})
    urls: list[str | None] = [*[base + path for path in PATHS] * 3, None, "ftp://host/a.jpg"]
    pairs = write_pairs(folder / "pairs.parquet", urls)
    expected = [outcome for _, outcome in PATHS.values()] * 3
    expected += ["failed_to_download:bad_line", "failed_to_download:bad_scheme"]
    reports: list[tuple[int, int, str]] = []
    config, out = reaching(base), Place.of(folder / "images")
    manifest = download(config, pairs, out, on_progress=lambda *report: reports.append(report), run_id="run7")
    return Finished(config, pairs, out, expected, manifest, reports)


def test_every_pair_has_its_outcome(finished: Finished) -> None:
    assert [f"{row['status']}:{row['reason']}" for row in finished.rows] == finished.expected
    assert [row["key"] for row in finished.rows] == list(range(len(finished.expected)))
    assert [row["caption"] for row in finished.rows] == [f"c{key}" for key in range(len(finished.expected))]


def test_rows_in_are_rows_out_and_rejects(finished: Finished) -> None:
    failures = Counter(outcome for outcome in finished.expected if outcome != "success:None")
    assert finished.manifest.rows_in == len(finished.expected)
    assert finished.manifest.rows_out == len(finished.expected) - failures.total()
    assert finished.manifest.rejects == failures


def test_the_manifest_tells_what_it_came_from(finished: Finished) -> None:
    manifest = finished.manifest
    assert shards.read_manifest(finished.out) == manifest
    assert manifest.inputs == {"pairs": shards.place_sha256(finished.pairs)}
    assert manifest.config["image_size_px"] == 100
    assert (manifest.stage, manifest.run_id) == ("download", "run7")
    assert sum(int(str(file["rows"])) for file in manifest.files) == len(finished.expected)


def test_what_is_stored_is_described_exactly(finished: Finished) -> None:
    stored = [row for row in finished.rows if row["status"] == schema.SUCCESS]
    assert len(stored) == 9
    for row in stored:
        data = row["image"]["bytes"]
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (row["width"], row["height"]))
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert row["image"]["path"] is None


def test_images_shrink_or_stay_and_lie_upright(finished: Finished) -> None:
    sizes = [(row["original_width"], row["original_height"], row["width"], row["height"]) for row in finished.rows[:3]]
    assert sizes == [(64, 32, 64, 32), (600, 300, 200, 100), (32, 64, 32, 64)]


def test_a_failed_pair_stores_nothing(finished: Finished) -> None:
    empty = ["image", "width", "height", "original_width", "original_height", "sha256"]
    for row in finished.rows:
        if row["status"] != schema.SUCCESS:
            assert [row[name] for name in empty] == [None] * len(empty)


def test_shards_have_the_schema_and_leave_image_bytes_as_they_are(finished: Finished) -> None:
    for path in finished.out.local.glob("*.parquet"):
        assert pq.read_schema(path).equals(schema.IMAGES, check_metadata=True)
        group = pq.read_metadata(path).row_group(0)
        columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
        assert columns["image.bytes"].compression == "UNCOMPRESSED"
        assert "RLE_DICTIONARY" not in columns["image.bytes"].encodings
        assert columns["caption"].compression == "ZSTD"


def test_progress_ends_with_every_row(finished: Finished) -> None:
    assert finished.reports[-1] == (29, 29, "")


def test_a_finished_output_is_reused_whatever_the_machine(finished: Finished) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.out.local.iterdir()}
    again = download(replace(finished.config, rows_per_block=3, num_cpus=0.5), finished.pairs, finished.out)
    assert again == finished.manifest
    assert {path: path.stat().st_mtime_ns for path in finished.out.local.iterdir()} == before


def test_another_configuration_or_list_does_not_mix_with_a_finished_output(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_size_px was 100, now 90"):
        download(replace(finished.config, image_size_px=90), finished.pairs, finished.out)
    with pytest.raises(ValueError, match=r"inputs\.pairs was"):
        download(finished.config, write_pairs(tmp_path / "pairs.parquet", ["http://h/"]), finished.out)


def test_an_unfinished_output_is_gone_on_with_and_ends_alike(finished: Finished, tmp_path: Path) -> None:
    out = Place.of(tmp_path / "images")
    for name in ("images", "images.ledger"):
        shutil.copytree(finished.out.local.parent / name, tmp_path / name)
    (out / "manifest.json").delete()
    lost = shards.shard_places(out)[0]
    lost.delete()
    ((out / lost.name).parent / f".{lost.name}.cut.part").write_bytes(b"PAR1 cut off by a kill")
    again = download(finished.config, finished.pairs, out)
    assert again.digest == finished.manifest.digest
    assert not list(out.local.glob(".*.part"))


def test_a_slow_address_holds_up_only_its_own_block(ray_session: None, serve: Serve, tmp_path: Path) -> None:
    served: list[str] = []
    released = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        released.wait(20)
        served.append("slow")
        handler.send_error(404)

    def fast(handler: BaseHTTPRequestHandler) -> None:
        served.append("fast")
        if served.count("fast") == 23:  # all others, of this block and of the later ones
            released.set()
        handler.send_error(404)

    base = serve({"/slow": slow, "/fast": fast})
    pairs = write_pairs(tmp_path / "pairs.parquet", [f"{base}/slow"] + [f"{base}/fast"] * 23)
    config = reaching(base, replace(CONFIG, fetch=replace(FETCH, timeout_s=30, idle_timeout_s=30)))
    download(config, pairs, Place.of(tmp_path / "images"))
    assert served == ["fast"] * 23 + ["slow"]


def test_a_process_killed_in_the_middle_loses_no_row(ray_session: None, serve: Serve, tmp_path: Path) -> None:
    import psutil  # brought along by Ray

    killed: list[int] = []

    def kill(handler: BaseHTTPRequestHandler) -> None:
        if not killed:
            port = handler.client_address[1]
            killed.append(next(c.pid for c in psutil.net_connections("tcp4") if c.laddr.port == port and c.pid))
            os.kill(killed[0], signal.SIGKILL)
        else:
            handler.send_error(404)

    base = serve({"/kill": kill, "/good": jpeg()})
    pairs = write_pairs(tmp_path / "pairs.parquet", [f"{base}/good"] * 12 + [f"{base}/kill"])
    manifest = download(reaching(base), pairs, Place.of(tmp_path / "images"))
    assert killed
    assert (manifest.rows_out, manifest.rejects) == (12, {"failed_to_download:http_404": 1})


def not_parquet(path: Path) -> None:
    path.write_text("url\tcaption\n")


def no_url(path: Path) -> None:
    pq.write_table(pa.table({"key": [0], "caption": ["c"]}), path)


def no_rows(path: Path) -> None:
    pq.write_table(schema.PAIRS.empty_table(), path)


@pytest.mark.parametrize(
    ("make", "message"),
    [(Path.mkdir, "is no file"), (not_parquet, "is no parquet file"), (no_url, "lacks"), (no_rows, "has no rows")],
)
def test_what_is_no_pairs_file_is_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match=message) as caught:
        download(CONFIG, Place.of(tmp_path / "pairs.parquet"), Place.of(tmp_path / "images"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("name", ["num_actors", "num_cpus", "rows_per_block", "blocks_per_actor"])
def test_a_plan_on_which_nothing_runs_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        DownloadConfig(**{name: 0})  # type: ignore[arg-type]
