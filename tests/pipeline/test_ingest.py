import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glipv2.config import nano
from glipv2.sample import NOT_PREDICTED, collate
from glipv2.text.prompts import Budget
from glipv2.text.tokenizer import WordPiece, make_vocabulary
from pipeline import schema
from pipeline.ingest import IngestConfig, TrainingSet, Vocabulary, make_sample
from pipeline.mixture import Mixture, seeded
from pipeline.row_index import SourceConfig
from pipeline.sources.store import store_source

TOKENIZER = WordPiece(make_vocabulary(["a", "red", "ring", "left", "of", "blue", "star", "moon"]), 64)
MODEL = replace(nano(len(TOKENIZER.vocabulary)), min_size_px=32, max_size_px=32)
NAMES = {1: "ring", 2: "star", 3: "moon"}
NO_WORDS = Vocabulary(names={}, budget=Budget.of({}, TOKENIZER), global_ids={})
WORDS = Vocabulary(names=NAMES, budget=Budget.of(NAMES, TOKENIZER), global_ids={key: key for key in NAMES})
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
        "neg_category_ids": None,
        "not_exhaustive_ids": None,
        "status": schema.LABELLED,
        "schema_version": schema.SCHEMA_VERSION,
    } | changes


def caption(**changes: Any) -> dict[str, Any]:
    changed = {
        "sample_id": "web/train/0",
        "kind": schema.CAPTION,
        "text": CAPTION,
        "phrases": [RING, STAR],
        "entity": None,
        "phrase_index": [0],
        "tokens_positive": [[RING]],
        "category_id": [-1],
        "score": [0.9],
    }
    return detection(0, **(changed | changes))


def store(folder: Path, rows: list[dict[str, Any]], names: dict[int, str] = NAMES) -> SourceConfig:
    store_source(rows, folder, name=folder.name, inputs={}, categories=names)
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


def drawn(batch: Any) -> dict[float, list[tuple[Any, ...]]]:
    """Give prompts, hidden words and boxes of a batch, by the shade of the image."""
    found: dict[float, list[tuple[Any, ...]]] = {}
    words = torch.stack([batch.ids, batch.masked_words], 1).tolist()
    for shade, said, target in zip(batch.pixels[:, 2, 0, 0].tolist(), words, batch.targets, strict=True):
        found.setdefault(shade, []).append((said, target.boxes_xyxy.tolist()))
    return found


def test_prompts_hidden_words_and_flips_are_drawn_anew_each_epoch(boxes: SourceConfig) -> None:
    data = TrainingSet([boxes], IngestConfig(batch_size=10, mask_words=0.5), MODEL, TOKENIZER)
    first, second = drawn(data[0]), drawn(data[1])
    assert first.keys() == second.keys()
    assert sum(first[shade] != second[shade] for shade in first) > 7


def test_a_sample_without_copies_draws_by_epoch_and_name_alone(tmp_path: Path) -> None:
    """Runs that were begun before copies drew for themselves go on as they were."""
    cfg = IngestConfig(batch_size=1, mask_words=0.5)
    data = TrainingSet([store(tmp_path / "one", [detection(0)])], cfg, MODEL, TOKENIZER)
    ((source, row),) = data.mixture
    for epoch in range(5):
        rng = seeded(cfg.seed, epoch, "boxes/train/0")
        sample = make_sample(row, data.vocabularies[source], cfg, MODEL, rng)
        assert drawn(data[epoch]) == drawn(collate([sample], TOKENIZER, MODEL.pad_multiple_px, cfg.mask_words))


def test_each_copy_of_a_sample_draws_for_itself_and_the_first_as_without_copies(boxes: SourceConfig) -> None:
    cfg = IngestConfig(batch_size=30, mask_words=0.5)
    tripled = [replace(boxes, copies=3)]
    found = drawn(TrainingSet(tripled, cfg, MODEL, TOKENIZER)[0])
    assert {len(copies) for copies in found.values()} == {3}
    assert sum(copies[i] != copies[i - 1] for copies in found.values() for i in range(3)) > 25
    assert drawn(TrainingSet(tripled, cfg, MODEL, TOKENIZER)[0]) == found
    alone = drawn(TrainingSet([boxes], replace(cfg, batch_size=10), MODEL, TOKENIZER)[0])
    assert all(alone[shade][0] in copies for shade, copies in found.items())


def test_copies_repeat_a_source_and_zero_leaves_it_out(boxes: SourceConfig, tmp_path: Path) -> None:
    captions = store(tmp_path / "captions", [caption()])
    cfg = IngestConfig(batch_size=1)
    tripled = TrainingSet([boxes, replace(captions, copies=3)], cfg, MODEL, TOKENIZER)
    assert (len(tripled.mixture), tripled.mixture.num_different) == (13, 11)
    assert len(TrainingSet([boxes, replace(captions, copies=0)], cfg, MODEL, TOKENIZER).mixture) == 10


