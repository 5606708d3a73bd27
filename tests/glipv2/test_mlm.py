"""L_mlm: the mean over masked words, also where there is none."""

import pytest
import torch

from glipv2.losses.mlm import masked_word_loss
from glipv2.model.heads import WordHead
from glipv2.sample import NOT_PREDICTED

NOTHING = torch.full((2, 4), NOT_PREDICTED)


def test_it_is_the_mean_over_the_masked_words_of_all_texts() -> None:
    masked_words = NOTHING.clone()
    masked_words[0, 1], masked_words[0, 2], masked_words[1, 3] = 4, 0, 2
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    each = [-logits[row].log_softmax(0)[word] for row, word in enumerate((4, 0, 2))]
    torch.testing.assert_close(masked_word_loss(logits, masked_words), sum(each, torch.zeros(())) / 3)


def test_no_masked_word_costs_nothing_and_has_a_gradient() -> None:
    head = WordHead(dim=4, vocab_size=5)
    loss = masked_word_loss(head(torch.zeros(0, 4)), NOTHING)
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in head.parameters())


def test_logits_of_other_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="run the model with predict"):
        masked_word_loss(torch.zeros(0, 5), torch.ones_like(NOTHING))
