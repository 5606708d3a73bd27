"""Phrase grounding recall by hand, on a Flickr30k Entities folder of one image and on MDETR's json."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glipv2.evaluation.flickr30k import Phrase, Sentence, flickr30k_metrics, read_entities, read_mdetr

Record = dict[str, Any]
Boxes = Sequence[Sequence[float]]
LEFT, RIGHT, BOTH = [0, 0, 40, 40], [60, 0, 100, 40], [0, 0, 100, 40]
DOG, NOTHING, SMALL = [10, 50, 90, 100], [0, 0, 0, 0], [0, 0, 5, 5]

SENTENCES = """[/EN#11/people Two men] and [/EN#12/animals/other a dog] in [/EN#13/scene the park] .
Nobody here .

[/EN#12/animals The dog] sees [/EN#0/notvisual it] .
"""
XML = """<annotation><filename>7.jpg</filename><size><width>120</width><height>110</height><depth>3</depth></size>
<object><name>11</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object>
<object><name>11</name><bndbox><xmin>60</xmin><ymin>0</ymin><xmax>100</xmax><ymax>40</ymax></bndbox></object>
<object><name>12</name><name>99</name>
<bndbox><xmin>10</xmin><ymin>50</ymin><xmax>90</xmax><ymax>100</ymax></bndbox></object>
<object><name>13</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>
"""


@pytest.fixture
def entities(tmp_path: Path) -> Path:
    for name, content in {"Annotations/7.xml": XML, "Sentences/7.txt": SENTENCES}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


@pytest.fixture
def truth(entities: Path) -> dict[Sentence, list[Phrase]]:
    return read_entities(entities, ["7"])


def predict(men: Boxes, dog: Boxes, again: Boxes, **more: Any) -> list[Record]:
    """Predict for both sentences that have phrases with boxes."""
    return [
        {"image_id": 7, "sentence_id": 0, "boxes": [men, dog], **more},
        {"image_id": "7", "sentence_id": "2", "boxes": [again]},
    ]


def test_phrases_without_boxes_are_no_phrases_and_empty_lines_no_sentences(
    truth: dict[Sentence, list[Phrase]],
) -> None:
    assert list(truth) == [("7", "0"), ("7", "2")]
    assert [phrase.types for phrase in truth["7", "0"]] == [("people",), ("animals", "other")]
    assert truth["7", "0"][0].boxes_xyxy.tolist() == [LEFT, RIGHT]


def test_any_box_of_a_phrase_is_a_hit_or_only_the_one_around_them(truth: dict[Sentence, list[Phrase]]) -> None:
    one, around = predict([RIGHT], [DOG], [DOG]), predict([BOTH], [DOG], [DOG])
    assert flickr30k_metrics(truth, one)["R@1"] == 1
    assert flickr30k_metrics(truth, one, merged=True)["R@1"] == pytest.approx(2 / 3)
    assert flickr30k_metrics(truth, around)["R@1"] == pytest.approx(2 / 3)
    assert flickr30k_metrics(truth, around, merged=True)["R@1"] == 1


def test_recall_is_counted_at_each_rank_and_for_each_type(truth: dict[Sentence, list[Phrase]]) -> None:
    scores = flickr30k_metrics(truth, predict([SMALL] * 4 + [LEFT], [SMALL] * 10 + [DOG], [DOG]))
    assert {name: scores[name] for name in ("phrases", "sentences")} == {"phrases": 3, "sentences": 2}
    assert [scores[f"R@{k}"] for k in (1, 5, 10, "all")] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1])
    assert [scores[f"R@{k}_people"] for k in (1, 5, 10, "all")] == [0, 1, 1, 1]
    assert [scores[f"R@{k}_animals"] for k in (1, 5, 10, "all")] == [0.5, 0.5, 0.5, 1]
    assert scores["phrases_animals"] == 2
    assert scores["R@1_other"] == 0


def test_an_overlap_of_exactly_half_is_a_hit(truth: dict[Sentence, list[Phrase]]) -> None:
    half, less = [[0, 0, 40, 20]], [[0, 0, 40, 19.99]]
    assert flickr30k_metrics(truth, predict(half, [DOG], [DOG]))["R@1"] == 1
    assert flickr30k_metrics(truth, predict(less, [DOG], [DOG]))["R@1"] == pytest.approx(2 / 3)


def test_no_box_and_an_empty_box_are_misses(truth: dict[Sentence, list[Phrase]]) -> None:
    scores = flickr30k_metrics(truth, predict([], [NOTHING], [DOG]))
    assert scores["R@1"] == scores["R@all"] == pytest.approx(1 / 3)


def test_boxes_with_scores_are_ranked_by_them(truth: dict[Sentence, list[Phrase]]) -> None:
    boxes = predict([SMALL, LEFT], [DOG, SMALL], [DOG], scores=[[0.1, 0.2], [0.3, 0.3]])
    assert flickr30k_metrics(truth, boxes)["R@1"] == 1


def test_perfect_predictions_score_1_in_any_order(truth: dict[Sentence, list[Phrase]]) -> None:
    predictions = [
        {"image_id": image, "sentence_id": number, "boxes": [p.boxes_xyxy.tolist() for p in phrases]}
        for (image, number), phrases in truth.items()
    ]
    random.Random(1).shuffle(predictions)
    scores = flickr30k_metrics(truth, predictions)
    assert all(value == 1 for name, value in scores.items() if name.startswith("R@"))


def test_what_is_predicted_twice_or_for_nothing_is_left_out(
    truth: dict[Sentence, list[Phrase]], caplog: pytest.LogCaptureFixture
) -> None:
    predictions = predict([LEFT], [DOG], [DOG])
    more = [{"image_id": 7, "sentence_id": 0, "boxes": [[], []]}, {"image_id": 7, "sentence_id": 1, "boxes": []}]
    assert flickr30k_metrics(truth, predictions + more) == flickr30k_metrics(truth, predictions)
    assert "a second one for sentence 0 of image 7" in caplog.text
    assert "left out predictions for 1 sentences" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sentence_id": 5}, "lack 1 of 2 sentences, the first being 0 of image 7"),
        ({"boxes": [[LEFT]]}, r"predictions\[0\] has boxes for 1 phrases, but 2 phrases"),
        ({"boxes": [[LEFT], [[1, 2]]]}, r"predictions\[0\] has boxes"),
        ({"boxes": 3}, r"predictions\[0\] has boxes 3; expected a list"),
        ({"scores": [[0.5], []]}, r"predictions\[0\] has scores \[\[0.5\], \[\]\], not one for each box"),
    ],
)
def test_a_broken_prediction_is_named(change: Record, said: str, truth: dict[Sentence, list[Phrase]]) -> None:
    predictions = predict([LEFT], [DOG], [DOG])
    predictions[0] |= change
    with pytest.raises(ValueError, match=said):
        flickr30k_metrics(truth, predictions)


def test_what_is_no_list_of_predictions_is_refused(truth: dict[Sentence, list[Phrase]]) -> None:
    with pytest.raises(ValueError, match="the predictions are no list but a dict"):
        flickr30k_metrics(truth, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"predictions\[0\] lacks boxes, sentence_id"):
        flickr30k_metrics(truth, [{"image_id": 7}])


def test_a_broken_folder_is_named(entities: Path) -> None:
    with pytest.raises(ValueError, match="image 8 cannot be read"):
        read_entities(entities, ["7", "8"])
    (entities / "Annotations" / "7.xml").write_text(XML.replace("<xmax>40</xmax>", ""), encoding="utf-8")
    with pytest.raises(ValueError, match="image 7 cannot be read"):
        read_entities(entities, ["7"])


def test_mdetr_json_gives_the_same_recalls(truth: dict[Sentence, list[Phrase]]) -> None:
    content = mdetr_json()
    from_json = read_mdetr(content)
    for predictions in (predict([RIGHT], [DOG], [SMALL]), predict([BOTH], [SMALL, DOG], [DOG])):
        for merged in (False, True):
            ours = flickr30k_metrics(from_json, predictions, merged=merged)
            assert ours.items() <= flickr30k_metrics(truth, predictions, merged=merged).items()
    assert np.array_equal(from_json["7", "0"][0].boxes_xyxy, [LEFT, RIGHT])


def test_another_json_is_refused() -> None:
    content = mdetr_json()
    del content["images"][1]["sentence_id"]
    with pytest.raises(ValueError, match=r"images\[1\] of the truth is not MDETR's \(KeyError\('sentence_id'\)\)"):
        read_mdetr(content)
    with pytest.raises(ValueError, match="no COCO json"):
        read_mdetr([])  # type: ignore[arg-type]


def mdetr_json() -> Record:
    """Write the folder's phrases as MDETR does; the dog's words are a part of its box's span."""
    boxes = [(1, LEFT, [[0, 7]]), (1, RIGHT, [[0, 7]]), (1, DOG, [[12, 17], [40, 45]]), (2, DOG, [[0, 7]])]
    common = {"original_img_id": 7, "file_name": "7.jpg", "width": 120, "height": 110}
    return {
        "images": [
            common | {"id": 1, "sentence_id": 0, "tokens_positive_eval": [[[0, 7]], [[12, 17]]]},
            common | {"id": 2, "sentence_id": 2, "tokens_positive_eval": [[[0, 7]]]},
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": 1,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "tokens_positive": spans,
            }
            for number, (image, box, spans) in enumerate(boxes)
        ],
    }
