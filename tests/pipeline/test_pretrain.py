"""Pre-training with every loss on two workers, and what of its configuration is refused."""

import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from ray.train import Checkpoint

import pipeline.trainer
from glipv2 import checkpoint
from glipv2.config import ModelConfig, nano
from glipv2.losses.criterion import LOSSES, LossConfig
from glipv2.model.glipv2 import GLIPv2
from glipv2.optim import OptimConfig
from glipv2.text.tokenizer import load_tokenizer
from pipeline.failure import RunError
from pipeline.ingest import IngestConfig
from pipeline.pretrain import PretrainConfig, TrainingInputs, TrainingRecord, Validation, _best, _trainer, pretrain
from pipeline.tracking import Run, open_run
from pipeline.trainer import HISTORY, _peak_flops, train_loop
from tests.pipeline.trainings import make_inputs, model

EVERYTHING = LossConfig(inter=1.0, mlm=1.0)


def config(losses: LossConfig, mask_words: float, size: ModelConfig) -> PretrainConfig:
    return PretrainConfig(
        model=size,
        ingest=IngestConfig(batch_size=4, mask_words=mask_words),
        optim=OptimConfig(warmup_steps=0),
        losses=losses,
        num_steps=2,
        log_every=1,
    )


@pytest.fixture
def inputs(tmp_path: Path) -> TrainingInputs:
    return make_inputs(tmp_path)


def prefer_the_first(folder: Path) -> dict[str, float]:
    """Stands in for a benchmark."""
    step = torch.load(folder / "state.pt", weights_only=True)["step"]
    return {"val_ap": 50.0 - step}


