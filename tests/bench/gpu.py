"""GLIP-T on a GPU in bfloat16: latency and images per second at three batch sizes, plain and compiled."""

import time

import torch
from torch import Tensor, nn

from glipv2.model.glipv2 import GLIPv2
from tests.bench.timing import Results
from tests.bench.whole_model import make_picture, make_text

BATCHES = (1, 8, 16)
TOKENS = 256


@torch.inference_mode()
def measure_gpu(model: GLIPv2, results: Results, device: torch.device, repeats: int = 10) -> None:
    """Print nothing but what this device did; the model is moved there."""
    model = model.to(device)
    print(f"GLIP-T in bfloat16 on {torch.cuda.get_device_name(device)}, 800 x 1216, {TOKENS} tokens")
    for name, network in (("plain", model), ("compiled", torch.compile(model))):
        for batch in BATCHES:
            ids, mask = (x.expand(batch, -1).to(device) for x in make_text(TOKENS))
            pixels = make_picture().expand(batch, -1, -1, -1).contiguous().to(device)
            seconds = _seconds(network, (pixels, ids, mask), repeats)
            results.say(f"gpu.{name}.{batch}.latency_ms", 1000 * seconds, f"{name}, batch {batch}: latency", " ms")
            results.say(
                f"gpu.{name}.{batch}.images_per_s", batch / seconds, f"{name}, batch {batch}: images per second"
            )


def _seconds(network: nn.Module, arguments: tuple[Tensor, ...], repeats: int) -> float:
    with torch.autocast("cuda", torch.bfloat16):
        for _ in range(3):
            network(*arguments)
        torch.cuda.synchronize()
        before = time.perf_counter()
        for _ in range(repeats):
            network(*arguments)
        torch.cuda.synchronize()
    return (time.perf_counter() - before) / repeats
