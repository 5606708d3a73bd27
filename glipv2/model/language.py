"""Text encoder before the fusion, and the text layer inside every block of the tower."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from glipv2.config import BERT_POSITIONS, ModelConfig

CLAMP = 50_000.0
"""The reference clamps attention scores and feed-forward values here, against overflow in half precision."""

MASKED = -10_000.0
"""Added to the score of a padded token. Finite, so that a text that is all padding gives numbers (reference)."""

NORM_EPS = 1e-12


class TextEncoder(nn.Module):
    """BERT or a CLIP-type transformer; the last layer's output is what the tower reads.

    It is not masked, except for a model without deep fusion, whose head reads it as it is (reference: ``embedded``).
    """

    def __init__(self, cfg: ModelConfig) -> None:
        """Build the encoder with random weights; see `glipv2.checkpoint` for trained ones."""
        super().__init__()
        self.masked = not cfg.deep_fusion
        self.bert = _bert(cfg) if cfg.text_encoder == "bert" else None
        self.clip = ClipText(cfg) if cfg.text_encoder == "clip" else None

    def forward(self, ids: Int[Tensor, "b t"], mask: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Encode token ids; padding (mask 0) never influences the valid positions."""
        if self.bert is not None:
            hidden: Tensor = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        else:
            assert self.clip is not None  # a configuration names one of the two
            hidden = self.clip(ids, mask)
        return hidden * mask[..., None] if self.masked else hidden


def _bert(cfg: ModelConfig) -> BertModel:
    bert = BertConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.text_dim,
        num_hidden_layers=cfg.text_layers,
        num_attention_heads=cfg.text_heads,
        intermediate_size=cfg.text_ffn_dim,
        max_position_embeddings=BERT_POSITIONS,
        hidden_dropout_prob=cfg.text_dropout,
        attention_probs_dropout_prob=cfg.text_dropout,
        layer_norm_eps=NORM_EPS,
    )
    model = BertModel(bert, add_pooling_layer=False)
    nn.init.normal_(model.embeddings.word_embeddings.weight, std=cfg.word_init_std)
    return model


class ClipText(nn.Module):
    """CLIP's pre-norm text transformer (GLIPv2-B and H, as in UniCL).

    DECISION: tokens attend in both directions, padding excepted, as in GLIP's own CLIP encoder. CLIP and UniCL train
    theirs causally, which leaves a name blind to what follows it; weights taken over from them have to get used to it.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        """Build the encoder with CLIP's initial spreads."""
        super().__init__()
        self.words = nn.Embedding(cfg.vocab_size, cfg.text_dim)
        self.positions = nn.Parameter(torch.empty(cfg.max_tokens, cfg.text_dim))
        self.layers = nn.ModuleList(
            PreNormLayer(cfg.text_dim, cfg.text_heads, cfg.text_ffn_dim, cfg.text_dropout)
            for _ in range(cfg.text_layers)
        )
        self.norm = nn.LayerNorm(cfg.text_dim)
        nn.init.normal_(self.words.weight, std=cfg.word_init_std)
        nn.init.normal_(self.positions, std=0.01)
        depth_scale = (2 * cfg.text_layers) ** -0.5  # keeps the residual stream's spread whatever the depth
        for name, parameter in self.layers.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("output.weight", "down.weight")):
                nn.init.normal_(parameter, std=cfg.text_dim**-0.5 * depth_scale)
            elif name.endswith(("qkv.weight", "up.weight")):
                nn.init.normal_(parameter, std=cfg.text_dim**-0.5)

    def forward(self, ids: Int[Tensor, "b t"], mask: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Encode token ids; at most ``max_tokens`` of them."""
        x = self.words(ids) + self.positions[: ids.shape[1]]
        bias = (1 - mask[:, None, None].to(x.dtype)) * MASKED
        for layer in self.layers:
            x = layer(x, bias)
        normed: Tensor = self.norm(x)
        return normed


class PreNormLayer(nn.Module):
    """One residual layer of CLIP's text transformer, with its approximate GELU."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, dropout: float) -> None:
        """Build the layer; every projection has a bias."""
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, ffn_dim), nn.Linear(ffn_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b t d"], bias: Float[Tensor, "b 1 1 t"]) -> Float[Tensor, "b t d"]:
        """Attend to every token whose ``bias`` is zero."""
        query, key, value = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        x = x + self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        hidden = self.up(self.ffn_norm(x))
        updated: Tensor = x + self.dropout(self.down(hidden * torch.sigmoid(1.702 * hidden)))
        return updated


class TextLayer(nn.Module):
    """One post-norm BERT layer on the fused text (reference: ``BertEncoderLayer`` in the tower)."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, dropout: float) -> None:
        """Build the layer; every projection has a bias."""
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))
        self.attention_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.up, self.down = nn.Linear(dim, ffn_dim), nn.Linear(ffn_dim, dim)
        self.output_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Float[Tensor, "b t d"], mask: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Let the valid tokens attend to each other."""
        query, key, value = (
            p(text).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.query, self.key, self.value)
        )
        scores = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).clamp(-CLAMP, CLAMP)
        scores = scores + (1.0 - mask[:, None, None].to(scores)) * MASKED
        attended = (self.dropout(scores.softmax(-1)) @ value).transpose(1, 2).flatten(2)
        text = self.attention_norm(text + self.dropout(self.output(attended)))
        hidden = F.gelu(self.up(text).clamp(-CLAMP, CLAMP)).clamp(-CLAMP, CLAMP)
        hidden = self.dropout(self.down(hidden).clamp(-CLAMP, CLAMP))
        normed: Tensor = self.output_norm(hidden + text)
        return normed.clamp(-CLAMP, CLAMP)