@pytest.fixture(scope="module")
def trained(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingRecord, Run]:
    """Train with every loss on two workers, and measure each of the two checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    measured = replace(make_inputs(folder), validation=Validation(key="first", measure=prefer_the_first))
    cfg = replace(config(EVERYTHING, 0.9, model()), checkpoint_every=1)
    with open_run(folder, "pretrain", "all", {}) as run:
        return folder / "out", pretrain(cfg, measured, folder / "out", run), run


@pytest.mark.ray
def test_every_loss_that_is_on_is_trained_logged_and_kept(trained: tuple[Path, TrainingRecord, Run]) -> None:
    _, record, run = trained
    assert record.final.keys() == {"loss", *LOSSES}
    assert all(math.isfinite(value) and value > 0 for value in record.final.values())
    assert [set(row) for row in run.history(HISTORY)] == [{"step", *HISTORY} - {"mfu"}] * 2


@pytest.mark.ray
def test_the_checkpoint_that_measures_best_becomes_the_model(trained: tuple[Path, TrainingRecord, Run]) -> None:
    out, record, run = trained
    assert [row["val_ap"] for row in run.history(("val_ap",))] == [49, 48]
    kept = {
        int(torch.load(path.parent / "state.pt", weights_only=True)["step"]): path.read_bytes()
        for path in (out / "train").glob("checkpoint_*/model.safetensors")
    }
    assert (record.model / checkpoint.WEIGHTS).read_bytes() == kept[1] != kept[2]


@pytest.mark.ray
def test_the_record_tells_which_part_of_the_time_was_waited_for_data(trained: tuple[Path, TrainingRecord, Run]) -> None:
    _, record, run = trained
    waits = [row["data_wait"] for row in run.history(("data_wait",))]
    assert min(waits) <= record.data_wait <= max(waits) < 1


def cannot_measure(folder: Path) -> dict[str, float]:
    raise ValueError("no picture\ncan be opened")


@pytest.mark.ray
def test_where_no_validation_succeeds_the_last_checkpoint_becomes_the_model(
    ray_session: None, inputs: TrainingInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured = replace(inputs, validation=Validation(key="none", measure=cannot_measure))
    cfg = replace(config(LossConfig(), 0.0, model()), checkpoint_every=1, num_workers=1)
    with open_run(tmp_path, "pretrain", "unmeasured", {}) as run:
        record = pretrain(cfg, measured, tmp_path / "out", run)
    [last] = [
        path.parent
        for path in (tmp_path / "out" / "train").glob("checkpoint_*/state.pt")
        if torch.load(path, weights_only=True)["step"] == 2
    ]
    assert (record.model / checkpoint.WEIGHTS).read_bytes() == (last / checkpoint.WEIGHTS).read_bytes()
    [warning] = [line.getMessage() for line in caplog.records if "becomes the model" in line.getMessage()]
    assert "2 validations failed, the first at step 1: ValueError: can be opened" in warning


def test_a_checkpoint_without_a_number_is_not_the_best(caplog: pytest.LogCaptureFixture) -> None:
    kept = [Checkpoint(f"/{name}") for name in "abcd"]
    found: list[dict[str, float]] = [{}, {"val_ap": -1.0}, {"val_ap": math.nan}, {"val_ap": -2.0}]
    result = SimpleNamespace(best_checkpoints=list(zip(kept, found, strict=True)), checkpoint=kept[3])
    assert _best(result, "model", []) == kept[1]
    assert not caplog.records
    assert _best(result, "model", ["step 1: OSError: full"]) == kept[1]
    assert "1 validations failed, the first at step 1: OSError: full" in caplog.text


def fail(loop: dict[str, Any]) -> None:
    """Stands in for what workers do."""
    raise LookupError("first line\nno such row")


@pytest.mark.ray
def test_a_training_that_fails_is_one_line(
    ray_session: None, inputs: TrainingInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.pretrain.train_loop", fail)
    cfg = replace(config(LossConfig(), 0.0, model()), max_failures=0)
    with (
        open_run(tmp_path, "pretrain", "fails", {}) as run,
        pytest.raises(RunError, match="LookupError: no such row; the last checkpoint is kept") as caught,
    ):
        pretrain(cfg, inputs, tmp_path / "out", run)
    assert "\n" not in str(caught.value)


def count_and_train(loop: dict[str, Any]) -> str:
    with (loop["inputs"].vocabulary.parent / "tries").open("a") as stream:
        stream.write("1")
    return train_loop(loop)


@pytest.mark.ray
def test_a_training_that_does_not_converge_is_tried_once_and_can_be_gone_on_with(
    ray_session: None, inputs: TrainingInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.pretrain.train_loop", count_and_train)
    optim = OptimConfig(warmup_steps=0, lr=1e30)
    cfg = replace(config(LossConfig(), 0.0, model()), optim=optim, checkpoint_every=1, max_skipped_steps=0)
    with (
        open_run(tmp_path, "pretrain", "diverges", {}) as run,
        pytest.raises(RunError, match="1 of 2 steps had no finite loss or gradient"),
    ):
        pretrain(cfg, inputs, tmp_path / "out", run)
    assert (tmp_path / "tries").read_text() == "11"  # one for each worker
    with open_run(tmp_path, "pretrain", "diverges", {}) as run:
        assert pretrain(replace(cfg, max_skipped_steps=1), inputs, tmp_path / "out", run).num_steps == 2
        assert [row["step"] for row in run.history(("skipped_steps",))] == [2]  # from the checkpoint of the first


def test_a_loss_without_its_head_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="no contrast head"):
        config(LossConfig(inter=1.0), 0.0, nano())


def test_predicting_words_of_which_none_is_hidden_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ingest\.mask_words"):
        config(EVERYTHING, 0.0, model())


def test_short_sides_beyond_the_longest_side_are_refused() -> None:
    with pytest.raises(ValueError, match="max_size_px 32; give short sides up to that"):
        replace(config(LossConfig(), 0.0, model()), ingest=IngestConfig(batch_size=4, short_sides_px=(16, 48)))


def test_weights_of_another_size_are_refused_before_anything_starts(inputs: TrainingInputs, tmp_path: Path) -> None:
    size, tokenizer = model(), load_tokenizer(inputs.vocabulary, 32)
    checkpoint.save(
        GLIPv2(replace(size, vocab_size=tokenizer.vocab_size, num_blocks=2)), tokenizer, tmp_path / "teacher"
    )
    started = replace(inputs, init=tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"num_blocks 2 \(here 1\)") as caught:
        pretrain(config(LossConfig(), 0.0, size), started, tmp_path / "out", MagicMock())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()  # nothing stands in the way of the right command


def test_what_is_killed_while_it_writes_the_list_of_checkpoints_leaves_the_old_list(
    inputs: TrainingInputs, tmp_path: Path
) -> None:
    files = _trainer(config(LossConfig(), 0.0, model()), inputs, tmp_path / "out", {}).run_config.storage_filesystem
    listed = tmp_path / "list.json"
    listed.write_text("old")
    unfinished = files.open_output_stream(str(listed))
    unfinished.write(b"ne")
    assert listed.read_text() == "old"
    unfinished.write(b"w")
    unfinished.close()
    assert listed.read_text() == "new"


class Workplace:
    """What Ray Train is to one of two workers, in this process; every checkpoint is kept under its step."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.rank, self.start = folder, 0, 0
        self.leaving: object = None
        context = SimpleNamespace(get_world_rank=lambda: self.rank, get_world_size=lambda: 2)
        monkeypatch.setattr("ray.train.get_context", lambda: context)
        monkeypatch.setattr("ray.train.get_checkpoint", self._last)
        monkeypatch.setattr("ray.train.report", self._report)
        monkeypatch.setattr("ray.train.get_preemption_info", lambda: self.leaving)
        monkeypatch.setattr(pipeline.trainer, "get_device", lambda: torch.device("cpu"))
        monkeypatch.setattr(pipeline.trainer.Trainee, "_parallel", lambda trainee: trainee.model)

    def _last(self) -> Checkpoint | None:
        return Checkpoint.from_directory(self.folder / str(self.start)) if self.start else None

    def _report(self, metrics: dict[str, Any], checkpoint: Checkpoint | None, **_: object) -> None:
        if checkpoint is not None:
            shutil.copytree(checkpoint.path, self.folder / str(metrics["step"]), dirs_exist_ok=True)

    def state(self, step: int) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(self.folder / str(step) / "state.pt", weights_only=True)
        return found

    def train(self, inputs: TrainingInputs, rank: int = 0, start: int = 0, **changes: Any) -> MagicMock:
        size = replace(model(), text_dropout=0.3)
        cfg = replace(config(LossConfig(), 0.0, size), num_steps=4, checkpoint_every=2, **changes)
        self.rank, self.start = rank, start
        run = MagicMock(**{"settle.return_value": 0})
        loop = {"cfg": cfg, "inputs": inputs, "run": run, "board": MagicMock(), "validates": False}
        self.reason = train_loop(loop)
        return run


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    return Workplace(tmp_path / "kept", monkeypatch)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "with a running mean": {"optim": OptimConfig(warmup_steps=0, ema_decay=0.5)},
    "in the middle of an epoch": {"ingest": IngestConfig(batch_size=3)},
    "in parts": {"ingest": IngestConfig(batch_size=4, accumulate=2)},
    "recomputing": {"recompute": True},
    "in bfloat16": {"bf16": True},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_resumed_training_with_dropout_ends_as_the_unbroken_one(
    workplace: Workplace, inputs: TrainingInputs, changes: dict[str, Any]
) -> None:
    last = workplace.folder / "4" / checkpoint.WEIGHTS
    workplace.train(inputs, **changes)
    unbroken = last.read_bytes()
    last.unlink()
    workplace.train(inputs, start=2, **changes)
    assert last.read_bytes() == unbroken


