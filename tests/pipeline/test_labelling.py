import hashlib
import io
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glipv2 import checkpoint
from glipv2.text.phrases import PhraseConfig
from pipeline import schema
from pipeline.labelling import LabelConfig, Labeller
from pipeline.teachers import Found

CONFIG = LabelConfig(source="web", batch_size=4)
CAPTIONS = ["a red ring left of a blue star", "a big green heart", "two yellow moons and a pink cross above a ring"]
SIZES = [(128, 128), (128, 60), (70, 128), (90, 90)]

Rows = list[dict[str, Any]]


def picture(seed: int, size: tuple[int, int]) -> bytes:
    shades = random.Random(seed)
    canvas = Image.new("RGB", size, tuple(shades.randrange(256) for _ in range(3)))
    for _ in range(3):
        colour = tuple(shades.randrange(256) for _ in range(3))
        canvas.paste(colour, tuple(shades.randrange(40) + 30 * far for far in (0, 0, 1, 1)))
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()


def image_row(key: int, **changes: Any) -> dict[str, Any]:
    size = SIZES[key % len(SIZES)]
    data = picture(key, size)
    return {
        "key": key,
        "url": f"http://example.org/{key}.jpg",
        "caption": CAPTIONS[key % len(CAPTIONS)],
        "stored": None,
        "status": schema.SUCCESS,
        "image": {"bytes": data, "path": None},
        "width": size[0],
        "height": size[1],
        "sha256": hashlib.sha256(data).hexdigest(),
        "source_sha256": "0" * 64,
        "phash": 7 * key,
    } | changes


def label(labeller: Labeller, rows: Rows) -> Rows:
    table: Rows = labeller(schema.to_table(rows, schema.IMAGES)).to_pylist()
    return table


def boxes(rows: Rows) -> dict[int, tuple[list[list[float]], list[float], list[int]]]:
    return {row["key"]: (row["boxes"], row["score"], row["phrase_index"]) for row in rows}


def assert_same(first: Rows, second: Rows) -> None:
    one, other = boxes(first), boxes(second)
    assert one.keys() == other.keys()
    for key in one:
        mine, theirs = (
            torch.tensor([(*box, 10 * score, 1e4 * phrase) for box, score, phrase in zip(*rows[key], strict=True)])
            for rows in (one, other)
        )
        # Of equal scores, which is first hangs on the processor's last digit.
        near = torch.isclose(mine[:, None], theirs[None], rtol=1e-4, atol=1e-3).all(2)
        torch.testing.assert_close(torch.tensor(one[key][1]), torch.tensor(other[key][1]), rtol=1e-4, atol=1e-4)
        assert sorted(one[key][2]) == sorted(other[key][2])
        assert near.any(0).all()
        assert near.any(1).all()


class Scripted:
    """A teacher that answers what it was told to, in the order of the pictures' widths."""

    name, sha256 = "scripted", "5" * 64

    def __init__(self, *answers: Found) -> None:
        self.answers = iter(answers)
        self.asked: list[list[tuple[tuple[int, int], str]]] = []

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def ground(self, images: list[Image.Image], captions: list[str], entities: Any) -> list[Found]:
        self.asked.append([(image.size, caption) for image, caption in zip(images, captions, strict=True)])
        self.entities = entities
        return [next(self.answers) for _ in images]


@pytest.fixture(scope="module")
def labeller(eager_model: Path) -> Labeller:
    return Labeller(CONFIG, str(eager_model), {"run_id": "run"})


