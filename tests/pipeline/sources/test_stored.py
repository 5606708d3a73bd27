import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import schema
from pipeline.sources import stored, stored_index
from pipeline.sources.stored import StoredReader, locate_cell, locate_file, locate_range
from pipeline.sources.stored_index import StoredConfig, index_stored
from pipeline.storage import Place

CAP = 1 << 20
NAMES = ("red", "green", "gone", "blue")


def photo(color: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 24), color).save(stream, "JPEG")
    return stream.getvalue()


PHOTOS = {name: photo(name) for name in NAMES if name != "gone"}


def color_of(data: bytes | str) -> str:
    """Name the photo again after img2dataset has encoded it anew, or give the reason there is none."""
    if isinstance(data, str):
        return data
    with Image.open(io.BytesIO(data)) as image:
        pixel = image.convert("RGB").getpixel((5, 5))
    assert isinstance(pixel, tuple)
    return ("red", "green", "blue")[max(range(3), key=lambda i: pixel[i])]


def indexed(path: Path, **options: Any) -> list[dict[str, Any]]:
    out = path.parent / "index.parquet"
    rows = index_stored(StoredConfig(path=path, **options), out)
    table: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    assert [row["key"] for row in table] == list(range(rows))
    return table


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def downloaded(
    serve: Callable[[dict[str, Any]], str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Path]]:
    """Let img2dataset itself download four pairs, one of them gone, into each of its formats."""
    os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", WANDB_MODE="disabled")
    from img2dataset import writer
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer

    base = serve({f"/{name}": data for name, data in PHOTOS.items()})
    top = tmp_path_factory.mktemp("downloaded")
    writers = {
        "files": writer.FilesSampleWriter,
        "parquet": writer.ParquetSampleWriter,
        "webdataset": writer.WebDatasetSampleWriter,
    }
    for name, kind in writers.items():
        (top / name).mkdir()
        fetch = Downloader(
            kind, Resizer(64, "no", False), 2, True, True, str(top / name), ["caption", "url"], 5, 2, 5, "sha256",
            None, "jpg", 0, None, None,
        )  # fmt: skip
        for shard, half in enumerate((NAMES[:2], NAMES[2:])):
            urls, captions = ([f"{base}/{x}" for x in half], [f'a "{x}" thing' for x in half])
            with pa.OSFile(str(top / "shard.feather"), "wb") as sink:
                table = pa.table({"caption": captions, "url": urls})
                with pa.ipc.new_file(sink, table.schema) as file:
                    file.write_table(table)
            fetch.download_shard((shard, str(top / "shard.feather")))
    return base, {name: top / name for name in writers}


@pytest.mark.parametrize("kind", ["files", "parquet", "webdataset"])
def test_output_of_img2dataset_is_found_with_captions_addresses_and_failures(
    downloaded: tuple[str, dict[str, Path]], kind: str
) -> None:
    base, folders = downloaded
    rows = sorted(indexed(folders[kind]), key=lambda row: NAMES.index(row["url"].rpartition("/")[2]))
    assert [(row["url"], row["caption"]) for row in rows] == [(f"{base}/{x}", f'a "{x}" thing') for x in NAMES]
    reader = StoredReader(CAP)
    assert [color_of(reader.read(row["stored"])) for row in rows] == ["red", "green", "stored_missing", "blue"]


@pytest.mark.parametrize("kind", ["files", "parquet", "webdataset"])
def test_what_img2dataset_failed_to_get_is_fetched_if_wanted(
    downloaded: tuple[str, dict[str, Path]], kind: str
) -> None:
    rows = indexed(downloaded[1][kind], fetch_missing=True)
    assert [row["url"].rpartition("/")[2] for row in rows if row["stored"] is None] == ["gone"]


def test_the_file_written_has_the_schema_of_pairs(downloaded: tuple[str, dict[str, Path]]) -> None:
    folder = downloaded[1]["files"]
    indexed(folder)
    assert pq.read_schema(folder.parent / "index.parquet").equals(schema.PAIRS, check_metadata=True)


def test_a_plain_webdataset_tar_gives_caption_and_address_of_its_text_files(tmp_path: Path) -> None:
    meta = json.dumps({"url": "http://h/1", "caption": "from json"}).encode()
    members = {"x/0.jpg": b"zero", "x/0.txt": b"a cat\n", "x/1.json": meta, "x/1.png": b"one", "x/2.txt": b"no image"}
    rows = indexed(write_tar(tmp_path / "a.tar", members))
    assert [(row["url"], row["caption"]) for row in rows] == [
        (None, "a cat\n"),
        ("http://h/1", "from json"),
        (None, "no image"),
    ]
    assert [StoredReader(CAP).read(row["stored"]) for row in rows] == [b"zero", b"one", "stored_missing"]


def test_links_and_odd_names_in_a_tar_touch_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("0.jpg", tarfile.SYMTYPE), ("1.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../secret.jpg"
            archive.addfile(info)
        info = tarfile.TarInfo("../../escape.jpg")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"data"))
    [row] = indexed(tmp_path / "a.tar")
    assert StoredReader(CAP).read(row["stored"]) == b"data"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "index.parquet", "secret.jpg"]


def hugging_face(path: Path, images: list[bytes | None], rows_per_group: int = 2, **more: Any) -> Path:
    cells = [{"bytes": data, "path": "/etc/hostname"} for data in images]
    columns = {"image": pa.array(cells, schema.IMAGE_TYPE), **(more or {"text": [f"c{i}" for i in range(len(cells))]})}
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


