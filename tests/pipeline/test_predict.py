"""Pictures in, boxes out: as a list and drawn."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glipv2.checkpoint import save
from glipv2.config import nano
from glipv2.model.glipv2 import GLIPv2
from glipv2.text.tokenizer import WordPiece, make_vocabulary
from jobs import analysis_recipes, cli
from jobs.predict import arguments
from pipeline.predict import (
    PICTURES,
    PREDICTIONS,
    Device,
    PredictJob,
    choose_device,
    list_pictures,
    names_in,
    predict,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model that finds something everywhere."""
    torch.manual_seed(0)
    vocabulary = make_vocabulary(["red", "square"])
    made = GLIPv2(replace(nano(len(vocabulary)), min_size_px=64, max_size_px=64))
    torch.nn.init.constant_(made.head.bias, 0.0)
    folder = tmp_path_factory.mktemp("model")
    save(made, WordPiece(vocabulary, max_tokens=32), folder)
    return folder


@pytest.fixture
def job(model: Path, tmp_path: Path) -> PredictJob:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (80, 60), "red").save(images / "b.jpg")
    Image.new("RGB", (40, 90), "blue").save(images / "a.png")
    (images / "notes.txt").write_text("no picture")
    return PredictJob(checkpoint=model, images=(images,), out=tmp_path / "out", min_score=0.0)


def folder_of(job: PredictJob) -> Path:
    return job.images[0]


def rows_of(job: PredictJob) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads((job.out / PREDICTIONS).read_text(encoding="utf-8"))
    return rows


def test_categories_are_written_and_drawn(job: PredictJob) -> None:
    said = predict(replace(job, categories=("square", "red")))
    rows = rows_of(job)
    assert said.startswith(f"{len(rows)} boxes in 2 pictures: ")
    assert {(row["file"], row["label"], row["phrase"]) for row in rows} == {
        (file, label, name) for file in ("a.png", "b.jpg") for label, name in enumerate(("square", "red"))
    }
    for row in rows:
        x, y, width, height = row["bbox"]  # type: ignore[misc]
        across, down = (40, 90) if row["file"] == "a.png" else (80, 60)
        assert 0 <= x < x + width <= across + 1e-3
        assert 0 <= y < y + height <= down + 1e-3
    for name in ("a.png.jpg", "b.jpg.jpg"):
        assert Image.open(job.out / PICTURES / name).format == "JPEG"


def test_a_caption_gives_phrases_with_their_spans(job: PredictJob) -> None:
    predict(replace(job, images=(folder_of(job) / "b.jpg",), text="A red square."))
    assert {(row["phrase"], tuple(row["span"])) for row in rows_of(job)} == {("red square", (2, 12))}  # type: ignore[arg-type]


def test_boxes_below_the_score_are_left_out(job: PredictJob) -> None:
    assert predict(replace(job, categories=("red",), min_score=1.0)).startswith("0 boxes in 2 pictures")
    assert rows_of(job) == []


def test_a_picture_that_cannot_be_read_is_counted_and_left_out(job: PredictJob) -> None:
    (folder_of(job) / "c.png").write_bytes((folder_of(job) / "a.png").read_bytes()[:60])
    assert " in 2 pictures, 1 could not be read: " in predict(replace(job, categories=("red",)))


def test_boxes_belong_to_the_upright_picture(job: PredictJob) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (90, 30)).save(folder_of(job) / "turned.jpg", exif=exif)
    predict(replace(job, images=(folder_of(job) / "turned.jpg",), categories=("red",)))
    drawn = Image.open(job.out / PICTURES / "turned.jpg.jpg")
    assert drawn.height > drawn.width


