"""Hidden words: how many, which, what they become, and that a sample is masked the same wherever it comes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from glipv2.image import Picture
from glipv2.sample import NOT_PREDICTED, Batch, GroundingSample, collate
from glipv2.text.masking import hide_words
from glipv2.text.prompts import build_prompt
from glipv2.text.tokenizer import WordPiece, make_vocabulary

WORDS = ["red", "green", "blue", "square", "disc"]
LONG = WordPiece(make_vocabulary(WORDS), 5000)
SPOKEN = " ".join(WORDS * 900)
PROMPT = build_prompt(list(enumerate([*WORDS, "blue disc"])))
PRESENT = {1, 5}
NO_PICTURE = Picture(pixels=torch.zeros(3, 32, 32), scale_xy=(1.0, 1.0), original_size=(32, 32))


def sentence(text: str, seed: int = 0) -> GroundingSample:
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    spans = [(0, 3)] if len(text) >= 3 else []
    return GroundingSample(picture=NO_PICTURE, text=text, boxes_xyxy=boxes, tokens_positive=[spans], seed=seed)


def prompted(seed: int = 0) -> GroundingSample:
    spans = [[PROMPT.spans[category]] for category in sorted(PRESENT)]
    return replace(
        sentence(PROMPT.text, seed),
        boxes_xyxy=torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 2),
        tokens_positive=spans,
        categories=sorted(PRESENT),
        category_spans={category: [span] for category, span in PROMPT.spans.items()},
    )


def masked(*samples: GroundingSample, rate: float = 0.3) -> Batch:
    return collate(samples, LONG, 32, rate)


def test_words_are_selected_and_corrupted_in_berts_shares() -> None:
    encoding = LONG([SPOKEN])[0]
    corrupted, selected = hide_words(encoding, 0.15, LONG, seed=1)
    truth = torch.tensor(encoding.ids)
    count = int(selected.sum())
    # 4500 words; four standard deviations of the rate are 0.021, of the shares of some 675 words 0.062 and 0.046.
    assert count / 4500 == pytest.approx(0.15, abs=0.021)
    hidden = selected & (corrupted == LONG.mask_id)
    kept = selected & (corrupted == truth)
    assert hidden.sum() / count == pytest.approx(0.8, abs=0.062)
    assert kept.sum() / count == pytest.approx(0.1, abs=0.046)
    others = corrupted[selected & ~hidden & ~kept]
    assert len(others) / count == pytest.approx(0.1, abs=0.046)
    assert len(set(others.tolist())) > 30
    assert torch.equal(corrupted[~selected], truth[~selected])


def test_start_end_and_padding_are_never_touched() -> None:
    batch, plain = masked(sentence("red"), sentence(" ".join(WORDS)), rate=1.0), masked(sentence("red"), rate=0.0)
    assert batch.ids[0, [0, 2]].tolist() == plain.ids[0, [0, 2]].tolist()
    assert (batch.ids[0, 3:] == LONG.pad_id).all()
    assert (batch.masked_words != NOT_PREDICTED).sum(1).tolist() == [1, 5]


def rows(batch: Batch, row: int, length: int) -> tuple[Tensor, ...]:
    return batch.ids[row, :length], batch.masked_words[row, :length], batch.loss_mask[row, :length]


def test_a_sample_is_masked_the_same_alone_and_in_any_batch() -> None:
    samples = [sentence(" ".join(WORDS * n), seed=n) for n in (1, 5, 3)] + [prompted(seed=9)]
    alone = [masked(sample) for sample in samples]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 2, 3]):
        together = masked(*(samples[i] for i in order))
        for row, i in enumerate(order):
            length = alone[i].ids.shape[1]
            for one, other in zip(rows(alone[i], 0, length), rows(together, row, length), strict=True):
                assert torch.equal(one, other)


def test_another_seed_hides_other_words() -> None:
    first, second = (masked(sentence(" ".join(WORDS * 5), seed)).masked_words for seed in (1, 2))
    assert not torch.equal(first, second)


def test_the_true_word_is_kept_wherever_it_is_to_be_predicted() -> None:
    batch, plain = masked(sentence(SPOKEN)), masked(sentence(SPOKEN), rate=0.0)
    scored = batch.masked_words != NOT_PREDICTED
    assert torch.equal(batch.masked_words[scored], plain.ids[scored])
    assert torch.equal(batch.ids[~scored], plain.ids[~scored])


def test_a_prompt_is_corrupted_everywhere_but_scored_where_something_is_present() -> None:
    truth = masked(prompted(), rate=0.0)
    corrupted, scored = torch.zeros(truth.ids.shape[1]), torch.zeros(truth.ids.shape[1])
    for seed in range(300):
        batch = masked(prompted(seed))
        corrupted += batch.ids[0] != truth.ids[0]
        scored += batch.masked_words[0] != NOT_PREDICTED
    shares = corrupted[1:-1] / 300
    assert shares.tolist() == pytest.approx([0.3 * 0.9] * len(shares), abs=0.11)
    present = torch.isin(truth.token_categories[0], torch.tensor(sorted(PRESENT)))
    assert present.sum() == 3
    assert ((scored > 0) == present).all()


def test_a_prompt_of_nothing_that_is_there_is_not_scored() -> None:
    empty = replace(prompted(), boxes_xyxy=torch.zeros(0, 4), tokens_positive=[], categories=[])
    assert (masked(empty, rate=1.0).masked_words == NOT_PREDICTED).all()


def test_a_hidden_word_stays_positive_for_its_boxes() -> None:
    hidden, plain = masked(prompted(), rate=1.0), masked(prompted(), rate=0.0)
    assert torch.equal(hidden.targets[0].positive_map, plain.targets[0].positive_map)
    assert hidden.targets[0].positive_map.sum() == 3


@pytest.mark.parametrize("text", ["", "  ", "red"])
def test_nothing_to_hide_is_fine(text: str) -> None:
    batch = masked(sentence(text), rate=1e-9)
    assert (batch.masked_words == NOT_PREDICTED).all()