def test_rejected_crowded_and_unboxed_rows_are_not_trained_on(tmp_path: Path) -> None:
    rows = [
        detection(0),
        detection(1, status=schema.REJECTED, reason="no_box"),
        detection(2, iscrowd=[True]),
        detection(3, boxes=[], category_id=[], score=[], iscrowd=[]),
    ]
    data = TrainingSet([store(tmp_path / "mixed", rows)], IngestConfig(batch_size=1), MODEL, TOKENIZER)
    assert [row["sample_id"] for _, row in data.mixture] == ["boxes/train/0"]


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


def test_left_and_right_are_swapped_in_a_mirrored_text_if_asked_for() -> None:
    text = "left of a red ring a blue star"
    row = caption(text=text, phrases=[(8, 18), (19, 30)], tokens_positive=[[(8, 18)]])
    cfg = IngestConfig(batch_size=1, flip=1.0, flip_sides="swap")
    sample = make_sample(row, NO_WORDS, cfg, MODEL, random.Random(0))
    assert sample.text == "right of a red ring a blue star"
    assert sample.boxes_xyxy.tolist() == [[12.0, 2.0, 30.0, 20.0]]
    spans = [*sample.tokens_positive[0], *sample.unknown]
    assert [sample.text[slice(*span)] for span in spans] == ["a red ring", "a blue star"]


def test_left_and_right_stay_where_the_image_is_not_mirrored() -> None:
    cfg = IngestConfig(batch_size=1, flip=0.0, flip_sides="swap")
    assert make_sample(caption(), NO_WORDS, cfg, MODEL, random.Random(0)).text == CAPTION


@pytest.mark.parametrize("flip_sides", ["skip", "swap"])
def test_a_prompt_with_a_sided_category_is_never_mirrored(flip_sides: Any) -> None:
    names = {1: "left ring", 2: "star"}
    words = Vocabulary(names=names, budget=Budget.of(names, TOKENIZER), global_ids={1: 0, 2: 1})
    cfg = IngestConfig(batch_size=1, flip=1.0, flip_sides=flip_sides)
    sample = make_sample(detection(0), words, cfg, MODEL, random.Random(0))
    assert "left ring" in sample.text
    assert sample.boxes_xyxy.tolist() == [[2.0, 2.0, 20.0, 20.0]]


def test_only_verified_categories_are_taught_as_absent() -> None:
    row, cfg = detection(0, neg_category_ids=[3]), IngestConfig(batch_size=1)
    for seed in range(20):
        assert make_sample(row, WORDS, cfg, MODEL, random.Random(seed)).category_spans.keys() == {1, 3}


def test_a_category_not_fully_boxed_keeps_its_boxes_and_leaves_the_loss() -> None:
    row = detection(0, not_exhaustive_ids=[1, 2])
    sample = make_sample(row, WORDS, IngestConfig(batch_size=1), MODEL, random.Random(0))
    assert sample.category_spans.keys() == {1, 3}
    assert sample.incomplete == sample.category_spans[1]
    batch = collate([sample], TOKENIZER, 32)
    assert batch.targets[0].positive_map.sum() == 1
    assert batch.token_categories[0][~batch.loss_mask[0]].tolist() == [1]


def test_a_category_seen_only_as_a_crowd_is_not_taught_as_absent(tmp_path: Path) -> None:
    row = detection(0, boxes=[[2.0, 2.0, 9.0, 9.0]] * 2, category_id=[1, 2], score=[1.0] * 2, iscrowd=[False, True])
    cfg = IngestConfig(batch_size=1)
    ((_, read),) = Mixture([store(tmp_path / "crowd", [row])], cfg.selection, cfg.order, 0)
    for seed in range(20):
        assert make_sample(read, WORDS, cfg, MODEL, random.Random(seed)).category_spans.keys() == {1, 3}


def test_boxes_whose_name_does_not_fit_are_dropped() -> None:
    tight = replace(WORDS, budget=replace(WORDS.budget, max_tokens=2))
    row = detection(0, boxes=[[2.0, 2.0, 9.0, 9.0], [9.0, 9.0, 30.0, 30.0]], category_id=[1, 2])
    sample = make_sample(row, tight, IngestConfig(batch_size=1, flip=0.0), MODEL, random.Random(0))
    (category,) = sample.categories
    assert sample.text == NAMES[category]
    assert sample.boxes_xyxy.tolist() == [row["boxes"][category - 1]]


