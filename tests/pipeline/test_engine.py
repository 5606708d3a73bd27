import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import engine, schema
from pipeline.audit import AuditError
from pipeline.engine import carry_out
from pipeline.failure import RunError
from pipeline.ledger import Ledger
from pipeline.shards import MANIFEST_NAME, Manifest, open_rows, read_manifest
from pipeline.storage import Place
from tests.pipeline.engine_steps import Dangers, squares, write_list

pytestmark = pytest.mark.ray

COUNT = 60


def read(out: Place) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = open_rows(out).to_table().to_pylist()
    return sorted(rows, key=lambda row: row["key"])


def expected(count: int = COUNT, crashed: frozenset[int] = frozenset()) -> dict[int, str | None]:
    reasons = {key: "multiple" if key % 3 == 0 else None for key in range(count)}
    return {**reasons, **dict.fromkeys(crashed, "worker_crash")}


def outcomes(out: Place) -> dict[int, str | None]:
    rows = read(out)
    assert len({row["key"] for row in rows}) == len(rows), "a row is there twice"
    return {row["key"]: row["reason"] for row in rows}


@pytest.fixture
def rows(tmp_path: Path) -> Place:
    return write_list(tmp_path, COUNT)


@pytest.fixture
def out(tmp_path: Path) -> Place:
    return Place.of(tmp_path / "out")


@pytest.fixture(scope="module")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Manifest, Place]:
    folder = tmp_path_factory.mktemp("finished")
    rows = write_list(folder, COUNT)
    out = Place.of(folder / "out")
    return rows, carry_out(squares(rows, COUNT), out, run_id="r"), out


def test_every_row_ends_once_with_its_outcome(finished: tuple[Place, Manifest, Place]) -> None:
    _, manifest, out = finished
    assert outcomes(out) == expected()
    assert (manifest.rows_in, manifest.rows_out, manifest.rejects) == (60, 40, {"multiple": 20})


def test_good_rows_and_rejects_lie_apart(finished: tuple[Place, Manifest, Place]) -> None:
    for status in (schema.LABELLED, schema.REJECTED):
        assert {row["status"] for row in read(finished[2] / f"outcome={status}")} == {status}


def test_the_manifest_lists_every_file(finished: tuple[Place, Manifest, Place]) -> None:
    _, manifest, out = finished
    assert sorted(str(file["path"]) for file in manifest.files) == [p.relative_to(out) for p in out.files(".parquet")]
    assert sum(int(str(file["rows"])) for file in manifest.files) == COUNT


def test_a_finished_output_is_only_read(finished: tuple[Place, Manifest, Place]) -> None:
    rows, manifest, out = finished
    assert carry_out(squares(rows, COUNT, Dangers(bug=frozenset(range(COUNT)))), out) == manifest


@pytest.mark.parametrize(
    ("change", "told"),
    [({"threshold": 0.4}, "threshold was 0.3, now 0.4"), ({"teacher": {"sha256": "bb"}}, "teacher.sha256 was 'aa'")],
)
def test_an_output_begun_otherwise_is_refused_with_the_difference(
    finished: tuple[Place, Manifest, Place], change: dict[str, object], told: str
) -> None:
    rows, _, out = finished
    work = squares(rows, COUNT)
    other = replace(work, source=replace(work.source, identity={**work.source.identity, **change}))
    with pytest.raises(ValueError, match=told) as caught:
        carry_out(other, out)
    assert "\n" not in str(caught.value)


def test_a_row_that_kills_its_process_costs_itself_alone(ray_session: None, rows: Place, out: Place) -> None:
    poison = frozenset({17})
    manifest = carry_out(squares(rows, COUNT, Dangers(kill=poison)), out)
    assert outcomes(out) == expected(crashed=poison)
    assert manifest.rejects["worker_crash"] == 1
    assert next(row["value"] for row in read(out) if row["key"] == 17) == "w17"


def test_a_process_that_dies_once_costs_nothing(ray_session: None, rows: Place, out: Place, tmp_path: Path) -> None:
    carry_out(squares(rows, COUNT, Dangers(kill_once=tmp_path / "died")), out)
    assert (tmp_path / "died").exists()
    assert outcomes(out) == expected()


