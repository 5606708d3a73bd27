"""Deep fusion of image and text: bidirectional multi-head attention (GLIP, "MHA-B"; GLIPv2 section 3.1).

The reference projects all 20,000 positions of a pyramid to 2048 channels three times. A prompt has at most 256 tokens,
so here every projection of the image is *folded* into the tokens: with query q = W v + b, the logit q.k of a position
is v.(W'k) + b.k, and a value projection can wait until the positions are summed up. The numbers are the same, half the
arithmetic is gone (for short prompts nearly all), and no tensor of positions x 2048 channels exists any more.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

CLAMP = 50_000.0
"""The reference clamps attention logits here, against overflow in half precision."""
PADDING = -9e15
"""What the reference adds to the logits of text padding (and +1 to all others, which no softmax sees)."""
CHUNK = 1024
"""Positions whose logits for 256 tokens and 8 heads (8 MB) stay in a processor's cache."""
SMALLEST_SUM = 1e-30
"""A token whose logits all lie some 69 below the highest one of its head is left to the general way."""
MARGIN = 200.0
"""Below ``MARGIN - CLAMP`` the clamp could show; above it an exponential of what it cuts off is zero anyway."""


class Fusion(nn.Module):
    """Let all positions of the pyramid and all tokens look at each other once.

    One logit matrix serves both directions. The normalised inputs are also the base of the residual, as in the
    reference: the un-normalised ones are discarded.
    """

    def __init__(self, image_dim: int, text_dim: int, dim: int, heads: int, dropout: float, scale: float) -> None:
        """Build the projections.

        Args:
            image_dim: width of the pyramid.
            text_dim: width of the text.
            dim: width of the joint embedding, all heads together.
            heads: number of heads.
            dropout: on both attention maps, in training.
            scale: initial layer scale; the reference uses one over the number of blocks.
        """
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.image_norm, self.text_norm = nn.LayerNorm(image_dim), nn.LayerNorm(text_dim)
        self.image_query, self.image_value = nn.Linear(image_dim, dim), nn.Linear(image_dim, dim)
        self.text_key, self.text_value = nn.Linear(text_dim, dim), nn.Linear(text_dim, dim)
        self.image_output, self.text_output = nn.Linear(dim, image_dim), nn.Linear(dim, text_dim)
        self.image_scale = nn.Parameter(torch.full((image_dim,), scale))
        self.text_scale = nn.Parameter(torch.full((text_dim,), scale))
        self.dropout = nn.Dropout(dropout)
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.constant_(module.get_parameter("bias"), 0.0)

    def forward(
        self, image: Float[Tensor, "b a c"], text: Float[Tensor, "b t d"], mask: Int[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b a c"], Float[Tensor, "b t d"]]:
        """Update both streams. Text padding is masked for the image; image padding is masked nowhere (reference)."""
        image, text = self.image_norm(image), self.text_norm(text)
        keys, key_bias, values = self._fold(text)
        padding = torch.where(mask > 0, 0.0, PADDING).to(key_bias)
        seen = None
        if image.device.type == "cpu" and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
            seen = _attend_in_chunks(image, keys, key_bias, values, padding)
        if seen is None:
            seen = _attend(image, keys, key_bias, values, padding, self.dropout)
        image_update, text_sum, text_weight = seen

        # Rows of the text's attention sum to one (unless dropped out), so the value bias comes in by their sum.
        weight = self.image_value.weight.unflatten(0, (self.heads, self.head_dim))
        bias = self.image_value.bias.view(self.heads, self.head_dim)
        heard = torch.einsum("bhtc,hec->bthe", text_sum, weight) + text_weight.transpose(1, 2)[..., None] * bias
        return (
            torch.addcmul(image, image_update + self.image_output.bias, self.image_scale),
            text + self.text_scale * self.text_output(heard.flatten(2)),
        )

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def _fold(
        self, text: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b h t c"], Float[Tensor, "b h t"], Float[Tensor, "b h t c"]]:
        """Move the image's query and output projections onto the tokens: keys, their biases, and values."""
        text = text.to(self.text_key.weight.dtype)
        key = self.text_key(text).unflatten(-1, (self.heads, self.head_dim)) * self.head_dim**-0.5
        value = self.text_value(text).unflatten(-1, (self.heads, self.head_dim))
        query_weight = self.image_query.weight.unflatten(0, (self.heads, self.head_dim))
        query_bias = self.image_query.bias.view(self.heads, self.head_dim)
        output_weight = self.image_output.weight.unflatten(1, (self.heads, self.head_dim))
        return (
            torch.einsum("bthe,hec->bhtc", key, query_weight),
            torch.einsum("bthe,he->bht", key, query_bias),
            torch.einsum("bthe,che->bhtc", value, output_weight),
        )


Seen = tuple[Float[Tensor, "b a c"], Float[Tensor, "b h t c"], Float[Tensor, "b h t"]]
"""What the image takes from the text; per token, what it takes from the image; and how much weight it gave in all."""


def _attend(
    image: Float[Tensor, "b a c"],
    keys: Float[Tensor, "b h t c"],
    key_bias: Float[Tensor, "b h t"],
    values: Float[Tensor, "b h t c"],
    padding: Float[Tensor, "b t"],
    dropout: nn.Dropout,
) -> Seen:
    """Attend both ways with both attention maps in memory: for training, and where the processor is a GPU."""
    heads, tokens = keys.shape[1:3]
    logits = _logits(image, keys, key_bias)
    to_image = dropout((logits + padding[:, None, None]).softmax(-1))
    # The reference takes off the maximum and clamps once more; what that cuts off is zero in any softmax.
    to_text = dropout(logits.softmax(1))
    image_update = to_image.flatten(2) @ values.flatten(1, 2)
    text_sum = to_text.flatten(2).transpose(1, 2) @ image
    return image_update, text_sum.unflatten(1, (heads, tokens)), to_text.sum(1)


@torch.autocast("cuda", enabled=False)
@torch.autocast("cpu", enabled=False)
def _logits(
    image: Float[Tensor, "b a c"], keys: Float[Tensor, "b h t c"], key_bias: Float[Tensor, "b h t"]
) -> Float[Tensor, "b a h t"]:
    """Compare every position with every token; in half precision a logit of 100 would be off by a quarter."""
    logits = torch.baddbmm(key_bias.flatten(1)[:, None], image.to(keys.dtype), keys.flatten(1, 2).transpose(1, 2))
    clamped: Tensor = logits.clamp(-CLAMP, CLAMP)
    return clamped.view(*clamped.shape[:2], *keys.shape[1:3])


def _attend_in_chunks(
    image: Float[Tensor, "b a c"],
    keys: Float[Tensor, "b h t c"],
    key_bias: Float[Tensor, "b h t"],
    values: Float[Tensor, "b h t c"],
    padding: Float[Tensor, "b t"],
) -> Seen | None:
    """Attend both ways with one exponential per logit and nothing of the size of an attention map in memory.

    Positions come in chunks. A chunk's exponentials, shifted by each position's highest logit, are the image's
    attention; scaled back to the highest logit of the head so far, they add to the text's. None where that would not
    be exact: logits beyond the clamp, a token far below all others, or a text of nothing but padding.
    """
    pairs = [_attend_one(*one) for one in zip(image, keys, key_bias, values, padding, strict=True)]
    if any(pair is None for pair in pairs):
        return None
    updates, sums = zip(*(pair for pair in pairs if pair is not None), strict=True)
    text_sum = torch.stack(sums)
    return torch.stack(updates), text_sum, text_sum.new_ones(text_sum.shape[:3])


def _attend_one(
    image: Float[Tensor, "a c"],
    keys: Float[Tensor, "h t c"],
    key_bias: Float[Tensor, "h t"],
    values: Float[Tensor, "h t c"],
    padding: Float[Tensor, " t"],
) -> tuple[Float[Tensor, "a c"], Float[Tensor, "h t c"]] | None:
    heads, tokens, channels = keys.shape
    key, value = keys.reshape(-1, channels).T.contiguous(), values.reshape(-1, channels)
    bias = (key_bias + padding).view(1, -1)
    update, text_sum, text_weight = torch.empty_like(image), torch.zeros_like(value), bias.new_zeros(heads, tokens)
    highest, lowest = bias.new_full((heads, 1), -CLAMP), bias.new_full((), CLAMP)
    for part, into in zip(image.split(CHUNK), update.split(CHUNK), strict=True):
        logits = torch.addmm(bias, part, key).view(-1, heads, tokens)
        peak = logits.amax(2, keepdim=True)
        attention = logits.sub_(peak).exp_()
        norm = attention.sum(2, keepdim=True)
        torch.mm(attention.div_(norm).flatten(1), value, out=into)

        before, highest = highest, torch.maximum(highest, peak.amax(0))
        attention.mul_(norm * (peak - highest).exp())
        shrink = (before - highest).exp()
        text_weight = text_weight * shrink + attention.sum(0)
        text_sum.view(heads, tokens, -1).mul_(shrink[..., None])
        text_sum.addmm_(attention.flatten(1).T, part)
        lowest = torch.minimum(lowest, peak.amin())
    exact = (highest <= CLAMP).all() & (lowest > MARGIN - CLAMP) & (text_weight[:, padding == 0] > SMALLEST_SUM).all()
    if not exact:
        return None
    return update, text_sum.view(heads, tokens, -1) / text_weight.clamp(min=SMALLEST_SUM)[..., None]
