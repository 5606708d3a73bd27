"""Feature pyramid P3 to P7 (GLIP reference: 1x1 laterals, 3x3 outputs, two extra strided levels)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import drop_block2d

DROP_BLOCK_SIZE = 3


class FeaturePyramid(nn.Module):
    """Turn the maps of strides 8, 16 and 32 into five maps of one width."""

    def __init__(self, in_channels: tuple[int, ...], channels: int, drop_block: float) -> None:
        """Build laterals and outputs; ``drop_block`` acts in training on the maps feeding P3 and P4."""
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.drop_block = drop_block
        for conv in (*self.laterals, *self.outputs, self.p6, self.p7):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.constant_(conv.get_parameter("bias"), 0.0)

    def forward(self, maps: list[Float[Tensor, "b _c _h _w"]]) -> list[Float[Tensor, "b c _h _w"]]:
        """Return P3 to P7; every level is half the previous one, rounded up."""
        merged = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for level in (1, 0):
            merged[level] = merged[level] + F.interpolate(merged[level + 1], size=merged[level].shape[2:])
        p3, p4, p5 = (
            # The un-dropped map goes down the pyramid; the top one is never dropped.
            output(self._drop(x) if level < 2 else x)
            for level, (output, x) in enumerate(zip(self.outputs, merged, strict=True))
        )
        p6 = _halve(self.p6, p5)
        return [p3, p4, p5, p6, _halve(self.p7, F.relu(p6))]

    def _drop(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        block = (
            DROP_BLOCK_SIZE if min(x.shape[2:]) >= DROP_BLOCK_SIZE else 1
        )  # a very thin picture has no room for more
        dropped: Tensor = drop_block2d(x, self.drop_block, block, training=self.training)
        return dropped


@torch.autocast("cpu", enabled=False)
def _halve(conv: nn.Conv2d, x: Float[Tensor, "b c _h _w"]) -> Float[Tensor, "b c _h _w"]:
    """Convolve, on a processor always in single precision.

    In bfloat16 oneDNN's gradient of strided kernels on maps of a few positions was now and then not a number (torch
    2.15, a Xeon with AVX512_BF16, 2026-11-28). These maps are the smallest there are, so nothing is lost by it.
    """
    if x.device.type != "cpu":
        whole: Tensor = conv(x)
        return whole
    halved: Tensor = conv(x.to(conv.weight.dtype)).to(x.dtype)
    return halved
