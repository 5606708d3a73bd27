import errno
import gc
import io
import os
import pickle
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.storage import Place, WholeFiles
from tests.pipeline.fault_proxy import Fault, FaultProxy, Plan


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "local":
        yield Place.of(tmp_path / "folder")
    else:
        request.getfixturevalue("s3")
        yield Place.of(f"s3://tests/{uuid.uuid4().hex}/folder")


def test_what_is_written_is_read(folder: Place) -> None:
    (folder / "a" / "b.bin").write_bytes(b"\0one")
    (folder / "text").write_text("zwölf")
    assert (folder / "a" / "b.bin").read_bytes() == b"\0one"
    assert (folder / "text").read_text() == "zwölf"
    assert (folder / "a" / "b.bin").size() == 4


def test_writing_again_replaces(folder: Place) -> None:
    for text in ("a long first text", "short"):
        (folder / "f").write_text(text)
    assert (folder / "f").read_text() == "short"


def test_input_is_read_from_any_position(folder: Place) -> None:
    (folder / "f").write_bytes(b"0123456789")
    with (folder / "f").open_input() as stream:
        stream.seek(6)
        assert stream.read(2) == b"67"


def test_files_and_folders_are_told_apart(folder: Place) -> None:
    (folder / "sub" / "f").write_text("x")
    assert [(place.exists(), place.is_dir(), place.is_file()) for place in (folder / "sub", folder / "sub" / "f")] == [
        (True, True, False),
        (True, False, True),
    ]
    nothing = folder / "none"
    assert (nothing.exists(), nothing.is_dir(), nothing.is_file()) == (False, False, False)


def test_reading_what_is_not_there_says_so(folder: Place) -> None:
    with pytest.raises(FileNotFoundError):
        (folder / "none").read_bytes()


def test_a_listing_is_sorted_and_skips_hidden_names(folder: Place) -> None:
    for name in ("b.parquet", "a.parquet", "c.txt", "_tmp.parquet", ".a.part", "sub/d.parquet", "_sub/e.parquet"):
        (folder / name).write_text("x")
    assert [place.relative_to(folder) for place in folder.files(".parquet")] == [
        "a.parquet",
        "b.parquet",
        "sub/d.parquet",
    ]
    assert [place.name for place in folder.files(recursive=False)] == ["a.parquet", "b.parquet", "c.txt"]


def test_a_folder_that_is_not_there_has_no_files(folder: Place) -> None:
    assert (folder / "none").files() == []
    assert (folder / "none").listing() == []


def test_a_full_listing_has_bytes_and_hidden_files(folder: Place) -> None:
    (folder / "sub" / ".hidden").write_text("abc")
    (folder / "f").write_text("a")
    assert folder.listing() == [("f", 1), ("sub/.hidden", 3)]


def test_deleting_takes_files_and_whole_folders_and_forgives_nothing_there(folder: Place) -> None:
    for name in ("f", "sub/a", "sub/deep/b"):
        (folder / name).write_text("x")
    (folder / "f").delete()
    (folder / "sub").delete()
    (folder / "none").delete()
    assert folder.files() == []


def test_a_file_is_created_once(folder: Place) -> None:
    assert (folder / "lock").create(b"first")
    assert not (folder / "lock").create(b"second")
    assert (folder / "lock").read_bytes() == b"first"


def test_of_many_creators_at_once_one_wins(folder: Place) -> None:
    together = threading.Barrier(8)

    def create(number: int) -> bool:
        together.wait()
        return (folder / "lock").create(str(number).encode())

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(create, range(8)))
    assert won.count(True) == 1
    assert (folder / "lock").read_bytes() == str(won.index(True)).encode()
    assert [name for name, _ in folder.listing()] == ["lock"]


def test_an_answer_lost_on_the_way_does_not_make_two_creators(s3: FaultProxy) -> None:
    lock = Place.of(f"s3://tests/{uuid.uuid4().hex}/lock")
    with s3.faulty(Plan(rate=1.0, kinds=[Fault.INTERNAL_ERROR, Fault.SLOW_DOWN], limit=2, methods=["PUT"])) as plan:
        assert lock.create(b"first")
        assert not lock.create(b"second")
    assert plan.injected.total() == 2


@pytest.mark.parametrize("fault", ["500", "503", "cut", "lost", "delay"])
def test_a_store_that_fails_now_and_then_is_asked_again(s3: FaultProxy, fault: str) -> None:
    place, data = Place.of(f"s3://tests/{uuid.uuid4().hex}/f"), bytes(range(256)) * 40
    with s3.faulty(Plan(rate=1.0, kinds=[Fault(fault)], limit=2, delay_s=0.1)) as plan:
        place.write_bytes(data)
    with s3.faulty(Plan(rate=1.0, kinds=[Fault(fault)], limit=2, delay_s=0.1)) as again:
        assert place.read_bytes() == data
    assert plan.injected.total() == 2
    assert again.injected.total() >= 1  # what is read in one request can be delayed only once


