"""Speed as ratios, measured in one run: ``make bench``. Times are CPU seconds of one thread, medians of several."""

import statistics
import time
from collections.abc import Callable

import torch
from torchvision.ops import deform_conv2d

from glipv2.config import nano
from glipv2.model.deform import TAPS, gathered_deform_conv
from glipv2.model.glipv2 import GLIPv2

REPEATS = 7


def main() -> None:
    """Print every comparison."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("deformable convolution, gathered against torchvision's (one thread)")
    for channels, side in ((64, 16), (256, 25), (256, 50)):
        compare_deform_conv(channels, side)
    print("\nvocabulary in chunks: image encoded once against once per prompt (nano, 128 px, 8 prompts)")
    compare_chunks()


def compare_deform_conv(channels: int, side: int) -> None:
    """Time forward and backward of both operators on one map."""
    x = torch.randn(4, channels, side, side, requires_grad=True)
    offset = torch.randn(4, 2 * TAPS, side, side, requires_grad=True)
    mask = torch.rand(4, TAPS, side, side, requires_grad=True)
    weight = torch.randn(channels, channels, 3, 3, requires_grad=True)
    bias = torch.zeros(channels, requires_grad=True)
    ours = lambda: gathered_deform_conv(x, offset, mask, weight, bias, 1)  # noqa: E731 - two spellings of one call
    theirs = lambda: deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)  # noqa: E731 - as above
    worst = (ours() - theirs()).abs().max() / theirs().abs().max()
    forward = ratio(theirs, ours)
    both = ratio(lambda: theirs().sum().backward(), lambda: ours().sum().backward())
    print(f"  {channels:4} channels, {side:3} px: forward {forward:5.2f} x, with backward {both:5.2f} x faster; "
          f"largest difference {worst:.0e}")  # fmt: skip


def compare_chunks() -> None:
    """Time eight prompts on one image with and without the split forward."""
    model = GLIPv2(nano(200)).eval()
    pixels = torch.randn(1, 3, 128, 128)
    ids, mask = torch.randint(5, 200, (1, 40)), torch.ones(1, 40, dtype=torch.long)

    def whole() -> None:
        for _ in range(8):
            model(pixels, ids, mask)

    def split() -> None:
        pyramid = model.encode_image(pixels)
        for _ in range(8):
            model.fuse(pyramid, model.encode_text(ids, mask), mask)

    with torch.inference_mode():
        print(f"  {ratio(whole, split):.2f} x faster")


def ratio(slow: Callable[[], object], fast: Callable[[], object]) -> float:
    """Divide the median CPU times of two functions, run in turn so that both see the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(REPEATS + 1):
        for function, spent in zip((slow, fast), times, strict=True):
            before = time.process_time()
            function()
            if run:  # the first one warms up
                spent.append(time.process_time() - before)
    return statistics.median(times[0]) / statistics.median(times[1])


if __name__ == "__main__":
    main()
