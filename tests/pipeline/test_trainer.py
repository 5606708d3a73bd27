"""Workers that split a model among them train as those that each hold it whole, and can take over from each other."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from glipv2 import checkpoint
from glipv2.losses.criterion import LossConfig
from glipv2.optim import OptimConfig
from pipeline.ingest import IngestConfig
from pipeline.pretrain import PretrainConfig, pretrain
from pipeline.row_index import SourceConfig
from pipeline.storage import Place
from pipeline.tracking import open_run
from pipeline.trainer import HISTORY
from tests.conftest import RAY_ENVIRONMENT
from tests.pipeline.fault_proxy import Fault, FaultProxy, Plan
from tests.pipeline.trainings import make_inputs, model

LONG: dict[str, Any] = {
    "ingest": IngestConfig(batch_size=3, mask_words=0.5),  # of 4 rows: no checkpoint lies where an epoch begins
    "num_steps": 21,
    "checkpoint_every": 7,
    "log_every": 1,
}
ROOT = Path(__file__).resolve().parents[2]


def plan(**changes: Any) -> PretrainConfig:
    cfg = PretrainConfig(
        model=model(),
        ingest=IngestConfig(batch_size=4, mask_words=0.5),
        optim=OptimConfig(warmup_steps=0, ema_decay=0.5),
        losses=LossConfig(inter=1.0, mlm=1.0),
        num_steps=4,
        checkpoint_every=2,
    )
    return replace(cfg, **changes)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train by several plans, each on the same two processes; give the folder with what came of them."""
    folder = tmp_path_factory.mktemp("trainees")
    given = make_inputs(folder)
    odd = IngestConfig(batch_size=3, mask_words=0.5)
    parts = IngestConfig(batch_size=4, mask_words=0.5, accumulate=2)
    plans = {
        "ddp": (plan(), given, None),
        "fsdp2": (plan(strategy="fsdp2"), given, None),
        "alone": (plan(ingest=odd), given, None),
        "uneven": (plan(ingest=odd), given, None),
        "again": (plan(), given, "ddp/2"),
        "long": (plan(**LONG), given, None),
        "from-ddp": (plan(strategy="fsdp2"), given, "ddp/2"),
        "from-fsdp2": (plan(), given, "fsdp2/2"),
        "ddp-parts": (plan(ingest=parts, recompute=True), given, None),
        "loaders": (plan(loader_processes=1), given, None),
        "skips": (plan(), given, None),
        "skips-fsdp2": (plan(strategy="fsdp2"), given, None),
        "fsdp2-parts": (plan(ingest=parts, recompute=True, strategy="fsdp2"), given, None),
    }
    (folder / "plans.pickle").write_bytes(pickle.dumps(plans))
    workers = [
        subprocess.Popen([sys.executable, "-m", "tests.pipeline.two_trainees", str(folder), str(rank)], cwd=ROOT)
        for rank in range(2)
    ]
    assert [worker.wait(500) for worker in workers] == [0, 0]
    return folder


def losses(folder: Path, name: str, rank: int = 0) -> list[float]:
    return told(folder, name, rank)[0]


def told(folder: Path, name: str, rank: int) -> tuple[list[float], list[float]]:
    """Give a worker's losses and its count of skipped steps, one number per step each."""
    found: tuple[list[float], list[float]] = pickle.loads((folder / f"{name}-{rank}.pickle").read_bytes())
    return found


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / name / "4")[0].state_dict()


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-4)


def test_every_worker_tells_the_loss_of_the_whole_batch(ran: Path) -> None:
    assert losses(ran, "ddp", 0) == losses(ran, "ddp", 1)


def test_workers_with_shares_of_different_size_learn_what_one_worker_learns(ran: Path) -> None:
    assert losses(ran, "uneven") == pytest.approx(losses(ran, "alone"), rel=1e-4)
    assert_close(weights(ran, "uneven"), weights(ran, "alone"))


@pytest.mark.parametrize(("split", "whole"), [("fsdp2", "ddp"), ("fsdp2-parts", "ddp-parts")])
def test_a_model_that_is_split_among_workers_learns_the_same(ran: Path, split: str, whole: str) -> None:
    assert losses(ran, split) == pytest.approx(losses(ran, whole), rel=1e-4)
    assert_close(weights(ran, split), weights(ran, whole))