def test_a_place_travels_between_processes_and_compares_by_address(folder: Place) -> None:
    assert pickle.loads(pickle.dumps(folder)) == folder
    assert len({folder, Place.of(str(folder)), folder / "a"}) == 2
    assert folder / "a" < folder / "b"
    assert (folder / "a").parent == folder
    assert Place.of(folder) is folder


def test_where_a_place_lies_is_known(tmp_path: Path) -> None:
    here, there = Place.of(tmp_path), Place.of("s3://bucket/a/b/")
    assert (here.is_local, here.local, here.path) == (True, tmp_path, str(tmp_path))
    assert (there.is_local, there.path, there.name, str(there)) == (False, "bucket/a/b", "b", "s3://bucket/a/b")
    assert there.is_absolute
    assert not Place("a/b").is_absolute
    with pytest.raises(ValueError, match="lies on S3"):
        _ = there.local


@pytest.mark.parametrize("address", ["gs://bucket/a", "s3://", "s3:///", "https://host/a"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="no place we can use"):
        Place(address)


def write_slowly(folder: Place, name: str) -> pa.NativeFile:
    folder.filesystem.create_dir(folder.path, recursive=True)
    stream = folder.writing.open_output_stream(f"{folder.path}/{name}")
    stream.write(b"half")
    return stream


def test_a_file_being_written_is_not_seen(folder: Place) -> None:
    stream = write_slowly(folder, "shard.parquet")
    assert not (folder / "shard.parquet").exists()
    assert folder.files() == []
    stream.write(b" and half")
    stream.close()
    assert (folder / "shard.parquet").read_bytes() == b"half and half"
    assert [name for name, _ in folder.listing()] == ["shard.parquet"]


def test_closing_twice_is_no_harm(tmp_path: Path) -> None:
    stream = write_slowly(Place.of(tmp_path), "f")
    stream.close()
    stream.close()
    assert (tmp_path / "f").read_bytes() == b"half"


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = write_slowly(Place.of(tmp_path), "f")

    def full(data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    raw = storage._WholeFile(tmp_path / "g")
    monkeypatch.setattr(raw, "_stream", _Full(raw._stream, full))
    with pytest.raises(OSError, match="No space"):
        raw.write(b"more")
    raw.close()
    stream.close()
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_disk_that_is_full_when_the_file_is_closed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = storage._WholeFile(tmp_path / "f")
    raw.write(b"half")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            raw.close()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_let_go_in_the_middle_leaves_no_file(tmp_path: Path) -> None:
    raw = storage._WholeFile(tmp_path / "f")
    raw.write(b"half")
    del raw
    gc.collect()
    assert not (tmp_path / "f").exists()


def test_whole_files_travel_between_processes(tmp_path: Path) -> None:
    place = Place.of(tmp_path)
    copy = pickle.loads(pickle.dumps(place.writing))
    assert copy == place.writing
    pq.write_table(pa.table({"key": [1]}), f"{tmp_path}/f.parquet", filesystem=copy)
    assert pq.read_table(tmp_path / "f.parquet")["key"].to_pylist() == [1]


def test_whole_files_do_what_a_local_file_system_does(tmp_path: Path) -> None:
    files = Place.of(tmp_path).writing
    files.create_dir(f"{tmp_path}/sub", recursive=True)
    with files.open_output_stream(f"{tmp_path}/sub/a") as stream:
        stream.write(b"x")
    files.copy_file(f"{tmp_path}/sub/a", f"{tmp_path}/sub/b")
    files.move(f"{tmp_path}/sub/b", f"{tmp_path}/c")
    assert files.get_file_info(f"{tmp_path}/c").size == 1
    assert io.BytesIO(files.open_input_file(f"{tmp_path}/c").read()).getvalue() == b"x"
    files.delete_file(f"{tmp_path}/c")
    files.delete_dir_contents(f"{tmp_path}/sub")
    files.delete_dir(f"{tmp_path}/sub")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(io.UnsupportedOperation):
        files.open_append_stream(f"{tmp_path}/c")
    with pytest.raises(io.UnsupportedOperation):
        WholeFiles().delete_root_dir_contents()


class _Full:
    """A stream on a disk without room."""

    def __init__(self, stream: Any, write: Any) -> None:
        self._stream, self.write = stream, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
