"""The full-size GLIP-T on one picture: where its time goes, against what a user would pick instead, and memory."""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from glipv2.config import ModelConfig, glip_t
from glipv2.inference.postprocess import PostprocessConfig, postprocess
from glipv2.losses.criterion import Criterion
from glipv2.model.glipv2 import GLIPv2
from glipv2.model.heads import Regions
from glipv2.sample import NOT_PREDICTED, Batch, Target
from tests.bench.reference_way import pad_text, reference_way
from tests.bench.timing import Results, cpu_seconds, peak_gb, timed

HEIGHT, WIDTH = 800, 1216
SAME = 1e-3
"""Largest difference of a logit that rounding may make."""
TOKENS_PER_NAME = 3.3
"""Of LVIS's names with their separators under BERT's vocabulary."""


def make_model() -> GLIPv2:
    torch.manual_seed(0)
    model = GLIPv2(glip_t()).eval()
    for block in model.tower:  # random weights hardly displace anything; a trained head does
        torch.nn.init.normal_(block.dynamic_conv.offset.weight, std=0.02)
    return model


def make_picture(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def make_text(tokens: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1000, 30000, (1, tokens), generator=torch.Generator().manual_seed(2))
    return ids, torch.ones_like(ids)


def names_in(tokens: int) -> list[list[int]]:
    """Share the positions between start and end token out among names of three tokens and a separator."""
    count = int((tokens - 2) / TOKENS_PER_NAME)
    return [list(range(begin, begin + 2)) for begin in (1 + int(i * TOKENS_PER_NAME) for i in range(count))]


def detect(model: GLIPv2, regions: Regions, tokens: int) -> object:
    """Postprocess a batch with thousands of candidates, as a trained model gives: an untrained one is unsure of all."""
    images = len(regions.alignment)
    cfg = PostprocessConfig(min_class_score=0.0102)
    return postprocess(regions, [names_in(tokens)] * images, [(WIDTH, HEIGHT)] * images, model.cfg, cfg)


@torch.inference_mode()
def compare_with_grounding_dino(model: GLIPv2, results: Results, repeats: int) -> None:
    """Split our time, and set the whole beside Grounding DINO's (Swin-T, random weights) in the same run."""
    dino, pixels = make_grounding_dino(), make_picture()
    for tokens in (256, 40):
        ids, mask = make_text(tokens)
        print(f"GLIP-T, {HEIGHT} x {WIDTH}, {tokens} tokens (CPU seconds, {torch.get_num_threads()} threads)")
        image_s, pyramid = timed(partial(model.encode_image, pixels), repeats)
        text_s, text = timed(partial(model.encode_text, ids, mask), repeats)
        fuse_s, regions = timed(partial(model.fuse, pyramid, text, mask), repeats)
        post_s, _ = timed(partial(detect, model, regions, tokens), repeats)
        ours = image_s + text_s + fuse_s + post_s
        for name, seconds in (
            ("backbone", image_s),
            ("text", text_s),
            ("fusion_head", fuse_s),
            ("postprocess", post_s),
        ):
            results.say(f"glip_t.{tokens}.{name}_s", seconds, name, " s")
        theirs, _ = timed(partial(dino, pixels, ids, mask), repeats)
        results.say(f"glip_t.{tokens}.total_s", ours, "all", " s")
        results.say(
            f"grounding_dino.{tokens}.total_s", theirs, "Grounding DINO (Swin-T), same picture and tokens", " s"
        )
        results.say(f"glip_t.{tokens}.of_grounding_dino", ours / theirs, "ours / Grounding DINO")


def make_grounding_dino() -> Callable[[Tensor, Tensor, Tensor], object]:
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    start, end, separator, every = 101, 102, 1012, 4
    torch.manual_seed(0)
    model = GroundingDinoForObjectDetection(GroundingDinoConfig()).eval()

    def run(pixels: Tensor, ids: Tensor, mask: Tensor) -> object:
        ids = ids.clone()
        ids[0, every::every] = separator
        ids[0, 0], ids[0, -1] = start, end
        return model(pixels, input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids))

    return run


