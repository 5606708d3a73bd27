"""Text encoder before the fusion, and the text layer inside every block of the tower."""

import math

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from glipv2.config import ModelConfig

CLAMP = 50_000.0
"""The reference clamps attention scores and feed-forward values here, against overflow in half precision."""

NORM_EPS = 1e-12


class TextEncoder(nn.Module):
    """BERT without its pooler; the last layer's output, unmasked, is what the tower reads."""

    def __init__(self, cfg: ModelConfig) -> None:
        """Build BERT with random weights; see `glipv2.checkpoint` for trained ones."""
        super().__init__()
        bert = BertConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.text_dim,
            num_hidden_layers=cfg.text_layers,
            num_attention_heads=cfg.text_heads,
            intermediate_size=cfg.text_ffn_dim,
            max_position_embeddings=512,
            hidden_dropout_prob=cfg.text_dropout,
            attention_probs_dropout_prob=cfg.text_dropout,
            layer_norm_eps=NORM_EPS,
        )
        self.bert = BertModel(bert, add_pooling_layer=False)
        nn.init.normal_(self.bert.embeddings.word_embeddings.weight, std=cfg.word_init_std)

    def forward(self, ids: Int[Tensor, "b t"], mask: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Encode token ids; padding (mask 0) never influences the valid positions."""
        hidden: Tensor = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden


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
        scores = scores + (1.0 - mask[:, None, None].to(scores)) * -10_000.0
        attended = (self.dropout(scores.softmax(-1)) @ value).transpose(1, 2).flatten(2)
        text = self.attention_norm(text + self.dropout(self.output(attended)))
        hidden = F.gelu(self.up(text).clamp(-CLAMP, CLAMP)).clamp(-CLAMP, CLAMP)
        hidden = self.dropout(self.down(hidden).clamp(-CLAMP, CLAMP))
        normed: Tensor = self.output_norm(hidden + text)
        return normed.clamp(-CLAMP, CLAMP)
