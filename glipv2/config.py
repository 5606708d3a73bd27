"""Model sizes as data (GLIPv2 Table 8 and appendix C; numbers of the public GLIP where the paper is silent)."""

from dataclasses import dataclass, replace
from typing import Literal

BERT_POSITIONS = 512
"""Position vectors of every released BERT, used or not."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to rebuild a model; flat, so that ``ModelConfig(**saved)`` refuses unknown fields."""

    # Image encoder
    swin_embed_dim: int
    """Channels of the first Swin stage; doubled at each of the next three."""
    swin_depths: tuple[int, int, int, int]
    """Blocks per stage."""
    swin_num_heads: tuple[int, int, int, int]
    """Attention heads per stage."""
    swin_window: int
    """Window side in positions."""
    swin_conv_embed: bool
    """Overlapping convolutions instead of patch embedding and patch merging (CoSwin, of Florence)."""
    swin_drop_path: float
    """Largest stochastic depth rate (training only); grows linearly over the blocks."""
    channels: int
    """Width of the feature pyramid and of the dynamic head."""
    fpn_drop_block: float
    """DropBlock probability on the maps feeding P3 and P4 (training only; the reference uses 0.3)."""

    # Text encoder
    text_encoder: Literal["bert", "clip"]
    """``bert``: post-norm, WordPiece; ``clip``: pre-norm, byte-pair encoding."""
    vocab_size: int
    """Entries of the vocabulary."""
    text_dim: int
    """Width of the text encoder and of the text layers in the tower."""
    text_layers: int
    """Layers of the text encoder."""
    text_heads: int
    """Attention heads of the text encoder and of the text layers."""
    text_ffn_dim: int
    """Hidden width of the text feed-forward layers."""
    max_tokens: int
    """Longest prompt in tokens, start and end tokens included; longer text is cut."""
    text_dropout: float
    """Dropout in the text encoder and the text layers (training only)."""
    word_init_std: float
    """Spread of untrained word vectors. BERT's 0.02 leaves words hardly apart beside their positions, so a model
    trained from nothing first learns groups of alike objects as one word; 0.2 keeps words apart from the start."""

    # Tower and head
    num_blocks: int
    """Blocks of {fusion, text layer, dynamic convolution}."""
    deep_fusion: bool
    """Without it a block is only its dynamic convolution: image and text first meet in the head (GLIP-T (A))."""
    fusion_dim: int
    """Width of the joint embedding of the fusion, all heads together."""
    fusion_heads: int
    """Heads of the fusion."""
    fusion_dropout: float
    """Dropout on both attention maps of the fusion (training only)."""
    group_norm_groups: int
    """Groups of the GroupNorm after each deformable convolution."""
    anchor_scale: float
    """Side of the square anchor in strides. The released models use 8; small pictures do better with 4."""

    # Heads that only training uses
    contrast: Literal["none", "paper", "reference"]
    """Inter-image contrast (L_inter): words before the fusion as the paper has it, or the reference's fused ones."""
    contrast_dim: int
    """Width of the space in which regions and words of different images are compared."""
    word_head: bool
    """Predict masked words from the fused text (L_mlm)."""

    # Images
    min_size_px: int
    """Short side an image is resized to."""
    max_size_px: int
    """Longest side allowed; it wins over ``min_size_px``."""
    pad_multiple_px: int
    """Batches are padded right and bottom to a multiple of this."""

    def __post_init__(self) -> None:
        """Check what would otherwise fail far from its cause."""
        for name, width, parts in (
            ("text_dim", self.text_dim, self.text_heads),
            ("fusion_dim", self.fusion_dim, self.fusion_heads),
            ("channels", self.channels, self.group_norm_groups),
            *((f"stage {i} of Swin", self.swin_embed_dim * 2**i, heads) for i, heads in enumerate(self.swin_num_heads)),
        ):
            if width % parts:
                raise ValueError(f"{name} is {width}, which {parts} heads or groups do not divide; choose a multiple")
        for name in ("swin_window", "num_blocks", "max_tokens", "min_size_px", "pad_multiple_px", "contrast_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.text_encoder == "bert" and self.max_tokens > BERT_POSITIONS:
            raise ValueError(f"max_tokens is {self.max_tokens}, but BERT has {BERT_POSITIONS} positions; give fewer")
        if self.min_size_px > self.max_size_px:
            raise ValueError(f"min_size_px {self.min_size_px} exceeds max_size_px {self.max_size_px}; raise the latter")

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of P3 to P7 in pixels."""
        return (8, 16, 32, 64, 128)


def nano(vocab_size: int = 30522) -> ModelConfig:
    """Build the smallest model of the true structure: trains on two CPU cores in minutes, for demos and tests.

    3.9 M parameters with 30,522 tokens, 2.0 M of them the word vectors.
    """
    return ModelConfig(
        swin_embed_dim=32,
        swin_depths=(1, 1, 2, 1),
        swin_num_heads=(2, 4, 4, 8),
        swin_window=8,
        swin_conv_embed=False,
        swin_drop_path=0.0,
        channels=64,
        fpn_drop_block=0.0,
        text_encoder="bert",
        vocab_size=vocab_size,
        text_dim=64,
        text_layers=2,
        text_heads=4,
        text_ffn_dim=128,
        max_tokens=128,
        text_dropout=0.0,
        word_init_std=0.2,
        num_blocks=1,
        deep_fusion=True,
        fusion_dim=128,
        fusion_heads=4,
        fusion_dropout=0.0,
        group_norm_groups=16,
        anchor_scale=4.0,
        contrast="none",
        contrast_dim=32,
        word_head=False,
        min_size_px=128,
        max_size_px=128,
        pad_multiple_px=32,
    )


def glip_t() -> ModelConfig:
    """GLIP-T (B and C): Swin-T, BERT-base, six blocks. 231.8 M parameters, as released.

    The stochastic rates are those the reference trains with; they change no evaluation.
    """
    return ModelConfig(
        swin_embed_dim=96,
        swin_depths=(2, 2, 6, 2),
        swin_num_heads=(3, 6, 12, 24),
        swin_window=7,
        swin_conv_embed=False,
        swin_drop_path=0.2,
        channels=256,
        fpn_drop_block=0.3,
        text_encoder="bert",
        vocab_size=30522,
        text_dim=768,
        text_layers=12,
        text_heads=12,
        text_ffn_dim=3072,
        max_tokens=256,
        text_dropout=0.1,
        word_init_std=0.02,
        num_blocks=6,
        deep_fusion=True,
        fusion_dim=2048,
        fusion_heads=8,
        fusion_dropout=0.1,
        group_norm_groups=16,
        anchor_scale=8.0,
        contrast="none",
        contrast_dim=64,
        word_head=False,
        min_size_px=800,
        max_size_px=1333,
        pad_multiple_px=32,
    )


def glip_t_a() -> ModelConfig:
    """GLIP-T (A): GLIP-T without deep fusion. 151.4 M parameters, as released."""
    return replace(glip_t(), deep_fusion=False)


def glip_l() -> ModelConfig:
    """GLIP-L: Swin-L, BERT-base, eight blocks. 430.4 M parameters, as released."""
    return replace(
        glip_t(),
        swin_embed_dim=192,
        swin_depths=(2, 2, 18, 2),
        swin_num_heads=(6, 12, 24, 48),
        swin_window=12,
        swin_drop_path=0.4,
        num_blocks=8,
    )


def t() -> ModelConfig:
    """GLIPv2-T: GLIP-T with the heads of both losses GLIPv2 adds (Table 8). 255.9 M parameters.

    24.1 M of them are in those heads, which only training uses. DECISION: L_inter compares in 64 dimensions as in the
    reference; the paper names no width.
    """
    return replace(glip_t(), contrast="paper", word_head=True)


def b() -> ModelConfig:
    """GLIPv2-B: Swin-B and a CLIP-type text encoder (Table 8, appendix C). 257.6 M parameters.

    The text encoder is UniCL's, which initialises it: 12 pre-norm layers of width 512, with 256 positions where UniCL
    has 77. DECISIONs, as the paper is silent: window 7 as UniCL's Swin-B; eight blocks, stochastic depth and dropout as
    GLIP-L; fusion as wide as in every released model, and the tower's text layers post-norm as there.
    """
    return replace(
        t(),
        swin_embed_dim=128,
        swin_depths=(2, 2, 18, 2),
        swin_num_heads=(4, 8, 16, 32),
        swin_drop_path=0.4,
        text_encoder="clip",
        vocab_size=49408,
        text_dim=512,
        text_heads=8,
        text_ffn_dim=2048,
        num_blocks=8,
    )


def h() -> ModelConfig:
    """GLIPv2-H: CoSwin-H and Florence's text encoder (Table 8, appendix C). 1157.2 M parameters.

    Florence (arXiv 2111.11432) publishes totals only: 637 M for CoSwin-H, a Swin-Huge with convolutional embedding,
    and 256 M for the text encoder, 12 layers like CLIP's. DECISION: Swin-Huge's width 352 with heads of 32 and GLIP-L's
    window 12; its third stage has 16 blocks instead of 18, which comes nearest (633.6 M; 18 blocks would be 681.3 M).
    The text encoder is 1152 wide with heads of 64 (248.5 M). All else as in `b`.
    """
    return replace(
        b(),
        swin_embed_dim=352,
        swin_depths=(2, 2, 16, 2),
        swin_num_heads=(11, 22, 44, 88),
        swin_window=12,
        swin_conv_embed=True,
        text_dim=1152,
        text_heads=18,
        text_ffn_dim=4608,
    )
