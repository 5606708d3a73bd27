"""L_mlm: masked words are predicted from the fused text (GLIPv2 section 3.1)."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glipv2.losses.workers import num_workers, sum_over_workers
from glipv2.sample import NOT_PREDICTED


def masked_word_loss(word_logits: Float[Tensor, "m v"], masked_words: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
    """Average the cross entropy over the masked words of all workers; zero, with a gradient of zero, if there is none.

    Raises:
        ValueError: the logits are not those of the masked words.
    """
    labels = masked_words[masked_words != NOT_PREDICTED]
    if len(word_logits) != len(labels):
        raise ValueError(
            f"{len(word_logits)} rows of word logits for {len(labels)} masked words; "
            "run the model with predict=batch.masked_words != NOT_PREDICTED"
        )
    count = sum_over_workers(word_logits.new_tensor(float(len(labels)))).clamp(min=1)
    loss: Tensor = F.cross_entropy(word_logits, labels, reduction="sum") * num_workers() / count
    return loss