def named_ids(sources: list[SourceConfig]) -> list[dict[str, set[int]]]:
    """Per image of one batch, every word of its prompt and the categories its tokens have."""
    data = TrainingSet(sources, IngestConfig(batch_size=len(sources)), MODEL, TOKENIZER)
    batch, found = data[0], []
    for ids, categories in zip(batch.ids.tolist(), batch.token_categories.tolist(), strict=True):
        found.append({TOKENIZER.vocabulary[i]: {c} for i, c in zip(ids, categories, strict=True) if c >= 0})
    for target, ids, names in zip(batch.targets, batch.ids, found, strict=True):
        for category, positive in zip(target.categories.tolist(), target.positive_map, strict=True):
            names[TOKENIZER.vocabulary[int(ids[positive > 0][0])]].add(category)
    return found


def test_a_name_has_one_category_in_all_sources_whatever_its_ids(tmp_path: Path) -> None:
    first = store(tmp_path / "a", [detection(0)], {1: "ring", 2: "star"})
    row = detection(1, boxes=[[2.0, 2.0, 9.0, 9.0]] * 2, category_id=[1, 7], score=[1.0] * 2, iscrowd=[False] * 2)
    second = store(tmp_path / "b", [row], {1: "moon", 7: "Ring_(jewel)"})
    seen = [names for _ in range(2) for names in named_ids([first, second])]
    rings = [names["ring"] for names in seen]
    assert all(ids == rings[0] and len(ids) == 1 for ids in rings)
    assert [names["moon"] & rings[0] for names in seen if "moon" in names] == [set()] * 2


def test_names_of_a_source_that_are_said_alike_share_a_category_and_keep_their_spans(tmp_path: Path) -> None:
    names = {1: "ring_(jewel)", 2: "star", 3: "ring"}
    rows = [detection(0, boxes=[[2.0, 2.0, 9.0, 9.0]] * 2, category_id=[1, 3], score=[1.0] * 2, iscrowd=[False] * 2)]
    data = TrainingSet([store(tmp_path / "a", rows, names)], IngestConfig(batch_size=1), MODEL, TOKENIZER)
    ((source, row),) = data.mixture
    sample = make_sample(row, data.vocabularies[source], data.cfg, MODEL, random.Random(0))
    assert len(set(sample.categories)) == 1
    spans = sample.category_spans[sample.categories[0]]
    assert [sample.text[slice(*span)] for span in spans] == ["ring", "ring"]
    assert {span for [span] in sample.tokens_positive} == set(spans)
    ids, categories = data[0].ids[0].tolist(), data[0].token_categories[0].tolist()
    marked = [c for i, c in zip(ids, categories, strict=True) if TOKENIZER.vocabulary[i] == "ring"]
    assert marked == [sample.categories[0]] * 2


def test_a_box_that_covers_nothing_is_dropped_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    thin = [30.1, 5.0, 30.1 + 1e-6, 20.0]  # equal sides in single precision
    row = detection(0, boxes=[thin, [2.0, 2.0, 20.0, 20.0], [40.0, 2.0, 50.0, 9.0]], category_id=[1, 2, 1])
    sample = make_sample(row, WORDS, IngestConfig(batch_size=1, flip=0.0), MODEL, random.Random(0))
    assert sample.boxes_xyxy.tolist() == [[2.0, 2.0, 20.0, 20.0]]
    assert sample.categories == [2]
    assert [sample.text[slice(*span)] for [span] in sample.tokens_positive] == ["star"]
    assert [sample.text[slice(*span)] for span in sample.unknown] == ["ring", "ring"]
    assert "boxes/train/0: 2 of 3 boxes cover nothing" in caplog.text


def test_words_of_a_dropped_box_are_not_taught_as_absent() -> None:
    row = caption(boxes=[[5.0, 5.0, 5.0, 9.0]])
    sample = make_sample(row, NO_WORDS, IngestConfig(batch_size=1), MODEL, random.Random(0))
    batch = collate([sample], TOKENIZER, 32)
    words = [TOKENIZER.vocabulary[i] for i in batch.ids[0][~batch.loss_mask[0]].tolist()]
    assert len(batch.targets[0].boxes_xyxy) == 0
    assert words == ["red", "ring", "blue", "star"]


def test_every_mention_of_a_boxed_entity_counts_as_boxed() -> None:
    row = caption(entity=[0, 0])
    sample = make_sample(row, NO_WORDS, IngestConfig(batch_size=1), MODEL, random.Random(0))
    apart = make_sample(row | {"entity": [0, 1]}, NO_WORDS, IngestConfig(batch_size=1), MODEL, random.Random(0))
    assert sample.unknown == []
    assert apart.unknown == [STAR]