@torch.inference_mode()
def compare_with_reference_way(model: GLIPv2, results: Results, num_prompts: int) -> None:
    """Find 31 x 40 names in one picture: the image encoded once, texts trimmed, fusion and convolution rewritten.

    Both ways take turns, prompt by prompt, so that both see the same machine.
    """
    pixels = make_picture()
    forty, full = round(40 * TOKENS_PER_NAME) + 2, 256
    pyramid = model.encode_image(pixels)

    def ours(tokens: int) -> Regions:
        ids, mask = make_text(tokens)
        regions = model.fuse(pyramid, model.encode_text(ids, mask), mask)
        detect(model, regions, tokens)
        return regions

    def theirs() -> Regions:
        ids, mask = pad_text(*make_text(forty))
        with reference_way():
            regions = model(pixels, ids, mask).regions
        detect(model, regions, forty)
        return regions

    print(f"31 prompts of 40 names on one picture; medians of {num_prompts} prompts (CPU seconds)")
    worst = (ours(forty).alignment - theirs().alignment[..., :forty]).abs().max().item()
    if worst > SAME:
        raise AssertionError(f"the two ways differ by {worst:.1e}, so their times compare nothing")
    print(f"  largest difference of a logit: {worst:.0e}")
    ways = (theirs, partial(ours, forty), partial(ours, full), partial(model.encode_image, pixels))
    rounds = [[cpu_seconds(way, warm=0) for way in ways] for _ in range(num_prompts)]
    reference, short, long, image = (statistics.median(times) for times in zip(*rounds, strict=True))
    results.say("reference_way.per_prompt_s", reference, "the reference's way, per prompt", " s")
    results.say("vocabulary.image_s", image, "ours: the image, once", " s")
    for key, seconds, names in (("forty", short, 40), ("packed", long, len(names_in(full)))):
        whole = image + 31 * 40 / names * seconds  # a last prompt that is not full costs less
        results.say(f"vocabulary.{key}.per_prompt_s", seconds, f"ours, {names} names in a prompt: per prompt", " s")
        results.say(f"vocabulary.{key}.times_faster", 31 * reference / whole, "  all 1240 names: times faster")


def compare_training(model: GLIPv2, results: Results) -> None:
    """Time forward and backward with the losses at half the side, both ways."""
    batch = _training_batch(model.cfg, HEIGHT // 2, WIDTH // 2, 256)
    criterion = Criterion(model.cfg)

    def step() -> None:
        losses = criterion(model(batch.pixels, batch.ids, batch.mask), batch)
        torch.stack(list(losses.values())).sum().backward()
        model.zero_grad(set_to_none=True)

    print(f"forward + backward, {HEIGHT // 2} x {WIDTH // 2}, 256 tokens (CPU seconds)")
    ours = cpu_seconds(step, warm=0)
    with reference_way():
        theirs = cpu_seconds(step, warm=0)
    results.say("training.ours_s", ours, "ours", " s")
    results.say("training.reference_way_s", theirs, "the reference's way", " s")
    results.say("training.times_faster", theirs / ours, "times faster")


def _training_batch(cfg: ModelConfig, height: int, width: int, tokens: int) -> Batch:
    ids, mask = make_text(tokens)
    words = torch.zeros(2, tokens)
    words[0, 1:3] = words[1, 5:7] = 1.0
    boxes = torch.tensor([[40.0, 50.0, 200.0, 180.0], [150.0, 20.0, 380.0, 300.0]])
    return Batch(
        pixels=make_picture(height, width),
        ids=ids,
        mask=mask,
        loss_mask=mask > 0,
        token_categories=torch.full_like(ids, -1),
        masked_words=torch.full_like(ids, NOT_PREDICTED),
        targets=(Target(boxes_xyxy=boxes, positive_map=words, categories=torch.tensor([-1, -1])),),
    )


def compare_memory(results: Results) -> None:
    """Peak memory of one forward pass, each in a process of its own."""
    print(f"peak memory of one forward pass, {HEIGHT} x {WIDTH}, 256 tokens (GiB, with weights and libraries)")
    for name, text in (("ours", "ours"), ("reference", "the reference's way"), ("dino", "Grounding DINO (Swin-T)")):
        results.say(f"memory.{name}_gib", peak_gb(run_once, name), text)


@torch.inference_mode()
def run_once(name: str) -> None:
    pixels, (ids, mask) = make_picture(), make_text(256)
    if name == "dino":
        make_grounding_dino()(pixels, ids, mask)
    elif name == "ours":
        make_model()(pixels, ids, mask)
    else:
        with reference_way():
            make_model()(pixels, ids, mask)
