"""GLIP-T on a GPU in bfloat16: latency and images per second at three batch sizes, plain and compiled."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from glipv2.model.glipv2 import GLIPv2
from tests.bench.timing import Results
from tests.bench.whole_model import detect, make_picture, make_text

BATCHES = (1, 8, 16)
TOKENS = 256


@torch.no_grad()
def measure_gpu(model: GLIPv2, results: Results, device: torch.device, repeats: int = 10) -> None:
    """Time what `Predictor` does with a batch: text in single precision, the rest in bfloat16, boxes at the end."""
    model = model.to(device)
    print(f"GLIP-T in bfloat16 on {torch.cuda.get_device_name(device)}, 800 x 1216, {TOKENS} tokens")
    for name, wrap in (("plain", lambda function: function), ("compiled", torch.compile)):
        encode, fuse = wrap(model.encode_image), wrap(model.fuse)

        def run(pixels: Tensor, ids: Tensor, mask: Tensor, encode: Callable = encode, fuse: Callable = fuse) -> None:
            text = model.encode_text(ids, mask)
            with torch.autocast("cuda", torch.bfloat16):
                regions = fuse(encode(pixels), text, mask)
            detect(model, regions, TOKENS)

        for batch in BATCHES:
            ids, mask = (x.expand(batch, -1).to(device) for x in make_text(TOKENS))
            pixels = make_picture().expand(batch, -1, -1, -1).contiguous().to(device)
            seconds = _seconds(lambda run=run, given=(pixels, ids, mask): run(*given), repeats)
            results.say(f"gpu.{name}.{batch}.latency_ms", 1000 * seconds, f"{name}, batch {batch}: latency", " ms")
            results.say(
                f"gpu.{name}.{batch}.images_per_s", batch / seconds, f"{name}, batch {batch}: images per second"
            )


def _seconds(function: Callable[[], None], repeats: int) -> float:
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    before = time.perf_counter()
    for _ in range(repeats):
        function()
    torch.cuda.synchronize()
    return (time.perf_counter() - before) / repeats
