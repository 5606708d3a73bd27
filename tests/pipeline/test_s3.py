"""The engine on S3: a real S3 server on loopback, which may be told to fail (`fault_proxy`)."""

import random
import subprocess
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import engine
from pipeline.engine import carry_out
from pipeline.ledger import PENDING, Ledger
from pipeline.progress import Progress
from pipeline.shards import MANIFEST_NAME, open_rows, read_manifest, shard_places
from pipeline.storage import Place
from tests.pipeline.engine_steps import Dangers, squares, write_list
from tests.pipeline.fault_proxy import Fault, FaultProxy, Plan
from tests.pipeline.test_exactly_once import COUNT, ROWS_PER_BLOCK, Driver, committed, undisturbed, written

pytestmark = pytest.mark.ray


@pytest.fixture
def folder(ray_session: None, s3: FaultProxy) -> Place:
    return Place.of(f"s3://tests/{uuid.uuid4().hex}")


@pytest.fixture
def rows(folder: Place, tmp_path: Path) -> Place:
    (folder / "list.parquet").write_bytes(write_list(tmp_path, COUNT).read_bytes())
    return folder / "list.parquet"


@pytest.fixture
def out(folder: Place) -> Place:
    return folder / "out"


def work_on(rows: Place, dangers: Dangers | None = None) -> engine.Work:
    return squares(rows, COUNT, dangers, rows_per_block=ROWS_PER_BLOCK)


def test_a_run_is_whole_and_its_manifest_lists_every_shard(rows: Place, out: Place, tmp_path: Path) -> None:
    manifest = carry_out(work_on(rows, Dangers(kill_once=tmp_path / "died")), out)
    assert (tmp_path / "died").exists(), "no actor died"
    assert written(out) == undisturbed()
    assert read_manifest(out) == manifest
    assert sorted(shard_places(out)) == out.files(".parquet")
    assert carry_out(work_on(rows, Dangers(bug=frozenset(range(COUNT)))), out) == manifest


def test_a_killed_driver_is_resumed(rows: Place, out: Place, tmp_path: Path) -> None:
    work, chance = work_on(rows, Dangers(seconds_per_block=0.4)), random.Random(13)
    driver, done = Driver(tmp_path, partial(carry_out, work, out)), Ledger(out).done
    driver.run_killed(lambda: committed(done) >= 2, chance.uniform(0, 0.4))
    assert read_manifest(out) is None
    driver.run()
    assert written(out) == undisturbed()


def test_a_store_that_fails_all_the_time_costs_nothing(s3: FaultProxy, rows: Place, out: Place) -> None:
    plan = Plan(rate=0.08, kinds=list(Fault), limit=60, seed=17, delay_s=0.2)
    with s3.faulty(plan):
        manifest = carry_out(work_on(rows), out)
    assert written(out) == undisturbed()
    assert read_manifest(out) == manifest
    assert plan.injected.total() >= 10, plan.injected


class Twins:
    """An output killed between the copy and the deletion that are S3's renaming of a checkpoint file, and its rows."""

    def __init__(self, rows: Place, out: Place) -> None:
        self.work, self.out, self.ledger = work_on(rows), out, Ledger(out)
        carry_out(self.work, out)
        (out / MANIFEST_NAME).delete()
        twin, undone = self.ledger.done.files(".parquet")[:2]
        (self.ledger.done / twin.name.replace(".parquet", PENDING)).write_bytes(twin.read_bytes())
        self.keys = keys_of(twin)
        # Something must be left to do, or nothing runs and nothing is recovered.
        for shard in out.files(".parquet"):
            if shard.name.startswith(undone.name.removesuffix(".parquet")):
                shard.delete()
        undone.delete()

    def missing(self) -> set[int]:
        there = open_rows(self.out).to_table(columns=["key"])["key"].to_pylist()
        return set(range(COUNT)) - set(there)

    def run_ray_alone(self) -> None:
        """Run what is not done as the engine does, without its own care before and after."""
        progress = (Progress("ray"), 0)
        engine._write_round(self.work, self.work.source.steps, ROWS_PER_BLOCK, self.out, self.ledger, progress)


def keys_of(place: Place) -> set[int]:
    return set(pq.read_table(place.path, filesystem=place.filesystem)["key"].to_pylist())


@pytest.fixture
def twins(rows: Place, out: Place) -> Twins:
    return Twins(rows, out)


def test_rays_own_recovery_loses_rows_in_silence_and_ours_does_not(twins: Twins) -> None:
    twins.run_ray_alone()
    assert twins.missing() == twins.keys, "Ray has closed the hole: reconcile() may go"
    twins.run_ray_alone()
    assert twins.missing() == twins.keys, "and running again does not bring them back"
    carry_out(twins.work, twins.out)  # the audit alone, now that they are lost
    assert written(twins.out) == undisturbed()


def test_reconciling_before_a_run_loses_nothing(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("there was something to heal")

    twins.ledger.reconcile()
    twins.run_ray_alone()
    assert twins.missing() == set()
    monkeypatch.setattr(Ledger, "heal", never)
    carry_out(twins.work, twins.out)
    assert written(twins.out) == undisturbed()


def test_the_audit_alone_heals_what_is_lost(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    def count_only(ledger: Ledger) -> int:
        return len({key for place in ledger.done.files(".parquet") for key in keys_of(place)})

    monkeypatch.setattr(Ledger, "reconcile", count_only)
    carry_out(twins.work, twins.out)
    assert written(twins.out) == undisturbed()


def test_a_place_taken_over_during_a_run_is_never_called_finished(
    rows: Place, out: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import ledger as module

    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    whole = engine._settle

    def taken_over(work: engine.Work, out: Place, ledger: Ledger) -> Any:
        account = whole(work, out, ledger)
        (ledger.folder / "writer.json").write_text('{"token": "another", "host": "elsewhere", "beat": 0}')
        assert ledger._lost.wait(60)
        return account

    monkeypatch.setattr(engine, "_settle", taken_over)
    with pytest.raises(module.WriterError, match="taken over"):
        carry_out(work_on(rows), out)
    assert read_manifest(out) is None


def test_the_drivers_of_these_tests_speak_of_failures(tmp_path: Path, ray_session: None) -> None:
    driver = Driver(tmp_path, partial(int, "no number"))
    with driver.running() as process:
        assert isinstance(process, subprocess.Popen)
        assert process.wait(240) == 1
    assert "invalid literal" in driver.told
