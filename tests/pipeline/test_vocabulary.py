"""A vocabulary from captions and shards, as a person would ask for it."""

import sys
from pathlib import Path

import pytest

from glipv2.text.tokenizer import load_tokenizer
from jobs import cli, recipes
from pipeline import schema
from pipeline.sources.store import store_source
from pipeline.vocabulary import learn_vocabulary

CAPTIONS = ["a crimson kite over the harbour", "the harbour at dawn", "a kite, a kite!"] * 2


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text("url\tcaption\n" + "".join(f"http://x/{t}\t{t}\n" for t in CAPTIONS) + "broken\n", encoding="utf-8")
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    rows: list[dict[str, object]] = [
        {"kind": schema.DETECTION, "category": ["tea_pot (china)"] * 3},
        {"kind": schema.CAPTION, "text": "a walrus beside a walrus"},
    ]
    for number, row in enumerate(rows):
        row |= {"sample_id": f"s/train/{number}", "source": "s", "split": "train", "status": schema.LABELLED}
        row |= {"schema_version": schema.SCHEMA_VERSION}
    store_source(rows, tmp_path / "shards", name="s", inputs={}, categories={1: "tea_pot (china)", 2: "ladle"})
    return tmp_path / "shards"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # not for the test session
    monkeypatch.setattr(sys, "argv", ["prog", "nano", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main(learn_vocabulary, recipes.VOCABULARIES, "", needs_ray=False)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_words_of_captions_and_shards_become_tokens(
    pairs: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "vocab.txt"
    assert run(monkeypatch, "--pairs", pairs, "--sources", shards, "--size", "400", "--out", out) == 0
    assert str(out) in capsys.readouterr().out
    tokens = out.read_text(encoding="utf-8").splitlines()
    assert {"kite", "harbour", "walrus", "pot"} <= set(tokens)
    assert "china" not in tokens  # a bracketed remark is not said
    assert [len(e.ids) for e in load_tokenizer(out, 64)(["the crimson kite", "tea pot"])] == [5, 4]
    assert [file.name for file in out.parent.iterdir()] == ["vocab.txt"]


def test_the_same_texts_in_another_order_give_the_same_file(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, *lines = pairs.read_text(encoding="utf-8").splitlines()
    turned = tmp_path / "turned.tsv"
    turned.write_text("\n".join([header, *reversed(lines)]) + "\n", encoding="utf-8")
    outs = tmp_path / "a.txt", tmp_path / "b.txt"
    for given, out in ((pairs, outs[0]), (pairs, outs[0]), (turned, outs[1])):
        assert run(monkeypatch, "--pairs", given, "--size", "300", "--out", out) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_mistakes_are_one_line(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, empty = tmp_path / "vocab.txt", tmp_path / "empty.tsv"
    empty.write_text("url\tcaption\nhttp://x\t\n", encoding="utf-8")
    (tmp_path / "other.txt").write_text("precious", encoding="utf-8")
    for arguments, said in (
        (["--out", out], "--pairs and --sources are missing"),
        (["--pairs", pairs], "--out is missing"),
        (["--pairs", "here.tsv", "--out", out], "--pairs.0 is here.tsv, a relative path"),
        (["--pairs", tmp_path / "none.tsv", "--out", out], "does not exist"),
        (["--pairs", empty, "--out", out], "no text in"),
        (["--sources", tmp_path, "--out", out], "no finished shards"),
        (["--pairs", pairs, "--size", "20", "--out", out], "size is 20 but single letters take"),
        (["--pairs", pairs, "--out", tmp_path / "other.txt"], "already holds something else"),
    ):
        assert run(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error
    assert not out.exists()
    assert (tmp_path / "other.txt").read_text(encoding="utf-8") == "precious"