def test_a_resumed_training_goes_on_bit_for_bit(ran: Path) -> None:
    assert losses(ran, "again") == losses(ran, "ddp")[2:]
    again, unbroken = weights(ran, "again"), weights(ran, "ddp")
    assert all(torch.equal(again[name], value) for name, value in unbroken.items())


def test_batches_are_the_same_whichever_process_makes_them(ran: Path) -> None:
    assert losses(ran, "loaders") == losses(ran, "ddp")


@pytest.mark.parametrize("name", ["skips", "skips-fsdp2"])
def test_what_is_no_number_on_one_worker_is_skipped_by_all(ran: Path, name: str) -> None:
    for rank in range(2):
        found, skipped = told(ran, name, rank)
        assert skipped == [0, 1, 1, 1]
        assert [math.isfinite(loss) for loss in found] == [True, False, True, True]
    assert losses(ran, name, 0)[2:] == losses(ran, name, 1)[2:]
    assert all(torch.isfinite(value).all() for value in weights(ran, name).values())


@pytest.mark.parametrize(("name", "whole"), [("from-ddp", "ddp"), ("from-fsdp2", "fsdp2")])
def test_a_checkpoint_can_be_taken_up_by_workers_that_split_otherwise(ran: Path, name: str, whole: str) -> None:
    assert losses(ran, name) == pytest.approx(losses(ran, whole)[2:], rel=1e-4)
    assert_close(weights(ran, name), weights(ran, whole))


def kill_a_worker(checkpoints: Place) -> None:
    """Kill one training worker once a checkpoint is there."""
    while not any(name.endswith("model.safetensors") for name, _ in checkpoints.listing()):
        time.sleep(0.05)
    own = psutil.Process().children(recursive=True)
    [*_, last] = [process for process in own if "RayTrainWorker" in " ".join(process.cmdline())]
    last.kill()


@pytest.mark.ray
def test_a_killed_worker_changes_nothing_of_what_is_learned_from_shards_and_checkpoints_on_a_failing_s3(
    ray_session: None, s3: FaultProxy, ran: Path, tmp_path: Path
) -> None:
    there = Place.of(f"s3://tests/{uuid.uuid4().hex}")
    given = make_inputs(tmp_path)
    for name, _ in Place.of(tmp_path / "boxes").listing():
        (there / "boxes" / name).write_bytes((tmp_path / "boxes" / name).read_bytes())
    shutil.rmtree(tmp_path / "boxes")
    moved = replace(given, sources=(SourceConfig(path=there / "boxes"),))
    cfg = plan(**LONG, checkpoints=str(there / "kept"))
    killer = threading.Thread(target=kill_a_worker, args=[there / "kept"])
    killer.start()
    with (
        s3.faulty(Plan(rate=0.05, kinds=[Fault.SLOW_DOWN, Fault.CUT], limit=20)),
        open_run(tmp_path, "pretrain", "killed", {}) as run,
    ):
        pretrain(cfg, moved, tmp_path / "out", run)
        history = [row["loss"] for row in run.history(HISTORY)]
    killer.join(1)
    assert not killer.is_alive()
    assert history == losses(ran, "long")
    trained = checkpoint.load(tmp_path / "out" / "model")[0].state_dict()
    undisturbed = checkpoint.load(ran / "long" / "21")[0].state_dict()
    assert all(torch.equal(trained[name], value) for name, value in undisturbed.items())


# Slow: each brings up a cluster of its own and waits until Ray Train has understood that a node is gone.
@pytest.mark.slow
@pytest.mark.parametrize("how", ["lost", "drained"])
def test_training_outlives_a_node(tmp_path: Path, how: str) -> None:
    environment = {**os.environ, **RAY_ENVIRONMENT, "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
    command = [sys.executable, "-m", "tests.pipeline.elastic_driver", how, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=420)
    assert (tmp_path / "gone").exists()
    assert json.loads((tmp_path / "steps.json").read_text()) == list(range(1, 401))
