"""The gathered deformable convolution against torchvision's operator."""

import torch
from torchvision.ops import deform_conv2d

from glipv2.model.deform import TAPS, gathered_deform_conv
from tests.bench.timing import Results, ratio


def compare_deform_conv(results: Results) -> None:
    """Time forward and backward of both operators on maps of three sizes."""
    print("deformable convolution, 4 images, gathered: times faster than torchvision's")
    for channels, side in ((64, 16), (256, 25), (256, 50)):
        x = torch.randn(4, channels, side, side, requires_grad=True)
        offset = torch.randn(4, 2 * TAPS, side, side, requires_grad=True)
        mask = torch.rand(4, TAPS, side, side, requires_grad=True)
        weight = torch.randn(channels, channels, 3, 3, requires_grad=True)
        arguments = (x, offset, mask, weight, torch.zeros(channels, requires_grad=True))
        forward = ratio(lambda a=arguments: _theirs(*a), lambda a=arguments: gathered_deform_conv(*a, 1))
        both = ratio(
            lambda a=arguments: _theirs(*a).sum().backward(),
            lambda a=arguments: gathered_deform_conv(*a, 1).sum().backward(),
        )
        key, text = f"deform.{channels}x{side}", f"{channels} channels, {side} x {side}"
        results.say(f"{key}.forward", forward, f"{text}: forward")
        results.say(f"{key}.both", both, f"{text}: forward + backward")


def _theirs(
    x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    out: torch.Tensor = deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)
    return out
