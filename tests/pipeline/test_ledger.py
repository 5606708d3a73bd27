import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import ledger as module
from pipeline.ledger import Ledger, WriterError, differences
from pipeline.storage import Place
from tests.pipeline.fault_proxy import Fault, FaultProxy, Plan

IDENTITY = {"stage": "squares", "label": {"min_score": 0.3, "phrases": {"parser": "chunks"}}, "inputs": {"list": "aa"}}


@pytest.fixture(params=["local", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "local":
        yield Place.of(tmp_path / "out")
    else:
        request.getfixturevalue("s3")
        yield Place.of(f"s3://tests/{uuid.uuid4().hex}/out")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(module, "SETTLE_S", 0.3)


def writer_file(out: Place) -> Place:
    return Place.of(f"{out}.ledger") / "writer.json"


def now(out: Place) -> dict[str, Any]:
    found = Ledger(out)._read_writer()
    assert found is not None
    return found


def leave_writer(out: Place, **changes: object) -> None:
    """Leave what a writer leaves that had no time to go."""
    writer_file(out).write_text(json.dumps({"token": "other", **module._who(), **changes}))


def test_the_same_claim_is_taken_again(out: Place) -> None:
    Ledger(out).claim(IDENTITY)
    claimed = (Ledger(out).folder / "claim.json").read_text()
    Ledger(out).claim({**IDENTITY, "label": dict(reversed(IDENTITY["label"].items()))})  # type: ignore[attr-defined]
    assert (Ledger(out).folder / "claim.json").read_text() == claimed


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"label": {"min_score": 0.4, "phrases": {"parser": "chunks"}}}, "label.min_score was 0.3, now 0.4"),
        (
            {"label": {"min_score": 0.3, "phrases": {"parser": "spacy"}}},
            "label.phrases.parser was 'chunks', now 'spacy'",
        ),
        ({"inputs": {"list": "bb"}}, "inputs.list was 'aa', now 'bb'"),
        ({"guard": "cc"}, "guard was 'not set', now 'cc'"),
    ],
)
def test_another_claim_is_refused_by_the_name_of_what_differs(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    out = Place.of(tmp_path / "out")
    Ledger(out).claim(IDENTITY)
    with pytest.raises(ValueError, match="begun otherwise") as caught:
        Ledger(out).claim({**IDENTITY, **change})
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_difference_is_told(tmp_path: Path) -> None:
    assert differences({"a": 1, "b": {"c": [1, 2]}}, {"a": 2, "b": {"c": [1, 3]}}) == [
        "a was 1, now 2",
        "b.c was '[1, 2]', now '[1, 3]'",
    ]


def test_a_second_writer_is_refused_while_the_first_lives(out: Place) -> None:
    with Ledger(out).writer(), pytest.raises(WriterError, match=f"process {os.getpid()} on {socket.gethostname()}"):
        Ledger(out).writer().__enter__()
    with Ledger(out).writer():
        pass  # it left


def test_a_writer_that_fails_leaves_its_place(out: Place) -> None:
    with pytest.raises(KeyError), Ledger(out).writer():
        raise KeyError("bug")
    assert not writer_file(out).exists()


def test_a_dead_process_of_this_machine_is_followed_at_once(out: Place, quick: None) -> None:
    leave_writer(out, pid=2**22 - 1)
    with Ledger(out).writer():
        assert now(out)["pid"] == os.getpid()


def test_another_process_under_a_dead_ones_number_is_not_taken_for_it(out: Place, quick: None) -> None:
    leave_writer(out, began=1.0)
    with Ledger(out).writer():
        assert now(out)["token"] != "other"


def test_a_writer_elsewhere_counts_as_alive_as_long_as_its_signs_of_life_are_fresh(out: Place, quick: None) -> None:
    leave_writer(out, host="elsewhere", beat=time.time() - module.LAPSE_S / 2)
    with pytest.raises(WriterError, match="on elsewhere"):
        Ledger(out).writer().__enter__()
    assert now(out)["token"] == "other"


def test_a_writer_elsewhere_that_has_been_silent_is_followed(out: Place, quick: None) -> None:
    leave_writer(out, host="elsewhere", beat=time.time() - 2 * module.LAPSE_S)
    with Ledger(out).writer():
        assert now(out)["host"] == socket.gethostname()


def test_a_writer_shows_signs_of_life(out: Place, quick: None) -> None:
    with Ledger(out).writer():
        first = now(out)["beat"]
        wait_until(lambda: now(out)["beat"] > first)
        assert now(out)["beat"] > first


def test_of_several_that_follow_a_dead_writer_at_once_one_wins(
    out: Place, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 1.0)
    leave_writer(out, pid=2**22 - 1)
    together, over = threading.Barrier(4), threading.Barrier(4)
    won: list[int] = []

    def follow(number: int) -> None:
        together.wait()
        try:
            with Ledger(out).writer():
                won.append(number)
                over.wait(60)
        except WriterError:
            over.wait(60)

    threads = [threading.Thread(target=follow, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(won) == 1


def test_a_writer_whose_place_was_taken_learns_it_before_it_finishes(out: Place, quick: None) -> None:
    ledger = Ledger(out)

    def write() -> None:
        with ledger.writer():
            while not ledger._lost.wait(0.2):  # again, if a sign of life was on its way
                leave_writer(out)

    with pytest.raises(WriterError, match="taken over"):
        write()
    assert now(out)["token"] == "other", "the taker's place is not cleared"


def test_a_store_that_is_away_for_a_moment_costs_no_place(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, tried = Ledger(Place.of(tmp_path / "out")), []

    def away(_: Place) -> bytes:
        tried.append(1)
        raise OSError("When reading information for key: SLOW_DOWN")

    with ledger.writer():
        with monkeypatch.context() as patch:
            patch.setattr(Place, "read_bytes", away)
            wait_until(lambda: len(tried) > 2)
        ledger.check_writer()


def test_a_sign_of_life_read_while_it_changes_is_read_again(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole, torn = Place.of(tmp_path / "out"), Place.read_bytes, [b'{"token": "a', b'{"a": 1}"b']
    with Ledger(out).writer():
        monkeypatch.setattr(Place, "read_bytes", lambda place: torn.pop() if torn else whole(place))
        wait_until(lambda: not torn)
        first = now(out)["beat"]
        wait_until(lambda: now(out)["beat"] > first)
        assert now(out)["beat"] > first
        assert torn == []


def test_a_sign_of_life_that_stays_unreadable_is_told(tmp_path: Path) -> None:
    out = Place.of(tmp_path / "out")
    writer_file(out).write_text("{")
    with pytest.raises(OSError, match=r"writer\.json is no JSON"):
        Ledger(out).writer().__enter__()


def test_a_place_is_taken_though_the_answer_to_the_taking_was_lost(s3: FaultProxy) -> None:
    out = Place.of(f"s3://tests/{uuid.uuid4().hex}/out")
    plan = Plan(rate=1.0, kinds=[Fault.LOST], limit=1, methods=["PUT"], path="writer.json")
    with s3.faulty(plan), Ledger(out).writer():
        pass
    assert plan.injected.total() == 1


def write_ids(ledger: Ledger, name: str, ids: list[int]) -> Place:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"key": pa.array(ids, pa.int64())}), sink)
    (ledger.done / name).write_bytes(sink.getvalue().to_pybytes())
    return ledger.done / name


def ids(ledger: Ledger) -> list[int]:
    found: list[int] = []
    for place in ledger.done.files(".parquet"):
        found += pq.read_table(place.path, filesystem=place.filesystem)["key"].to_pylist()
    return sorted(found)


def test_done_rows_are_counted_once(out: Place) -> None:
    ledger = Ledger(out)
    assert ledger.reconcile() == 0
    write_ids(ledger, "a.parquet", [1, 2])
    write_ids(ledger, "b.parquet", [2, 3])
    assert ledger.reconcile() == 3


def test_a_pending_file_goes_if_it_is_committed_too_and_stays_for_ray_if_not(out: Place) -> None:
    ledger = Ledger(out)
    write_ids(ledger, "a.parquet", [1])
    write_ids(ledger, "a.pending.parquet", [1])
    write_ids(ledger, "b.pending.parquet", [2])
    assert ledger.reconcile() == 1
    assert [place.name for place in ledger.done.files()] == ["a.parquet", "b.pending.parquet"]


def test_many_files_become_one(out: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_FROM", 4)
    ledger = Ledger(out)
    for number in range(4):
        write_ids(ledger, f"{number}.parquet", [number, 7])
    write_ids(ledger, "x.pending.parquet", [9])
    assert ledger.reconcile() == ledger.reconcile() == 5
    names = [place.name for place in ledger.done.files()]
    assert len(names) == 2
    assert "x.pending.parquet" in names


def test_a_compaction_killed_in_the_middle_loses_and_doubles_no_row(
    out: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMPACT_FROM", 2)
    ledger = Ledger(out)
    for number in range(3):
        write_ids(ledger, f"{number}.parquet", [number])
    deletions = []

    def killed(place: Place) -> None:
        deletions.append(place)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Place, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.reconcile()
    assert deletions
    assert ledger.reconcile() == 3


def test_many_files_are_deleted_side_by_side_as_each_takes_a_store_its_time(
    out: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMPACT_FROM", 4)
    ledger = Ledger(out)
    for number in range(4):
        write_ids(ledger, f"{number}.parquet", [number])
    together, delete = threading.Barrier(4), Place.delete

    def meet_and_delete(place: Place) -> None:
        together.wait(timeout=10)  # broken, and an error, unless four are at it
        delete(place)

    monkeypatch.setattr(Place, "delete", meet_and_delete)
    assert ledger.reconcile() == 4
    assert len(ledger.done.files()) == 1


def test_healing_makes_the_checkpoint_say_what_is_there(out: Place) -> None:
    ledger = Ledger(out)
    write_ids(ledger, "a.parquet", [1, 2])
    write_ids(ledger, "b.pending.parquet", [3])
    ledger.heal(np.array([2, 5], np.int64))
    assert ids(ledger) == [2, 5]
    assert len(ledger.done.files()) == 1


def test_what_a_killed_writer_left_half_written_is_deleted(tmp_path: Path) -> None:
    out = Place.of(tmp_path / "out")
    (out / "outcome=labelled" / ".a.parquet.0123.part").write_text("half")
    (out / "outcome=labelled" / "b.parquet").write_text("whole")
    Ledger(out).reconcile()
    assert [name for name, _ in out.listing()] == ["outcome=labelled/b.parquet"]


def test_bugs_are_kept_with_their_traceback_until_forgotten(out: Place) -> None:
    ledger = Ledger(out)
    assert ledger.bugs_seen() == []
    try:
        raise KeyError("no such thing")
    except KeyError as error:
        Ledger(out).report_bug(error)
    (seen,) = ledger.bugs_seen()
    assert "Traceback" in seen
    assert seen.strip().endswith("KeyError: 'no such thing'")
    ledger.forget_bugs()
    assert ledger.bugs_seen() == []


def wait_until(true: Any, limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
