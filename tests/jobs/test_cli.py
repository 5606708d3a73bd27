import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from glipv2 import checkpoint
from glipv2.config import ModelConfig
from glipv2.losses.criterion import LossConfig
from glipv2.model.glipv2 import GLIPv2
from glipv2.text.tokenizer import WordPiece, make_vocabulary
from jobs import cli, recipes
from pipeline.flow import DemoConfig, PretrainJob

TABLES = [
    name
    for name, value in vars(recipes).items()
    if name.isupper() and isinstance(value, dict) and all(map(callable, value.values()))
]
ALL = {f"{table}:{name}": recipe for table in TABLES for name, recipe in getattr(recipes, table).items()}


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_builds_and_explains_itself(name: str) -> None:
    assert ALL[name]() == ALL[name]()
    assert "python -m jobs." in (ALL[name].__doc__ or "")


def test_all_four_losses_of_the_paper_are_trained() -> None:
    for job in (recipes.nano_all_pretrain(), recipes.t_pretrain()):
        losses = job.pretrain.losses
        assert losses.intra == losses.loc == losses.inter == losses.mlm == 1
        assert job.pretrain.ingest.mask_words == 0.15


def write_hollow_weights(path: Path, model: ModelConfig) -> None:
    """Write a file of weights that takes no room on the disk: names and shapes, and a hole for the numbers."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in GLIPv2(model).state_dict().items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def test_a_converted_glip_t_serves_glipv2_t_as_a_start(tmp_path: Path) -> None:
    words = WordPiece(make_vocabulary([str(number) for number in range(40_000)])[:30522], 256)
    converted = recipes.convert_glip_t().model
    (tmp_path / checkpoint.CONFIG).write_text(json.dumps(asdict(converted)), encoding="utf-8")
    write_hollow_weights(tmp_path / checkpoint.WEIGHTS, converted)
    words.save(tmp_path)
    checkpoint.check_start(tmp_path, recipes.t_pretrain().pretrain.model, words)


def test_a_flag_changes_one_value_of_a_recipe() -> None:
    changed = cli.parse(recipes.DEMOS, ["smoke", "--out", "/x", "--teacher.optim.lr", "0.5"], "prog")
    assert isinstance(changed, DemoConfig)
    assert changed.teacher.optim.lr == 0.5
    assert changed.out == Path("/x")


def test_a_loss_is_left_out_by_a_flag() -> None:
    changed = cli.parse(recipes.PRETRAININGS, ["nano-all", "--pretrain.losses.inter", "0"], "prog")
    assert isinstance(changed, PretrainJob)
    assert changed.pretrain.losses == LossConfig(mlm=1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no recipe given; allowed: demo, smoke"),
        (["smok"], "unknown recipe 'smok'; allowed: demo, smoke"),
        (["smoke", "--teacher.optim.lrr", "3"], "--teacher.optim.lr "),
        (["smoke", "--teacher.num-steps", "many"], "--teacher.num-steps"),
        (["smoke", "--teacher.num-steps", "0"], "num_steps is 0; give at least 1"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.parse(recipes.DEMOS, arguments, "prog")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["jobs.demo", "smoke"], "--out is missing"),
        (["jobs.demo", "smoke", "--out", "here"], "--out is here, a relative path"),
        (["jobs.pseudo_label", "photos", "--pairs", "/a", "--out", "/b"], "--teacher is missing"),
        (["jobs.sweep", "few-shot", "--checkpoint", "/a", "--out", "/b"], "--data is missing"),
        (["jobs.vocabulary", "nano", "--out", "/b"], "--pairs and --sources are missing"),
    ],
)
def test_a_missing_or_relative_path_is_refused_before_anything_starts(arguments: list[str], said: str) -> None:
    ended = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert said in ended.stderr


def test_a_job_that_needs_no_ray_does_not_start_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.session.ray_session", _refuse)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # not for the test session
    monkeypatch.setattr(sys, "argv", ["prog", "glip-t", "--weights", "/w.pth", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        cli.main(lambda config: "done", recipes.CONVERSIONS, "", needs_ray=False)
    assert stopped.value.code == 0


def test_check_only_reads_the_command_line_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.session.ray_session", _refuse)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # not for the test session
    for out, code in ((str(tmp_path), 0), ("here", 2)):
        monkeypatch.setattr(sys, "argv", ["prog", "smoke", "--out", out, cli.CHECK_ONLY])
        with pytest.raises(SystemExit) as stopped:
            cli.main(_refuse, recipes.DEMOS, "")
        assert stopped.value.code == code
    assert "--out is here, a relative path" in capsys.readouterr().err


def _refuse(*, verbose: bool) -> None:
    raise AssertionError("Ray was started")
