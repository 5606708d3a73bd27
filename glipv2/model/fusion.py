"""Deep fusion of image and text: bidirectional multi-head attention (GLIP, "MHA-B"; GLIPv2 section 3.1)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

CLAMP = 50_000.0
"""The reference clamps attention logits here, against overflow in half precision."""


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
        query = self._split(self.image_query(image)) * self.head_dim**-0.5
        logits = (query @ self._split(self.text_key(text)).transpose(-1, -2)).clamp(-CLAMP, CLAMP)  # b heads a t

        to_text = logits.transpose(-1, -2)
        to_text = (to_text - to_text.amax(-1, keepdim=True)).clamp(-CLAMP, CLAMP).softmax(-1)
        to_image = (logits + torch.where(mask > 0, 1.0, -9e15)[:, None, None].to(logits)).softmax(-1)

        image_update = self._merge(self.dropout(to_image) @ self._split(self.text_value(text)))
        text_update = self._merge(self.dropout(to_text) @ self._split(self.image_value(image)))
        return (
            image + self.image_scale * self.image_output(image_update),
            text + self.text_scale * self.text_output(text_update),
        )

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        return heads

    def _merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)