def test_the_model_kept_is_the_running_mean_where_there_is_one(workplace: Workplace, inputs: TrainingInputs) -> None:
    workplace.train(inputs, optim=OptimConfig(warmup_steps=0, ema_decay=0.9))
    kept = checkpoint.load(workplace.folder / "4")[0].state_dict()
    raw = torch.load(workplace.folder / "4" / "state.pt", weights_only=True)["weights"]
    assert kept.keys() == raw.keys()
    assert not torch.equal(kept["head.bias"], raw["head.bias"])


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_step_without_a_finite_loss_or_gradient_is_skipped_and_counted(
    workplace: Workplace, inputs: TrainingInputs, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    calls = []

    def backward(model: Any, *_: Any, **__: Any) -> dict[str, float]:
        calls.append({name: p.detach().clone() for name, p in model.named_parameters()})
        second = len(calls) == 2
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, math.nan if second and bad == "gradient" else 1.0)
        return {"loss": math.nan if second and bad == "loss" else 1.0}

    monkeypatch.setattr(pipeline.trainer, "backward", backward)
    run = workplace.train(inputs)
    accounts = [call.args[0] for call in run.metrics.call_args_list]
    assert [account["skipped_steps"] for account in accounts] == [0, 1, 1, 1]
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in itertools.pairwise(calls)]
    assert same == [False, True, False]


