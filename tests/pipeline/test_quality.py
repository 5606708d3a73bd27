import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import schema
from pipeline.quality import DrawnObject, Label, measure_labels, score_labels
from pipeline.selection import SelectionConfig
from pipeline.shards import write_rows

RING, HEART, PAPER = (2, 10), (15, 24), (28, 33)
CAPTION = "a red ring and a big heart on paper"
LEFT, RIGHT = (0, 0, 10, 10), (20, 0, 30, 10)


def label(box: tuple[float, ...] = LEFT, phrase: tuple[int, int] = RING, score: float = 0.9) -> Label:
    return Label(box=box, phrases=[phrase], score=score)


def drawn(box: tuple[float, ...] = LEFT, phrase: tuple[int, int] | None = RING, novel: bool = False) -> DrawnObject:
    return DrawnObject(box=box, phrase=phrase, novel=novel)


def test_label_on_its_object_is_correct() -> None:
    assert score_labels([label()], [drawn()]) == {"objects_base": 1, "labels_base": 1, "correct_base": 1}


def test_overlap_below_the_threshold_is_wrong() -> None:
    counts = score_labels([label(box=(0, 0, 10, 4.9))], [drawn()])
    assert (counts["labels_base"], counts["correct_base"]) == (1, 0)


def test_overlap_at_the_threshold_is_correct() -> None:
    assert score_labels([label(box=(0, 0, 10, 5))], [drawn()])["correct_base"] == 1


def test_second_label_of_an_object_is_wrong() -> None:
    assert score_labels([label(), label(score=0.5)], [drawn()]) == {
        "objects_base": 1,
        "labels_base": 2,
        "correct_base": 1,
    }


def test_surer_label_takes_the_object_first() -> None:
    weak, sure = label(box=(0, 0, 10, 8), score=0.4), label(box=(0, 0, 10, 9), score=0.8)
    other = drawn(box=(0, 0, 10, 7.5))
    assert score_labels([weak, sure], [drawn(), other])["correct_base"] == 2


def test_phrase_of_another_object_is_wrong() -> None:
    counts = score_labels([label(phrase=HEART)], [drawn(), drawn(box=RIGHT, phrase=HEART, novel=True)])
    assert counts == {"objects_base": 1, "objects_novel": 1, "labels_novel": 1}


def test_phrase_without_determiner_shares_characters_with_the_drawn_one() -> None:
    assert score_labels([label(phrase=(2, 10))], [drawn(phrase=(0, 10))])["correct_base"] == 1


def test_phrases_that_only_touch_share_nothing() -> None:
    assert score_labels([label(phrase=(10, 14))], [drawn(phrase=(2, 10))])["labels_other"] == 1


def test_one_phrase_may_have_many_objects() -> None:
    both = [drawn(), drawn(box=RIGHT)]
    assert score_labels([label(), label(box=RIGHT)], both)["correct_base"] == 2


def test_unmentioned_object_is_neither_missed_nor_found() -> None:
    assert score_labels([label()], [drawn(phrase=None)]) == {"labels_other": 1}


def row(key: int, **columns: Any) -> dict[str, object]:
    head = {"sample_id": f"web/train/{key}", "source": "web", "split": "train", "kind": schema.CAPTION, "key": key}
    body = {"image_uri": f"http://x/{key}.jpg", "text": CAPTION, "phrases": [RING, HEART, PAPER]}
    return {**head, **body, "status": schema.LABELLED, "schema_version": schema.SCHEMA_VERSION, **columns}


def labelled(key: int, *found: tuple[tuple[float, ...], int, float], scale: float = 1) -> dict[str, object]:
    return row(
        key,
        width=int(40 * scale),
        height=int(10 * scale),
        boxes=[[value * scale for value in box] for box, _, _ in found],
        phrase_index=[phrase for _, phrase, _ in found],
        tokens_positive=[[[RING, HEART, PAPER][phrase]] for _, phrase, _ in found],
        score=[score for _, _, score in found],
    )


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    objects = [
        {"box": LEFT, "noun": "ring", "novel": False, "phrase": [0, 10]},
        {"box": RIGHT, "noun": "heart", "novel": True, "phrase": [15, 24]},
        {"box": RIGHT, "noun": "moon", "novel": False, "phrase": None},
    ]
    lines = [
        {"file": "", "url": f"http://x/{key}.jpg", "caption": CAPTION, "width": 40, "height": 10, "objects": objects}
        for key in range(4)
    ]
    path = tmp_path / "truth.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def measure(
    truth: Path, rows: list[dict[str, object]], selection: SelectionConfig | None = None
) -> dict[str, float | int]:
    folder = truth.parent / "grounding"
    folder.mkdir()
    write_rows(rows, folder, schema.GROUNDING)
    return measure_labels(folder, truth, selection=selection)


def test_base_and_novel_nouns_are_measured_apart(truth: Path) -> None:
    rows = [labelled(0, (LEFT, 0, 0.9), (LEFT, 1, 0.8), (LEFT, 2, 0.7)), labelled(1, (RIGHT, 1, 0.9))]
    assert measure(truth, rows) == {
        "rows": 2,
        "rows_without_truth": 0,
        "labels_base": 1,
        "labels_novel": 2,
        "labels_other": 1,
        "precision_base": 1.0,
        "recall_base": 0.5,
        "precision_novel": 0.5,
        "recall_novel": 0.5,
        "precision": 0.5,
        "recall": 0.5,
    }


def test_stored_picture_may_have_another_size(truth: Path) -> None:
    assert measure(truth, [labelled(0, (LEFT, 0, 0.9), scale=2.5)])["precision_base"] == 1.0


def test_only_selected_labels_count(truth: Path) -> None:
    rule = SelectionConfig(min_score=0.5, exclusive_iou=1, boxes_per_phrase=1)
    found = measure(truth, [labelled(0, (LEFT, 0, 0.9), (RIGHT, 0, 0.8), (RIGHT, 1, 0.4))], rule)
    assert (found["labels_base"], found["labels_novel"], found["precision"]) == (1, 0, 1.0)


def test_parsed_row_without_boxes_misses_its_objects(truth: Path) -> None:
    rejected = row(1, status=schema.REJECTED, reason="no_box")
    assert measure(truth, [labelled(0, (LEFT, 0, 0.9)), rejected])["recall_base"] == 0.5


def test_row_that_never_had_a_picture_counts_nowhere(truth: Path) -> None:
    dead = row(1, status=schema.REJECTED, reason="failed_to_download:http_404", phrases=None)
    assert measure(truth, [labelled(0, (LEFT, 0, 0.9)), dead])["rows"] == 1


def test_row_with_another_caption_is_counted_apart(truth: Path) -> None:
    found = measure(truth, [labelled(0, (LEFT, 0, 0.9)) | {"text": "something else"}])
    assert (found["rows"], found["rows_without_truth"], found["labels_base"]) == (0, 1, 0)


def test_directory_without_shards_is_refused(truth: Path) -> None:
    with pytest.raises(ValueError, match="holds no parquet file"):
        measure_labels(truth.parent, truth)