@pytest.fixture
def scripted(eager_model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(cfg: LabelConfig, *answers: Found) -> Labeller:
        monkeypatch.setattr("pipeline.labelling.load_teacher", lambda *_: Scripted(*answers))
        return Labeller(cfg, "scripted", {})

    return make


def found(*boxes: tuple[float, float, float, float], scores: list[float], entities: list[int]) -> Found:
    return Found(boxes_xyxy=[list(box) for box in boxes], scores=scores, entities=entities)


def test_every_row_comes_out_in_the_order_given_in_the_schema(labeller: Labeller) -> None:
    keys = [5, 2, 9, 0, 7, 1]
    table = labeller(schema.to_table([image_row(key) for key in keys], schema.IMAGES))
    assert table.drop([schema.OUTCOME]).schema.equals(schema.GROUNDING)
    assert table["key"].to_pylist() == keys
    assert table[schema.OUTCOME].to_pylist() == table["status"].to_pylist() == [schema.LABELLED] * len(keys)


def test_a_table_without_rows_gives_one_without_rows(labeller: Labeller) -> None:
    assert labeller(schema.IMAGES.empty_table()).num_rows == 0


def test_boxes_lie_inside_their_image_best_first_and_above_the_score(labeller: Labeller) -> None:
    for row in label(labeller, [image_row(key) for key in range(8)]):
        assert row["score"] == sorted(row["score"], reverse=True)
        assert min(row["score"]) >= CONFIG.min_score
        assert len(row["boxes"]) == len(row["iscrowd"]) == len(row["category_id"]) <= CONFIG.max_boxes
        for x1, y1, x2, y2 in row["boxes"]:
            assert 0 <= x1 <= x2 <= row["width"]
            assert 0 <= y1 <= y2 <= row["height"]


def test_company_and_order_change_no_boxes(labeller: Labeller) -> None:
    rows = [image_row(key) for key in range(14)]
    together = label(labeller, rows)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert_same(together, label(labeller, shuffled))
    assert_same(together, [row for part in (rows[:5], rows[5:6], rows[6:]) for row in label(labeller, part)])


def test_threads_together_label_what_one_does_alone(labeller: Labeller) -> None:
    parts = [[image_row(key) for key in range(start, start + 5)] for start in range(0, 20, 5)]
    alone = [row for part in parts for row in label(labeller, part)]
    with ThreadPoolExecutor(3) as pool:
        together = [row for part in pool.map(lambda part: label(labeller, part), parts) for row in part]
    assert_same(alone, together)


def test_images_are_prepared_while_the_network_runs_for_another_thread(
    labeller: Labeller, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, prepared = threading.Lock(), threading.Event()

    class Network:
        def __enter__(self) -> None:
            prepared.set()
            busy.acquire()

        def __exit__(self, *_: object) -> None:
            busy.release()

    monkeypatch.setattr(labeller.teacher.predictor, "_lock", Network())  # type: ignore[attr-defined]
    with ThreadPoolExecutor(1) as pool, busy:
        answer = pool.submit(label, labeller, [image_row(0)])
        came_to_the_network = prepared.wait(20)
        waited = not answer.done()
        busy.release()
        rows = answer.result(20)
        busy.acquire()
    assert came_to_the_network
    assert waited
    assert rows[0]["status"] == schema.LABELLED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"status": schema.FAILED_TO_DOWNLOAD, "reason": "http_404", "image": None, "sha256": None},
            "failed_to_download:http_404",
        ),
        ({"status": schema.FAILED_TO_RESIZE, "reason": "no_image", "image": None}, "failed_to_resize:no_image"),
        ({"caption": None}, "empty_caption"),
        ({"caption": "red " * 600}, "caption_too_long"),
        ({"caption": "on the left side"}, "no_phrase"),
        ({"caption": "jumping quickly"}, "no_phrase"),
        ({"image": {"bytes": b"no picture", "path": None}}, "unreadable_image"),
        ({"image": {"bytes": picture(0, (64, 64))[:-60], "path": None}}, "unreadable_image"),
    ],
)
def test_a_row_that_cannot_be_labelled_says_why_and_harms_no_other(
    labeller: Labeller, changes: dict[str, Any], reason: str
) -> None:
    good, bad = label(labeller, [image_row(0), image_row(1, **changes)])
    assert good["status"] == schema.LABELLED
    assert (bad["status"], bad["reason"], bad[schema.OUTCOME]) == (schema.REJECTED, reason, schema.REJECTED)
    assert bad["image"] is None
    assert bad["boxes"] is None


def test_phrases_beyond_the_longest_text_get_no_box(labeller: Labeller) -> None:
    long = "a big ring " + "and so on " * 60
    seen, unseen = label(labeller, [image_row(0, caption=f"{long}a star"), image_row(0, caption=f"{long[11:]}a star")])
    assert [seen["phrases"][i] for i in {*seen["phrase_index"]}] == [[2, 10]]
    assert len(seen["phrases"]) == 2
    assert unseen["reason"] == "no_box"


def test_nothing_above_the_score_is_no_box(eager_model: Path) -> None:
    [row] = label(Labeller(replace(CONFIG, min_score=1.0), str(eager_model), {}), [image_row(0)])
    assert row["reason"] == "no_box"


def test_every_mention_of_an_entity_belongs_to_its_boxes(labeller: Labeller) -> None:
    caption = "a red ring above a star and the red ring"
    [row] = label(labeller, [image_row(0, caption=caption)])
    ring, star, again = row["phrases"]
    assert row["entity"] == [0, 1, 0]
    assert {*row["phrase_index"]} == {0, 1}
    for index, spans in zip(row["phrase_index"], row["tokens_positive"], strict=True):
        assert spans == ([ring, again] if index == 0 else [star])


def test_repeats_stay_apart_on_request(eager_model: Path) -> None:
    cfg = replace(CONFIG, phrases=PhraseConfig(merge_repeats=False))
    [row] = label(Labeller(cfg, str(eager_model), {}), [image_row(0, caption="a ring and a ring")])
    assert row["entity"] == [0, 1]
    assert all(len(spans) == 1 for spans in row["tokens_positive"])


