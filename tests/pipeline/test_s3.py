"""The engine on S3: a real S3 server on loopback, which may be told to fail (`fault_proxy`)."""

import random
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import engine
from pipeline import ledger as module
from pipeline.engine import carry_out
from pipeline.ledger import PENDING, Ledger
from pipeline.progress import Progress
from pipeline.shards import MANIFEST_NAME, Manifest, open_rows, read_manifest, shard_places
from pipeline.storage import Place
from tests.pipeline.engine_steps import Dangers, squares, write_list
from tests.pipeline.fault_proxy import Fault, FaultProxy, Plan
from tests.pipeline.test_exactly_once import COUNT, ROWS_PER_BLOCK, Driver, committed, undisturbed, written

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def rows(ray_session: None, s3: FaultProxy, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place.of(f"s3://tests/{uuid.uuid4().hex}/list.parquet")
    place.write_bytes(write_list(tmp_path_factory.mktemp("rows"), COUNT).read_bytes())
    return place


@pytest.fixture
def out(rows: Place) -> Place:
    return rows.parent / uuid.uuid4().hex


@dataclass(frozen=True)
class Finished:
    """An output made while an actor died."""

    out: Place
    manifest: Manifest
    died: bool

    def copy(self, out: Place) -> Place:
        """Copy it, ledger and all, but without its manifest."""
        for old, new in ((self.out, out), (Ledger(self.out).folder, Ledger(out).folder)):
            for name, _ in old.listing():
                if name != MANIFEST_NAME:
                    (new / name).write_bytes((old / name).read_bytes())
        return out


@pytest.fixture(scope="module")
def finished(rows: Place, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    died, out = tmp_path_factory.mktemp("finished") / "died", rows.parent / "finished"
    manifest = carry_out(work_on(rows, Dangers(kill_once=died)), out)
    return Finished(out, manifest, died.exists())


def work_on(rows: Place, dangers: Dangers | None = None) -> engine.Work:
    return squares(rows, COUNT, dangers, rows_per_block=ROWS_PER_BLOCK)


def test_a_run_is_whole_although_an_actor_died(rows: Place, finished: Finished) -> None:
    assert finished.died
    assert written(finished.out) == undisturbed()
    assert read_manifest(finished.out) == finished.manifest
    assert sorted(shard_places(finished.out)) == finished.out.files(".parquet")
    assert carry_out(work_on(rows, Dangers(bug=frozenset(range(COUNT)))), finished.out) == finished.manifest


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
def twins(rows: Place, finished: Finished, out: Place) -> Twins:
    return Twins(rows, finished.copy(out))


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
    rows: Place, finished: Finished, out: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    reconcile = Ledger.reconcile

    def taken_over(ledger: Ledger) -> int:
        while not ledger._lost.wait(0.2):  # again, if a sign of life was on its way
            (ledger.folder / "writer.json").write_text('{"token": "another", "host": "elsewhere", "beat": 0}')
        return reconcile(ledger)

    monkeypatch.setattr(Ledger, "reconcile", taken_over)
    with pytest.raises(module.WriterError, match="taken over"):
        carry_out(work_on(rows), finished.copy(out))
    assert read_manifest(out) is None