def test_a_row_that_goes_down_alone_with_a_machine_is_not_blamed_for_it(
    ray_session: None, rows: Place, out: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tries that Ray makes for a task are over within the second in which nobody knows yet that a machine is lost.
    monkeypatch.setattr(engine, "CRASH_RETRIES", 0)
    carry_out(squares(rows, COUNT, Dangers(kill_once=tmp_path / "mark"), rows_per_block=1), out)
    assert outcomes(out) == expected()


def test_an_exception_is_a_bug_and_not_a_bad_row(ray_session: None, rows: Place, out: Place) -> None:
    with pytest.raises(RuntimeError, match="no such thing as row 17") as caught:
        carry_out(squares(rows, COUNT, Dangers(bug=frozenset({17}))), out)
    assert "\n" not in str(caught.value)
    assert read_manifest(out) is None
    carry_out(squares(rows, COUNT), out)  # mended
    assert outcomes(out) == expected()


def test_rows_that_cannot_be_written_are_not_blamed_for_it(ray_session: None, rows: Place, out: Place) -> None:
    with pytest.raises(RunError, match="no such thing"):  # begins the output and writes nothing
        carry_out(squares(rows, COUNT, Dangers(bug=frozenset(range(COUNT)))), out)
    in_the_way = out.local / f"outcome={schema.REJECTED}"
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.touch()
    with pytest.raises(RunError, match="blocks could not be read or written") as caught:
        carry_out(squares(rows, COUNT), out)
    assert "\n" not in str(caught.value)
    in_the_way.unlink()
    carry_out(squares(rows, COUNT), out)
    assert outcomes(out) == expected()


def test_what_is_done_is_not_done_again(ray_session: None, rows: Place, out: Place, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    with pytest.raises(RuntimeError):
        carry_out(squares(rows, COUNT, Dangers(bug=frozenset({17}), seen=seen)), out)
    before = {path.name for path in seen.iterdir()}
    carry_out(squares(rows, COUNT, Dangers(seen=seen)), out)
    assert 0 < len(before) < COUNT
    assert {path.name: path.read_bytes() for path in seen.iterdir()} == {str(key): b"." for key in range(COUNT)}


def test_rows_whose_checkpoint_is_lost_are_written_again_and_only_those(
    ray_session: None, rows: Place, out: Place, tmp_path: Path
) -> None:
    first = carry_out(squares(rows, COUNT), out)
    (out / MANIFEST_NAME).delete()
    kept = Ledger(out).done.files(".parquet")
    lost = kept[:2]
    keys = {key for place in lost for key in _ids(place)}
    for place in lost:
        place.delete()
    seen = tmp_path / "seen"
    seen.mkdir()
    again = carry_out(squares(rows, COUNT, Dangers(seen=seen)), out)
    assert {int(path.name) for path in seen.iterdir()} == keys
    assert len(keys) == 20
    assert outcomes(out) == expected()
    assert again.digest == first.digest


def _ids(place: Place) -> list[int]:
    import pyarrow.parquet as pq

    keys: list[int] = pq.read_table(place.path, filesystem=place.filesystem)["key"].to_pylist()
    return keys


def test_rows_that_only_the_checkpoint_knows_are_made_again(ray_session: None, rows: Place, out: Place) -> None:
    carry_out(squares(rows, COUNT), out)
    (out / MANIFEST_NAME).delete()
    out.files(".parquet")[0].delete()
    carry_out(squares(rows, COUNT), out)
    assert outcomes(out) == expected()


def test_a_torn_shard_is_never_called_finished(ray_session: None, rows: Place, out: Place) -> None:
    carry_out(squares(rows, COUNT), out)
    (out / MANIFEST_NAME).delete()
    torn = out.files(".parquet")[0]
    torn.write_bytes(torn.read_bytes()[:-20])
    with pytest.raises(AuditError, match="cannot be read"):
        carry_out(squares(rows, COUNT), out)
    assert read_manifest(out) is None


def test_rows_left_twice_by_a_writer_that_outlived_its_driver_are_dropped(
    ray_session: None, rows: Place, out: Place
) -> None:
    carry_out(squares(rows, COUNT), out)
    (out / MANIFEST_NAME).delete()
    shard = out.files(".parquet")[0]
    (shard.parent / "straggler.parquet").write_bytes(shard.read_bytes())
    carry_out(squares(rows, COUNT), out)
    assert Counter(row["key"] for row in read(out)) == dict.fromkeys(range(COUNT), 1)


def test_a_second_writer_is_refused_while_the_first_lives(ray_session: None, rows: Place, out: Place) -> None:
    with Ledger(out).writer(), pytest.raises(ValueError, match="is being written by process"):
        carry_out(squares(rows, COUNT), out)
    carry_out(squares(rows, COUNT), out)


def test_a_dead_writer_is_followed_at_once(ray_session: None, rows: Place, out: Place) -> None:
    ledger = Ledger(out)
    dead = {"token": "t", "host": __import__("socket").gethostname(), "pid": 2**22 - 1, "began": 1.0}
    (ledger.folder / "writer.json").write_text(json.dumps({**dead, "beat": time.time()}))
    carry_out(squares(rows, COUNT), out)
    assert outcomes(out) == expected()


def test_a_strangers_files_are_refused_and_kept(rows: Place, out: Place) -> None:
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not ours"):
        carry_out(squares(rows, COUNT), out)
    assert (out / "thesis.tex").exists()
