from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]  # made at run time

from jobs.recipes import captions_gpu, nano_training
from pipeline import engine, placement, pretrain
from pipeline.engine import Step
from pipeline.ledger import Ledger
from pipeline.pretrain import TrainingInputs
from pipeline.storage import Place
from tests.pipeline.trainings import make_inputs, model


@pytest.mark.ray
def test_a_resource_that_no_machine_has_or_will_have_is_refused_in_a_line(ray_session: None) -> None:
    with pytest.raises(ValueError, match=r"no machine with the resource 'label' \(there is CPU\), and no autoscaler"):
        placement.require("label")
    placement.require("")
    placement.require("CPU")
    with pytest.raises(ValueError, match=r"no machine with the resource 'GPU' .* 0\.5 GPUs are asked for; ask for 0"):
        placement.require("", 0.5)


def status(*, wanted: bool, version: int, seen: int, infeasible: bool = False) -> GetClusterStatusReply:
    """Make an answer of a cluster with an autoscaler, to whom a task asking for ``label`` came at ``version``."""
    reply = GetClusterStatusReply()
    reply.autoscaling_state.autoscaler_state_version = 1
    reply.autoscaling_state.last_seen_cluster_resource_state_version = seen
    reply.cluster_resource_state.cluster_resource_state_version = version
    if wanted:
        asked = reply.cluster_resource_state.pending_resource_requests.add(count=1)
        asked.request.resources_bundle["label"] = 1
    if infeasible:
        reply.autoscaling_state.infeasible_resource_requests.add().resources_bundle["label"] = 1
    return reply


@pytest.mark.parametrize("infeasible", [False, True])
def test_the_autoscaler_is_believed_only_once_it_has_seen_what_is_asked(
    monkeypatch: pytest.MonkeyPatch, infeasible: bool
) -> None:
    answers = [
        status(wanted=False, version=10, seen=9),  # the task has not been counted yet
        status(wanted=True, version=12, seen=11),  # the autoscaler last looked before it was
        status(wanted=True, version=14, seen=13, infeasible=infeasible),
    ]
    monkeypatch.setattr(placement, "_status", lambda: answers.pop(0))
    monkeypatch.setattr(ray, "cluster_resources", dict)
    assert placement._can_be_added("label") is not infeasible
    assert not answers


def test_a_silent_autoscaler_is_waited_for_no_longer_than_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_status", lambda: status(wanted=True, version=5, seen=0))
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(placement, "ANSWER_S", 0.3)
    assert placement._can_be_added("label")


class _Recording:
    """In place of a data set: remembers what a step asks for."""

    def map_batches(self, *_: object, **asked: Any) -> dict[str, Any]:
        return asked


@pytest.mark.parametrize(("resource", "asked"), [("", None), ("label", {"label": 1})])
def test_every_process_of_a_step_asks_for_its_machines(resource: str, asked: dict[str, float] | None) -> None:
    step = Step(make=MagicMock(), node_resource=resource)
    options: Any = engine._add(_Recording(), step, 1, Ledger(Place.of("/tmp/none")))  # type: ignore[arg-type]
    assert options["resources"] == asked


@pytest.mark.parametrize(
    ("resource", "gpu", "asked"),
    [("", False, {"CPU": 1}), ("", True, {"GPU": 1}), ("train", True, {"GPU": 1, "train": 1})],
)
def test_every_training_worker_asks_for_its_machines(
    resource: str, gpu: bool, asked: dict[str, float], tmp_path: Path
) -> None:
    cfg = replace(nano_training(), node_resource=resource, use_gpu=gpu)
    inputs = TrainingInputs(name="student", sources=(), vocabulary=tmp_path)
    trainer: Any = pretrain._trainer(cfg, inputs, tmp_path, {"run": None})
    assert trainer.scaling_config._resources_per_worker_not_none == asked


def test_where_it_runs_is_left_out_of_what_a_run_is() -> None:
    cfg = captions_gpu()
    elsewhere = replace(
        cfg, label=replace(cfg.label, node_resource=""), download=replace(cfg.download, node_resource="")
    )
    assert asdict(cfg) != asdict(elsewhere)
    assert placement.unplaced(asdict(cfg)) == placement.unplaced(asdict(elsewhere))
    assert placement.unplaced(asdict(cfg)) != placement.unplaced(asdict(replace(cfg, mix_rows=1)))


@pytest.mark.ray
def test_a_training_may_go_on_on_other_machines(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "_trainer", interrupted)
    monkeypatch.setattr(placement, "require", lambda *_: None)
    inputs = make_inputs(tmp_path)
    cfg = replace(nano_training(), model=model(), node_resource="train")
    for again in (cfg, replace(cfg, node_resource="")):
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(again, inputs, tmp_path / "out", MagicMock())
    with pytest.raises(ValueError, match="another configuration"):
        pretrain.pretrain(replace(cfg, seed=1), inputs, tmp_path / "out", MagicMock())


@pytest.mark.ray
def test_a_training_without_its_machines_does_not_start(ray_session: None, tmp_path: Path) -> None:
    cfg = replace(nano_training(), model=model(), node_resource="train")
    with pytest.raises(ValueError, match="no machine with the resource 'train'"):
        pretrain.pretrain(cfg, make_inputs(tmp_path), tmp_path / "out", MagicMock())
    assert not (tmp_path / "out").exists()
