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
from pipeline.predict import PICTURES, PREDICTIONS, PredictJob, predict


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
    return PredictJob(model=model, images=images, out=tmp_path / "out", min_score=0.0)


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
    predict(replace(job, images=job.images / "b.jpg", caption="A red square."))
    assert {(row["phrase"], tuple(row["span"])) for row in rows_of(job)} == {("red square", (2, 12))}  # type: ignore[arg-type]


def test_boxes_below_the_score_are_left_out(job: PredictJob) -> None:
    assert predict(replace(job, categories=("red",), min_score=1.0)).startswith("0 boxes in 2 pictures")
    assert rows_of(job) == []


def test_a_picture_that_cannot_be_read_is_counted_and_left_out(job: PredictJob) -> None:
    (job.images / "c.png").write_bytes((job.images / "a.png").read_bytes()[:60])
    assert " in 2 pictures, 1 could not be read: " in predict(replace(job, categories=("red",)))


def test_boxes_belong_to_the_upright_picture(job: PredictJob) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (90, 30)).save(job.images / "turned.jpg", exif=exif)
    predict(replace(job, images=job.images / "turned.jpg", categories=("red",)))
    drawn = Image.open(job.out / PICTURES / "turned.jpg.jpg")
    assert drawn.height > drawn.width


def test_mistakes_are_told(job: PredictJob, tmp_path: Path) -> None:
    for wrong, said in (
        (replace(job, images=tmp_path / "nowhere"), "which does not exist; give a picture or a folder"),
        (replace(job, images=tmp_path), "holds no picture; files ending in"),
        (replace(job, images=job.images / "notes.txt"), "none of the 1 pictures .* can be read; give others"),
        (replace(job, model=tmp_path), "is no model folder"),
    ):
        with pytest.raises(ValueError, match=said):
            predict(replace(wrong, categories=("red",)))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "--categories or --caption: neither is given; give one of the two"),
        ({"categories": ("a",), "caption": "b"}, "--categories or --caption: both are given; give one of the two"),
        ({"categories": ("a",), "images": Path("here")}, "--images is here, a relative path"),
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


def test_the_job_runs_without_ray(job: PredictJob) -> None:
    paths = ["--model", str(job.model), "--images", str(job.images), "--out", str(job.out)]
    command = [sys.executable, "-m", "jobs.predict", "cpu", *paths, "--categories", "red", "square"]
    nowhere = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}  # whoever starts Ray fails
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=nowhere)
    assert ended.returncode == 0, ended.stderr[-300:]
    assert ended.stdout.count("\n") == 1
    assert (job.out / PREDICTIONS).exists()
