import pytest

from pipeline.selection import SelectionConfig, glip, kosmos2, overlap, select

HERE, NEARLY_HERE, THERE = (0, 0, 10, 10), (1, 0, 11, 10), (50, 50, 60, 60)


def test_an_object_belongs_to_its_best_phrase() -> None:
    assert select([HERE, NEARLY_HERE], [0.6, 0.8], [0, 1], SelectionConfig()) == [1]


def test_a_phrase_mention_keeps_its_best_box() -> None:
    assert select([HERE, THERE], [0.6, 0.8], [0, 0], SelectionConfig()) == [1]


def test_phrases_on_different_objects_are_all_used() -> None:
    assert select([HERE, THERE], [0.6, 0.8], [0, 1], SelectionConfig()) == [1, 0]


def test_a_phrase_that_loses_its_object_takes_its_next_one() -> None:
    chosen = select([HERE, NEARLY_HERE, THERE], [0.9, 0.8, 0.7], [0, 1, 1], SelectionConfig())
    assert chosen == [0, 2]


def test_boxes_below_the_threshold_are_not_used() -> None:
    assert select([HERE, THERE], [0.39, 0.41], [0, 1], SelectionConfig(min_score=0.4)) == [1]


def test_glip_rule_keeps_every_sure_box() -> None:
    assert select([HERE, NEARLY_HERE, THERE], [0.6, 0.7, 0.4], [0, 1, 0], glip()) == [1, 0]


def test_kosmos_rule_keeps_several_boxes_of_a_phrase_but_one_phrase_per_object() -> None:
    assert select([HERE, THERE, NEARLY_HERE], [0.9, 0.8, 0.7], [0, 0, 1], kosmos2()) == [0, 1]


def test_overlap_of_touching_boxes_is_zero() -> None:
    assert overlap((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)


def test_impossible_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="min_score is 40"):
        SelectionConfig(min_score=40)