def test_hugging_face_parquet_is_found_by_its_types(tmp_path: Path) -> None:
    hugging_face(tmp_path / "set" / "train-0.parquet", [b"0", b"1", b"2", None])
    rows = indexed(tmp_path / "set")
    assert [row["caption"] for row in rows] == ["c0", "c1", "c2", "c3"]
    reader = StoredReader(CAP)
    assert [reader.read(row["stored"]) for row in rows] == [b"0", b"1", b"2", "stored_missing"]


def test_an_image_with_several_captions_gives_a_row_for_each(tmp_path: Path) -> None:
    rows = indexed(hugging_face(tmp_path / "a.parquet", [b"0", b"1"], caption=[["x", "y"], ["z"]]))
    assert [row["caption"] for row in rows] == ["x", "y", "z"]
    assert rows[0]["stored"] == rows[1]["stored"] != rows[2]["stored"]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "a.parquet", [b"0"], caption=["no"], second=["yes"], other=[b"other"])
    [row] = indexed(path, caption_column="second", image_column="other")
    assert row["caption"] == "yes"
    assert StoredReader(CAP).read(row["stored"]) == b"other"


def test_images_with_a_text_file_each_are_found_in_folders(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "0 #%"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"a")
    (folder / "a.txt").write_text("a cat")
    (folder / "b.png").write_bytes(b"b")
    rows = indexed(tmp_path / "set")
    assert [row["caption"] for row in rows] == ["a cat", None]
    assert [StoredReader(CAP).read(row["stored"]) for row in rows] == [b"a", b"b"]


def write_cut_tar(folder: Path) -> None:
    whole = write_tar(folder / "a.tar", {"0.jpg": b"x" * 2000, "0.txt": b"c", "1.jpg": b"y"}).read_bytes()
    (folder / "a.tar").write_bytes(whole[:3800])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.rmdir, "does not exist"),
        (lambda folder: None, "holds nothing we know"),
        (lambda folder: (folder / "a.tar.gz").touch(), "is compressed.* unpack"),
        (write_cut_tar, "is no whole tar"),
        (lambda folder: (folder / "a.tar").write_bytes(b"no tar" * 200), "is no whole tar"),
        (lambda folder: (folder / "a.parquet").write_bytes(b"PAR1"), "cannot be read .* img2dataset was stopped"),
        (lambda folder: write_tar(folder / "a.tar", {}), "holds no image"),
        (lambda folder: pq.write_table(pa.table({"caption": ["c"]}), folder / "a.parquet"), "no column of images"),
        (lambda folder: hugging_face(folder / "a.parquet", [b"0"], caption=[7]), "has no captions"),
        (lambda folder: hugging_face(folder / "a.parquet", [b"0"], x=["x"], y=["y"]), r"several .*\['x', 'y'\]"),
    ],
)
def test_a_folder_that_cannot_serve_is_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    make(folder)
    with pytest.raises(ValueError, match=message) as caught:
        indexed(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "index.parquet").exists()


def test_a_row_group_too_large_to_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_index, "MAX_GROUP_BYTES", 1000)
    with pytest.raises(ValueError, match="row groups of 100 rows"):
        indexed(hugging_face(tmp_path / "a.parquet", [os.urandom(1200), b"1"]))


def test_rows_in_order_read_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place.of(hugging_face(tmp_path / "a.parquet", [bytes([i]) for i in range(12)], rows_per_group=4))
    reads: list[int] = []
    read_row_group = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        reads.append(group)
        return read_row_group(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    reader = StoredReader(CAP)
    locators = [locate_cell(place, i // 4, i % 4, "image.bytes") for i in range(12)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(reader.read, locators)) == [bytes([i]) for i in range(12)]
    assert reads == [0, 1, 2]


def test_row_groups_kept_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MAX_CACHED_BYTES", 3000)
    place = Place.of(hugging_face(tmp_path / "a.parquet", [bytes(1000)] * 20))
    reader = StoredReader(CAP)
    for i in range(20):
        assert reader.read(locate_cell(place, i // 2, i % 2, "image.bytes")) == bytes(1000)
    assert len(reader._groups) == 1


@pytest.mark.parametrize("name", ["a b.jpg", "ü#1&2.jpg", "100%.jpg", "q?x=1.jpg"])
def test_any_file_name_survives_its_locator(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"data")
    assert StoredReader(CAP).read(locate_file(Place.of(tmp_path / name))) == b"data"


def test_a_bad_locator_is_a_reason_and_not_an_exception(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12345")
    file = locate_file(Place.of(tmp_path / "a.jpg"))
    reader = StoredReader(4)
    cases = {
        locate_file(Place.of(tmp_path / "b.jpg")): "stored_missing",
        locate_file(Place.of(tmp_path)): "stored_unreadable",
        locate_range(Place.of(tmp_path / "a.jpg"), 3, 4): "stored_unreadable",
        locate_range(Place.of(tmp_path / "b.tar"), 0, 4): "stored_missing",
        locate_cell(Place.of(tmp_path / "a.jpg"), 0, 0, "jpg"): "stored_unreadable",
        f"{file}#offset=0&bytes=x": "stored_unreadable",
        f"{file}#what": "stored_unreadable",
        "ftp://host/a.jpg": "stored_unreadable",
        file: "stored_too_large",
        locate_range(Place.of(tmp_path / "a.jpg"), 0, 5): "stored_too_large",
    }
    assert {locator: reader.read(locator) for locator in cases} == cases
