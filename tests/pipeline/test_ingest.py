import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glipv2.config import nano
from glipv2.text.tokenizer import WordPiece, make_vocabulary
from pipeline import schema
from pipeline.ingest import IngestConfig, SourceConfig, TrainingSet, Vocabulary, make_sample
from pipeline.sources.store import store_source

TOKENIZER = WordPiece(make_vocabulary(["a", "red", "ring", "left", "of", "blue", "star", "moon"]), 64)
MODEL = replace(nano(len(TOKENIZER.vocabulary)), min_size_px=32, max_size_px=32)
NAMES = {1: "ring", 2: "star", 3: "moon"}
NO_WORDS = Vocabulary.of({}, 85, TOKENIZER, 64)
WORDS = Vocabulary.of(NAMES, 85, TOKENIZER, 64)
CAPTION = "a red ring left of a blue star"
RING, STAR = (2, 10), (21, 30)


def picture(shade: int) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (shade, 0, 0)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def detection(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "sample_id": f"boxes/train/{number}",
        "source": "boxes",
        "split": "train",
        "kind": schema.DETECTION,
        "image": picture(number),
        "boxes": [[2.0, 2.0, 20.0, 20.0]],
        "category_id": [1 + number % 3],
        "score": [1.0],
        "iscrowd": [False],
        "status": schema.LABELLED,
        "schema_version": schema.SCHEMA_VERSION,
    } | changes


def caption(**changes: Any) -> dict[str, Any]:
    changed = {
        "sample_id": "web/train/0",
        "kind": schema.CAPTION,
        "text": CAPTION,
        "phrases": [RING, STAR],
        "phrase_index": [0],
        "tokens_positive": [[RING]],
        "category_id": [-1],
        "score": [0.9],
    }
    return detection(0, **(changed | changes))


def store(folder: Path, rows: list[dict[str, Any]]) -> SourceConfig:
    store_source(rows, folder, name=folder.name, inputs={}, categories=NAMES)
    return SourceConfig(path=folder)


def shades(batch: Any) -> list[float]:
    return sorted(batch.pixels[:, 2, 0, 0].tolist())


@pytest.fixture
def boxes(tmp_path: Path) -> SourceConfig:
    return store(tmp_path / "boxes", [detection(i) for i in range(10)])


def test_workers_together_see_what_one_worker_sees(boxes: SourceConfig) -> None:
    cfg = IngestConfig(batch_size=4)
    alone = TrainingSet([boxes], cfg, MODEL, TOKENIZER)
    shared = [TrainingSet([boxes], cfg, MODEL, TOKENIZER, (rank, 2)) for rank in range(2)]
    for step in (0, 3, 7):
        together = torch.cat([part[step].pixels for part in shared])
        assert sorted(together[:, 2, 0, 0].tolist()) == shades(alone[step])


def test_a_step_is_the_same_however_often_it_is_asked_for(boxes: SourceConfig) -> None:
    data = TrainingSet([boxes], IngestConfig(batch_size=4), MODEL, TOKENIZER)
    first = data[6]
    data[0]
    again = data[6]
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.ids, again.ids)


def test_an_epoch_sees_every_sample_once_and_the_next_one_in_another_order(boxes: SourceConfig) -> None:
    data = TrainingSet([boxes], IngestConfig(batch_size=5), MODEL, TOKENIZER)
    steps = [shades(data[step]) for step in range(4)]
    assert sorted(steps[0] + steps[1]) == sorted(steps[2] + steps[3])
    assert len(set(steps[0] + steps[1])) == 10
    assert steps[0] != steps[2]


def test_copies_repeat_a_source_and_zero_leaves_it_out(boxes: SourceConfig, tmp_path: Path) -> None:
    captions = store(tmp_path / "captions", [caption()])
    cfg = IngestConfig(batch_size=1)
    tripled = TrainingSet([boxes, replace(captions, copies=3)], cfg, MODEL, TOKENIZER)
    assert (len(tripled.samples), tripled.num_different) == (13, 11)
    assert len(TrainingSet([boxes, replace(captions, copies=0)], cfg, MODEL, TOKENIZER).samples) == 10


def test_rejected_crowded_and_unboxed_rows_are_not_trained_on(tmp_path: Path) -> None:
    rows = [
        detection(0),
        detection(1, status=schema.REJECTED, reason="no_box"),
        detection(2, iscrowd=[True]),
        detection(3, boxes=[], category_id=[], score=[], iscrowd=[]),
    ]
    data = TrainingSet([store(tmp_path / "mixed", rows)], IngestConfig(batch_size=1), MODEL, TOKENIZER)
    assert [row["sample_id"] for row, _ in data.samples] == ["boxes/train/0"]


def test_words_of_a_phrase_without_a_box_are_left_out_of_the_loss(tmp_path: Path) -> None:
    source = store(tmp_path / "captions", [caption()])
    batch = TrainingSet([source], IngestConfig(batch_size=1), MODEL, TOKENIZER)[0]
    words = [TOKENIZER.vocabulary[i] for i in batch.ids[0].tolist()]
    left_out = [word for word, counted in zip(words, batch.loss_mask[0].tolist(), strict=True) if not counted]
    assert left_out == ["blue", "star"]


def test_the_references_way_teaches_an_unboxed_phrase_as_absent(tmp_path: Path) -> None:
    source = store(tmp_path / "captions", [caption()])
    cfg = IngestConfig(batch_size=1, mask_unboxed_phrases=False)
    batch = TrainingSet([source], cfg, MODEL, TOKENIZER)[0]
    assert batch.loss_mask.all()


def test_a_text_that_tells_left_from_right_is_never_mirrored() -> None:
    cfg = IngestConfig(batch_size=1, flip=1.0)
    sided = make_sample(caption(), NO_WORDS, cfg, MODEL, random.Random(0))
    neutral = make_sample(caption(text="a red ring over a blue star"), NO_WORDS, cfg, MODEL, random.Random(0))
    assert sided.boxes_xyxy.tolist() == [[2.0, 2.0, 20.0, 20.0]]
    assert neutral.boxes_xyxy.tolist() == [[12.0, 2.0, 30.0, 20.0]]


def test_the_prompt_of_a_detection_row_is_drawn_anew_each_epoch() -> None:
    cfg = IngestConfig(batch_size=1)
    texts = {make_sample(detection(0), WORDS, cfg, MODEL, random.Random(epoch)).text for epoch in range(20)}
    assert len(texts) > 3
    assert all("ring" in text for text in texts)


def test_a_source_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        TrainingSet([SourceConfig(path=tmp_path)], IngestConfig(batch_size=1), MODEL, TOKENIZER)


def test_a_batch_that_does_not_divide_among_workers_is_refused(boxes: SourceConfig) -> None:
    with pytest.raises(ValueError, match="does not divide among 2 workers"):
        TrainingSet([boxes], IngestConfig(batch_size=3), MODEL, TOKENIZER, (0, 2))