def test_every_row_says_where_it_came_from(labeller: Labeller, eager_model: Path) -> None:
    given = image_row(3)
    for row in label(labeller, [given, image_row(4, caption="")]):
        assert (row["teacher"], row["run_id"]) == (eager_model.parent.name, "run")
        assert row["teacher_sha256"] == checkpoint.weights_sha256(eager_model)
        assert (row["parser"], row["parser_version"]) == (labeller.parser.name, labeller.parser.version)
        assert row["score_threshold"] == pytest.approx(CONFIG.min_score)
        assert row["nms_iou"] == pytest.approx(CONFIG.nms_iou)
        assert row["cross_nms_iou"] is None
        assert row["schema_version"] == schema.SCHEMA_VERSION
        assert row["sample_id"] == f"web/train/{row['key']}"
        assert row["phash"] == 7 * row["key"]
        assert row["source_sha256"] == given["source_sha256"]
        assert len(row["image_sha256"]) == 64
    assert label(labeller, [image_row(3, url=None, stored="photos/3.jpg")])[0]["image_uri"] == "photos/3.jpg"


def test_other_weights_than_the_run_began_with_are_refused(eager_model: Path) -> None:
    with pytest.raises(ValueError, match=r"the run began with 0000.*same folder"):
        Labeller(CONFIG, str(eager_model), {"teacher_sha256": "0" * 64})


@pytest.mark.parametrize(
    "answer",
    [
        found((0, 0, float("nan"), 9), scores=[0.9], entities=[0]),
        found((0, 0, 9, 9), scores=[float("inf")], entities=[0]),
        Found(finite=False),
    ],
)
def test_what_is_no_number_is_never_stored(scripted: Any, answer: Found) -> None:
    [row] = label(scripted(CONFIG, answer), [image_row(0)])
    assert (row["status"], row["reason"]) == (schema.REJECTED, "teacher_not_finite")


def test_a_broken_network_is_told_from_one_that_finds_nothing(eager_model: Path) -> None:
    labeller = Labeller(CONFIG, str(eager_model), {})
    with torch.no_grad():
        labeller.teacher.predictor.model.head.bias.fill_(float("nan"))  # type: ignore[attr-defined]
    [row] = label(labeller, [image_row(0)])
    assert row["reason"] == "teacher_not_finite"


def test_an_object_found_under_two_names_keeps_the_better_on_request(scripted: Any) -> None:
    answer = found((0, 0, 50, 50), (1, 0, 50, 50), (0, 0, 50, 40), scores=[0.9, 0.8, 0.7], entities=[0, 1, 0])
    rows = [label(scripted(replace(CONFIG, cross_nms_iou=iou), answer), [image_row(0)])[0] for iou in (None, 0.7)]
    assert [row["score"] for row in rows] == [pytest.approx([0.9, 0.8, 0.7]), pytest.approx([0.9, 0.7])]
    assert [row["cross_nms_iou"] for row in rows] == [None, pytest.approx(0.7)]


def test_boxes_are_cut_off_at_the_image_the_score_and_the_count(scripted: Any) -> None:
    answer = found(
        (-3, -1, 999, 50), (0, 0, 9, 9), (0, 0, 8, 8), (0, 0, 5, 5), scores=[0.9, 0.8, 0.7, 0.2], entities=[0] * 4
    )
    [row] = label(scripted(replace(CONFIG, max_boxes=2), answer), [image_row(0)])
    assert row["boxes"] == [[0, 0, 128, 50], [0, 0, 9, 9]]
    [row] = label(scripted(CONFIG, answer), [image_row(0)])
    assert len(row["boxes"]) == 3


def test_a_pass_holds_images_of_one_size_and_texts_of_like_length(scripted: Any) -> None:
    labeller = scripted(replace(CONFIG, batch_size=2), *[Found()] * 8)
    label(labeller, [image_row(key) for key in (0, 1, 4, 8, 12, 5, 9, 13)])
    asked = labeller.teacher.asked
    assert all(len({size for size, _ in batch}) == 1 and len(batch) <= 2 for batch in asked)
    assert len(asked) == 4
    lengths = [len(caption) for batch in asked for size, caption in batch if size == SIZES[0]]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_score": 1.5}, "min_score is 1.5; give a number between 0 and 1"),
        ({"cross_nms_iou": -1.0}, "cross_nms_iou is -1.0; give a number between 0 and 1"),
        ({"max_boxes": 0}, "max_boxes is 0; give at least 1"),
        ({"num_gpus": -1.0}, "num_gpus is -1.0; give 0 for the CPU"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelConfig(**changes)


def test_bfloat16_is_on_where_there_is_a_gpu() -> None:
    wishes = [LabelConfig(), LabelConfig(num_gpus=0.5), LabelConfig(num_gpus=1, bf16=False), LabelConfig(bf16=True)]
    assert [cfg.teacher.bf16 for cfg in wishes] == [False, True, False, True]
    assert [cfg.teacher.device for cfg in wishes] == ["cpu", "cuda", "cuda", "cpu"]
