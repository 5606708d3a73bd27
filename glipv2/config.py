"""Model sizes as data (GLIPv2 Table 8 and appendix C; numbers of the public GLIP where the paper is silent)."""

from dataclasses import dataclass
from typing import Literal


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
        ):
            if width % parts:
                raise ValueError(f"{name} is {width}, which {parts} heads or groups do not divide; choose a multiple")
        if self.min_size_px > self.max_size_px:
            raise ValueError(f"min_size_px {self.min_size_px} exceeds max_size_px {self.max_size_px}; raise the latter")

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of P3 to P7 in pixels."""
        return (8, 16, 32, 64, 128)


def nano(vocab_size: int = 30522) -> ModelConfig:
    """Build the smallest model of the true structure: trains on two CPU cores in minutes, for demos and tests."""
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
