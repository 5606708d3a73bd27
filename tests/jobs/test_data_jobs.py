import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs import cli, lint_data, recipes
from pipeline.import_data import ImportJob, import_data
from pipeline.sources.formats import FORMATS
from pipeline.sources.voc import VocSource
from tests.pipeline.data_samples import SAMPLES, coco, coco_content, save

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a job as its file does, and give exit code, standard output and standard error."""
    monkeypatch.setattr("signal.signal", lambda *_: None)  # not for the test session

    def run(job: Callable[[Any], object], table: dict[str, Any], arguments: Sequence[object]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prog", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main(job, table, "", needs_ray=False)
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return run


def flags(data: Any) -> list[object]:
    """Say on a command line what a source says."""
    given = {name: value for name, value in vars(data).items() if isinstance(value, Path)}
    return [part for name, value in given.items() for part in (f"--data.{name.replace('_', '-')}", value)]


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_imported_and_looked_at_by_the_same_flags(tmp_path: Path, command: Command, name: str) -> None:
    data = flags(SAMPLES[name](tmp_path))
    code, out, err = command(import_data, recipes.IMPORTS, [name, *data, "--out", tmp_path / "out"])
    assert (code, out.splitlines()[-1]) == (0, "rejected: none"), err
    code, out, err = command(lint_data.lint, recipes.LINTS, [name, *data])
    assert (code, "images 2" in out or "captions 2" in out) == (0, True), err


def test_flags_are_the_fields_of_the_format() -> None:
    arguments = ["voc", "--data.annotations", "/a", "--data.images", "/b", "--data.split", "val", "--data.one-based"]
    job = cli.parse(recipes.IMPORTS, [*arguments, "--data.subset", "/c.txt", "--out", "/o"], "prog")
    assert isinstance(job, ImportJob)
    assert job.format == "voc"
    assert job.data == VocSource(
        annotations=Path("/a"), images=Path("/b"), source="voc", split="val", one_based=True, subset=Path("/c.txt")
    )


def test_a_finding_that_is_an_error_ends_with_1_after_the_report(tmp_path: Path, command: Command) -> None:
    data = coco(tmp_path)
    (data.images / "1.jpg").unlink()
    where = tmp_path / "report.json"
    code, out, err = command(lint_data.lint, recipes.LINTS, ["coco", *flags(data), "--json", where])
    assert code == 1
    assert "image_missing" in out
    assert "1 of the findings are errors" in err.splitlines()[-1]
    assert json.loads(where.read_text())["errors"] == 1


def test_a_finding_that_is_no_error_ends_with_0(tmp_path: Path, command: Command) -> None:
    data, content = coco(tmp_path), coco_content()
    content["annotations"][0]["id"] = 0
    save(data.annotations, content)
    code, out, _ = command(lint_data.lint, recipes.LINTS, ["coco", *flags(data)])
    assert (code, "annotation_id_zero" in out) == (0, True)


def test_finished_shards_are_looked_at(tmp_path: Path, command: Command) -> None:
    data = SAMPLES["shards"](tmp_path)
    assert command(lint_data.lint, recipes.LINTS, ["shards", *flags(data)])[0] == 0
    (data.shards / "00000.parquet").unlink()
    code, out, _ = command(lint_data.lint, recipes.LINTS, ["shards", *flags(data)])
    assert (code, "shard_missing" in out) == (1, True)


@pytest.mark.parametrize("job", [import_data, lint_data.lint])
def test_a_path_that_leads_nowhere_is_misuse(tmp_path: Path, command: Command, job: Callable[[Any], object]) -> None:
    table = recipes.IMPORTS if job is import_data else recipes.LINTS
    arguments = ["coco", "--data.annotations", tmp_path / "no.json", "--data.images", tmp_path]
    code, _, err = command(job, table, [*arguments, *(["--out", "/o"] if job is import_data else [])])
    assert (code, err.count("\n")) == (2, 1)
    assert "--data.annotations" in err
    assert "does not exist" in err


def test_a_file_of_another_format_is_misuse(tmp_path: Path, command: Command) -> None:
    data = coco(tmp_path)
    save(data.annotations, [1, 2])
    code, _, err = command(import_data, recipes.IMPORTS, ["coco", *flags(data), "--out", tmp_path / "out"])
    assert (code, err.count("\n")) == (2, 1)
    assert "annotations.json has no list 'images'" in err
