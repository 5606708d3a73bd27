"""Released weights into a model folder, as a person would ask for it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from glipv2 import checkpoint
from glipv2.config import ModelConfig, glip_t, nano
from glipv2.model.glipv2 import GLIPv2
from glipv2.released import to_released
from glipv2.text.tokenizer import make_vocabulary
from pipeline.convert import ConvertJob, convert
from pipeline.paths import NOT_GIVEN

WORDS = make_vocabulary(["red", "square"])
SIZE = replace(nano(len(WORDS)), swin_embed_dim=16, channels=32, text_dim=32, text_ffn_dim=64)


@pytest.fixture
def job(tmp_path: Path) -> ConvertJob:
    """A released-style file of random weights, its vocabulary, and where the model shall go."""
    torch.manual_seed(1)
    state = {f"module.{name}": value for name, value in to_released(GLIPv2(SIZE)).items()}
    torch.save({"model": state}, tmp_path / "released.pth")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return ConvertJob(
        weights=str(tmp_path / "released.pth"),
        vocabulary=tmp_path / "vocab.txt",
        out=tmp_path / "made" / "model",
        model=SIZE,
    )


def test_the_model_folder_holds_the_weights_that_were_given(job: ConvertJob) -> None:
    convert(job)
    loaded, tokenizer = checkpoint.load(job.out)
    given = torch.load(job.weights, weights_only=True)["model"]
    assert loaded.cfg == SIZE
    assert tokenizer.vocab_size == len(WORDS)
    assert all(torch.equal(value, given[f"module.{name}"]) for name, value in to_released(loaded).items())


@pytest.mark.parity
def test_the_reference_models_weights_convert(goldens: Path, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_bytes((goldens / "nano_vocab.txt").read_bytes())
    size = replace(  # as nano_config.json has it
        glip_t(),
        swin_embed_dim=24,
        swin_depths=(2, 2, 2, 2),
        swin_num_heads=(2, 4, 4, 8),
        channels=64,
        vocab_size=1000,
        text_dim=48,
        text_layers=3,
        text_heads=4,
        text_ffn_dim=96,
        num_blocks=2,
        fusion_dim=128,
    )
    file = goldens / "nano_state_dict.safetensors"
    convert(ConvertJob(weights=str(file), vocabulary=vocabulary, out=tmp_path / "model", model=size))
    loaded, expected = checkpoint.load(tmp_path / "model")[0], checkpoint.load_released(file, size)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_the_same_again_changes_nothing(job: ConvertJob) -> None:
    with_heads = replace(job, init_missing_heads=True, model=replace(SIZE, word_head=True))
    said = convert(with_heads)
    before = {file.name: file.read_bytes() for file in job.out.iterdir()}
    assert convert(with_heads) == said
    assert {file.name: file.read_bytes() for file in job.out.iterdir()} == before
    assert [folder.name for folder in job.out.parent.iterdir()] == ["model"]


def test_an_attempt_that_was_killed_is_repeated(job: ConvertJob) -> None:
    unfinished = job.out.with_name(".model.unfinished")
    unfinished.mkdir(parents=True)
    (unfinished / checkpoint.WEIGHTS).write_bytes(b"half")
    convert(job)
    assert checkpoint.load(job.out)[0].cfg == SIZE
    assert not unfinished.exists()


def test_another_model_is_not_overwritten(job: ConvertJob) -> None:
    job.out.mkdir(parents=True)
    (job.out / checkpoint.WEIGHTS).write_bytes(b"precious")
    with pytest.raises(ValueError, match="already holds another model; give another --out"):
        convert(job)
    assert [file.read_bytes() for file in job.out.iterdir()] == [b"precious"]


def test_a_vocabulary_of_another_size_is_refused(job: ConvertJob) -> None:
    with pytest.raises(ValueError, match=r"has \d+ tokens but the model 30522"):
        convert(replace(job, model=replace(SIZE, vocab_size=30522)))


def test_an_absent_vocabulary_is_refused(job: ConvertJob, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer at"):
        convert(replace(job, vocabulary=tmp_path / "nowhere" / "vocab.txt"))


@pytest.mark.parametrize(
    ("weights", "found"),
    [("a/b:c.pth", ("a", "b", "c.pth")), ("a/b", ("a", "b", "x.pth")), ("a/b:c/d.pth", ("a", "b", "c/d.pth"))],
)
def test_a_hub_id_names_repository_and_file(weights: str, found: tuple[str, str, str]) -> None:
    owner, repository, filename = found
    assert ConvertJob(weights=weights, hub_filename="x.pth", model=SIZE).hub_file() == (
        f"{owner}/{repository}",
        filename,
    )


@pytest.mark.parametrize("weights", ["", "weights.pth", "folder/weights.pth", "a/b/c:d", "a/b:"])
def test_what_is_neither_a_path_nor_a_hub_id_is_refused(weights: str, tmp_path: Path) -> None:
    job = ConvertJob(weights=weights, hub_filename="x.pth", out=tmp_path, model=SIZE)
    with pytest.raises(ValueError, match=r"--weights is .*; give an absolute path"):
        job.check()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "owner/none:x.pth"}, "cannot get x.pth of owner/none .* give --weights /abs/file.pth"),
        ({"vocabulary": NOT_GIVEN}, "cannot get vocab.txt of google-bert/.* give --vocabulary /abs/vocab.txt"),
    ],
)
def test_without_a_network_one_line_tells_what_to_give(
    job: ConvertJob, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    def unreachable(repository: str, filename: str) -> str:
        raise LocalEntryNotFoundError(f"no {filename} in the cache.\nPlease check your connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(ConnectionError, match=said) as caught:
        convert(replace(job, **change))
    assert "\n" not in str(caught.value)


def test_weights_and_vocabulary_come_from_the_hub(job: ConvertJob, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {("owner/some", "x.pth"): job.weights, ("google-bert/bert-base-uncased", "vocab.txt"): str(job.vocabulary)}
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *asked: here[asked])
    convert(replace(job, weights="owner/some", hub_filename="x.pth", vocabulary=NOT_GIVEN))
    assert checkpoint.load(job.out)[0].cfg == SIZE


def test_a_model_converts_from_the_command_line(job: ConvertJob) -> None:
    sizes = {f for f in ModelConfig.__dataclass_fields__ if getattr(SIZE, f) != getattr(glip_t(), f)}
    flags = []
    for field in sorted(sizes):
        value = getattr(SIZE, field)
        flags += [f"--model.{field.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    command = [sys.executable, "-m", "jobs.convert", "glip-t", "--weights", job.weights]
    ended = subprocess.run(
        [*command, "--vocabulary", str(job.vocabulary), "--out", str(job.out), *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert checkpoint.load(job.out)[0].cfg == SIZE
    assert checkpoint.weights_sha256(job.out) in ended.stdout