def test_mistakes_are_told(job: PredictJob, tmp_path: Path) -> None:
    for wrong, said in (
        (replace(job, images=(tmp_path / "nowhere",)), "nowhere does not exist; give pictures or folders"),
        (replace(job, images=(tmp_path,)), "holds no picture; files ending in"),
        (replace(job, images=(folder_of(job) / "notes.txt",)), "none of the 1 pictures can be read; give others"),
        (replace(job, checkpoint=tmp_path), "is no model folder"),
    ):
        with pytest.raises(ValueError, match=said):
            predict(replace(wrong, categories=("red",)))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "--text or --categories: neither is given; give one of the two"),
        ({"categories": ("a",), "text": "b"}, "--text or --categories: both are given; give one of the two"),
        ({"categories": ("a",), "images": (Path("here"),)}, "--images is here, a relative path"),
    ],
)
def test_what_is_asked_is_checked_before_anything_starts(job: PredictJob, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(job, **asked).check()


@pytest.mark.parametrize("number", [{"min_score": 2.0}, {"batch_size": 0}, {"max_detections": 0}])
def test_numbers_out_of_range_are_refused(job: PredictJob, number: dict[str, Any]) -> None:
    [(name, value)] = number.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; give "):
        replace(job, **number)


def test_a_missing_picture_is_told_before_anything_starts(job: PredictJob) -> None:
    with pytest.raises(ValueError, match="no picture is given; give pictures or folders of pictures before all flags"):
        replace(job, images=(), text="a").check()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat. remote control", ("cat", "remote control")),
        ("cat. remote control. ", ("cat", "remote control")),
        ("Eiffel Tower.  man with a 3.5 inch disk.", ("Eiffel Tower", "man with a 3.5 inch disk")),
        ("cat", ()),
        ("Two cats on a sofa.", ()),
        ("A cat sleeps. A dog looks at it.", ()),
        ("...", ()),
    ],
)
def test_full_stops_divide_names_but_not_sentences(text: str, names: tuple[str, ...]) -> None:
    assert names_in(text) == names


def test_names_in_a_text_are_looked_for_whole(job: PredictJob) -> None:
    predict(replace(job, text="square. big red square"))
    assert {(row["phrase"], row["label"]) for row in rows_of(job)} == {("square", 0), ("big red square", 1)}


def test_a_text_without_a_noun_is_looked_for_whole(job: PredictJob) -> None:
    predict(replace(job, text="red."))
    assert {(row["phrase"], row["span"]) for row in rows_of(job)} == {("red", None)}


def test_what_is_looked_for_and_where_is_said(job: PredictJob, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "pipeline.predict"):
        predict(replace(job, text="A red square.", device="cpu"))
    assert caplog.messages == ["the model runs on the CPU", "looking for 'red square'"]


@pytest.mark.parametrize(
    ("usable", "wanted", "chosen"), [(True, "auto", "cuda"), (False, "auto", "cpu"), (True, "cpu", "cpu")]
)
def test_the_gpu_is_taken_if_there_is_one(
    usable: bool, wanted: Device, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert choose_device(wanted) == chosen


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device is cuda, but there is no usable GPU; give --device cpu"):
        choose_device("cuda")


def test_pictures_and_folders_are_taken_together(job: PredictJob, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "more" / "c.png")
    found = list_pictures([tmp_path / "more" / "c.png", folder_of(job), folder_of(job) / "a.png"])
    assert [file.name for file in found] == ["c.png", "a.png", "b.jpg"]


def test_pictures_of_one_name_are_refused(job: PredictJob, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "more" / "a.png")
    with pytest.raises(ValueError, match="have one name, and so would their results; give them one by one"):
        list_pictures([folder_of(job), tmp_path / "more"])


def test_pictures_stand_before_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = arguments(["a.jpg", "../b", "--text", "a cat", "--bf16"])
    cfg = cli.parse(analysis_recipes.PREDICTIONS, given, "prog")
    assert isinstance(cfg, PredictJob)
    assert cfg.images == (tmp_path / "a.jpg", tmp_path / ".." / "b")
    assert (cfg.text, cfg.bf16) == ("a cat", True)


def test_help_needs_no_picture(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.parse(analysis_recipes.PREDICTIONS, arguments(["--help"]), "prog")
    assert stopped.value.code == 0
    assert "--checkpoint" in capsys.readouterr().out


def test_the_job_runs_without_ray(job: PredictJob) -> None:
    root = Path(__file__).parents[2]
    pictures = os.path.relpath(folder_of(job), root)  # as a person gives them
    flags = ["--checkpoint", str(job.checkpoint), "--out", str(job.out), "--categories", "red", "square"]
    nowhere = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}  # whoever starts Ray fails
    command = [sys.executable, "-m", "jobs.predict", pictures, *flags]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=nowhere, cwd=root)
    assert ended.returncode == 0, ended.stderr[-300:]
    assert ended.stdout.count("\n") == 1
    assert (job.out / PREDICTIONS).exists()