def test_images_are_resized_to_one_of_the_sides_given(boxes: SourceConfig) -> None:
    roomy = replace(MODEL, max_size_px=96)
    cfg = IngestConfig(batch_size=1, short_sides_px=(16, 48, 80), flip=0.0)
    rows = [make_sample(detection(0), WORDS, cfg, roomy, random.Random(seed)) for seed in range(20)]
    assert {sample.picture.size for sample in rows} == {(16, 16), (48, 48), (80, 80)}
    for sample in rows:
        assert sample.boxes_xyxy.tolist() == [[side * sample.picture.size[0] / 32 for side in (2, 2, 20, 20)]]
    first, again = (TrainingSet([boxes], cfg, roomy, TOKENIZER)[3].pixels for _ in range(2))
    assert torch.equal(first, again)


def captions(folder: Path) -> SourceConfig:
    texts = [CAPTION, "a moon", "a blue moon."]
    rows = [caption(sample_id=f"web/train/{i}", text=text) for i, text in enumerate(texts)]
    for row in rows[1:]:
        row.update(phrases=[(0, 6)], tokens_positive=[[(0, 6)]])
    return store(folder, rows)


def test_packed_captions_keep_their_boxes_on_their_words(tmp_path: Path) -> None:
    cfg = IngestConfig(batch_size=3, pack_negatives=True)
    data = TrainingSet([captions(tmp_path / "web")], cfg, MODEL, TOKENIZER)
    lengths, named = set(), set()
    for step in range(10):
        batch = data[step]
        lengths |= set(batch.mask.sum(1).tolist())
        for ids, target in zip(batch.ids, batch.targets, strict=True):
            named.add(" ".join(TOKENIZER.vocabulary[i] for i in ids[target.positive_map[0] > 0].tolist()))
    assert named == {"red ring", "a moon", "a blue"}
    assert max(lengths) > 12


def test_packing_changes_neither_the_picture_nor_what_is_unknown(tmp_path: Path) -> None:
    source = captions(tmp_path / "web")
    plain, packed = (
        TrainingSet([source], IngestConfig(batch_size=3, pack_negatives=pack), MODEL, TOKENIZER)
        for pack in (False, True)
    )
    for step in range(5):
        assert torch.equal(plain[step].pixels, packed[step].pixels)
        counts = [(b.mask.bool() & ~b.loss_mask).sum(1).tolist() for b in (plain[step], packed[step])]
        assert counts[0] == counts[1]


def test_words_are_hidden_at_the_rate_asked_for(tmp_path: Path) -> None:
    cfg = IngestConfig(batch_size=3, mask_words=0.5)
    plain = TrainingSet([captions(tmp_path / "web")], replace(cfg, mask_words=0.0), MODEL, TOKENIZER)
    data = TrainingSet([SourceConfig(path=tmp_path / "web")], cfg, MODEL, TOKENIZER)
    batch, same = data[0], plain[0]
    hidden = batch.masked_words != NOT_PREDICTED
    assert 0 < hidden.sum() < batch.mask.sum()
    assert torch.equal(torch.where(hidden, batch.masked_words, batch.ids), same.ids)
    assert torch.equal(batch.masked_words, data[0].masked_words)


@pytest.mark.parametrize(
    "wrong", [{"mask_words": 1.5}, {"flip": -0.1}, {"max_labels": 0}, {"batch_size": 0}, {"short_sides_px": (0,)}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give"):
        IngestConfig(**{"batch_size": 1, **wrong})


def test_the_prompt_of_a_detection_row_is_drawn_anew_each_epoch() -> None:
    cfg = IngestConfig(batch_size=1)
    texts = {make_sample(detection(0), WORDS, cfg, MODEL, random.Random(epoch)).text for epoch in range(20)}
    assert len(texts) > 3
    assert all("ring" in text for text in texts)


def test_a_source_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        TrainingSet([SourceConfig(path=tmp_path)], IngestConfig(batch_size=1), MODEL, TOKENIZER)


def test_a_batch_too_small_for_its_workers_is_refused(boxes: SourceConfig) -> None:
    with pytest.raises(ValueError, match="too small for 2 workers in 2 parts; give 4 or more"):
        TrainingSet([boxes], IngestConfig(batch_size=3, accumulate=2), MODEL, TOKENIZER, (0, 2))


def test_workers_and_parts_share_a_batch_that_does_not_divide(boxes: SourceConfig) -> None:
    cfg = IngestConfig(batch_size=7)
    alone = TrainingSet([boxes], cfg, MODEL, TOKENIZER)
    parts = [
        TrainingSet([boxes], replace(cfg, accumulate=2), MODEL, TOKENIZER, (rank, 2))[item]
        for rank in range(2)
        for item in (4, 5)
    ]
    together = torch.cat([part.pixels for part in parts])
    assert sorted(together[:, 2, 0, 0].tolist()) == shades(alone[2])
