"""Hiding words that the model has to guess from the picture (L_mlm; GLIPv2 section 3.1)."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from glipv2.text.tokenizer import Encoding, Tokenizer

HIDDEN, REPLACED = 0.8, 0.1
"""BERT's shares: of the selected tokens so many become the mask, so many any token, and the rest stay."""


def hide_words(
    encoding: Encoding, rate: float, tokenizer: Tokenizer, seed: int
) -> tuple[Int[Tensor, " t"], Bool[Tensor, " t"]]:
    """Corrupt a text by its own seed, whatever batch it is in.

    Start and end are never selected, unlike in the reference.

    Args:
        encoding: the text, without padding.
        rate: probability of each token to be selected.
        tokenizer: gives the mask and the tokens to draw from.
        seed: decides everything.

    Returns:
        The corrupted ids, and the selected tokens: hidden, replaced or left as they were.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(encoding.ids)
    choice, fate = torch.rand(2, len(ids), generator=generator)
    others = torch.randint(tokenizer.vocab_size, ids.shape, generator=generator)
    selected = (choice < rate) & torch.tensor([end > begin for begin, end in encoding.offsets])
    replaced = torch.where(fate < HIDDEN + REPLACED, others, ids)
    hidden = torch.where(fate < HIDDEN, tokenizer.mask_id, replaced)
    return torch.where(selected, hidden, ids), selected