def test_before_a_machine_is_taken_away_one_checkpoint_is_written(workplace: Workplace, inputs: TrainingInputs) -> None:
    workplace.leaving = object()
    workplace.train(inputs)
    assert sorted(path.name for path in workplace.folder.iterdir()) == ["1", "2", "4"]


def test_too_many_skipped_steps_end_the_training(
    workplace: Workplace, inputs: TrainingInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.trainer, "backward", lambda *_, **__: {"loss": math.nan})
    workplace.train(inputs, max_skipped_steps=2)
    assert workplace.reason.startswith("3 of 3 steps")
    assert [path.name for path in workplace.folder.iterdir()] == ["2"]


def test_every_worker_and_every_step_drops_something_else(
    workplace: Workplace, inputs: TrainingInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []

    def draw(*_: object, **__: object) -> dict[str, float]:
        drawn.append(torch.rand(()).item())
        return {"loss": drawn[-1]}

    monkeypatch.setattr(pipeline.trainer, "backward", draw)
    for rank in (0, 1):
        workplace.train(inputs, rank)
    assert len(set(drawn)) == len(drawn) == 8
    workplace.train(inputs, rank=0, start=2)
    assert drawn[8:] == drawn[2:4]


def test_seconds_waited_for_data_are_added_up_over_resumptions(workplace: Workplace, inputs: TrainingInputs) -> None:
    workplace.train(inputs)
    half = workplace.state(2)
    assert 0 < half["waited"] < half["seconds"]
    torch.save({**half, "waited": 1000.0}, workplace.folder / "2" / "state.pt")
    workplace.train(inputs, start=2)
    assert 1000 < workplace.state(4)["waited"] < 1000 + workplace.state(4)["seconds"]
    del half["waited"]  # of an older version
    torch.save(half, workplace.folder / "2" / "state.pt")
    workplace.train(inputs, start=2)
    assert 0 < workplace.state(4)["waited"] < workplace.state(4)["seconds"]


def test_a_device_is_known_by_a_whole_word_of_its_name() -> None:
    assert _peak_flops("NVIDIA L4") == 121e12
    assert _peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert _peak_flops("NVIDIA L40") is None


@pytest.mark.parametrize("bf16", [False, True])
def test_use_of_the_device_is_told_in_bfloat16_only(
    workplace: Workplace, inputs: TrainingInputs, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    monkeypatch.setattr(pipeline.trainer, "_device_name", lambda _: "NVIDIA L4")
    run = workplace.train(inputs, bf16=bf16)
    assert ["mfu" in call.args[0] for call in run.metrics.call_args_list] == [bf16] * 4
