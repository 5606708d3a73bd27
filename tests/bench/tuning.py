"""Prompt tuning: a step of GLIP-T the reference's way, ours, and ours from cached image features."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from glipv2.config import nano
from glipv2.image import Picture
from glipv2.losses.criterion import Criterion
from glipv2.model.glipv2 import GLIPv2
from glipv2.sample import GroundingSample, collate
from glipv2.text.prompts import build_prompt
from glipv2.text.tokenizer import WordPiece, make_vocabulary
from glipv2.train import update
from glipv2.transfer.feature_cache import FeatureCache
from glipv2.transfer.learners import PromptLearner
from glipv2.transfer.protocol import protocol_for
from glipv2.transfer.tune import tune
from glipv2.transfer.views import View
from tests.bench.reference_way import pad_text, reference_way
from tests.bench.timing import Results, cpu_seconds, ratio
from tests.bench.whole_model import HEIGHT, SAME, WIDTH, make_picture

NAMES = ("person", "bicycle", "car", "traffic light", "dog", "horse", "umbrella", "wine glass", "cell phone", "book")
CFG = protocol_for("prompt", 1)
LARGEST_DIFFERENCE = 1e-4
"""Of a loss in units of itself that order of summation may make after some steps."""


def compare_tuning(model: GLIPv2, results: Results, repeats: int) -> None:
    """Take one step on one picture at half the side, where the reference's way needs 3 GB and not 11; each in turn."""
    height, width = HEIGHT // 2, WIDTH // 2
    tokenizer, sample = make_tokenizer(), make_sample(height, width)
    view = View(index=0, flip=False, scale=1.0)
    with FeatureCache(1024) as cache, FeatureCache(0) as nothing:
        learners = [PromptLearner(model, tokenizer, [sample], CFG, kept) for kept in (cache, nothing)]
        cached, uncached = (partial(_step, learner, view) for learner in learners)
        theirs = reference_step(model, tokenizer, sample)
        print(f"prompt tuning of GLIP-T, one {height} x {width} picture a step, {len(NAMES)} names (CPU seconds)")
        apart = abs(theirs() / cached() - 1)
        if apart > SAME:
            raise AssertionError(f"the two ways differ by {apart:.1e} of the loss, so their times compare nothing")
        ways: tuple[Callable[[], object], ...] = (theirs, uncached, cached)
        rounds = [[cpu_seconds(way, warm=0) for way in ways] for _ in range(repeats)]
        reference_s, uncached_s, cached_s = (statistics.median(times) for times in zip(*rounds, strict=True))
        results.say("tuning.reference_way_s", reference_s, "the reference's way, per step", " s")
        results.say("tuning.uncached_s", uncached_s, "ours, the image encoded each time", " s")
        results.say("tuning.cached_s", cached_s, "ours, from the cache", " s")
        results.say("tuning.times_faster", reference_s / cached_s, "times faster than the reference's way")
        results.say("tuning.cache_gain", uncached_s / cached_s, "of that by the cache alone")
        results.say("tuning.cache_mib_per_image", cache.memory_bytes / 2**20, "the cache, per image", " MiB")
    model.requires_grad_(True)  # other sections train it
    compare_nano(results)


def compare_nano(results: Results, num_images: int = 8) -> None:
    """Tune a nano model both ways: the losses must be the same, whatever the cache saves."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = GLIPv2(nano(tokenizer.vocab_size)).eval()
    samples = [make_sample(128, 128, seed) for seed in range(num_images)]

    def losses(cache_mib: int) -> list[float]:
        cfg = replace(CFG, max_epochs=4, copies=2, cache_mib=cache_mib)
        found = tune(model, tokenizer, samples, cfg, lambda _: 0.0, seed=3)
        return [seen.loss for seen in found.history if seen.loss is not None]

    apart = max(abs(a / b - 1) for a, b in zip(losses(0), losses(1024), strict=True))
    if apart > LARGEST_DIFFERENCE:
        raise AssertionError(f"the cache changes losses by {apart:.1e}, so it is not exact")
    results.say("tuning.nano_loss_difference", apart, "nano, 4 epochs: largest difference of a loss by the cache")
    gain = ratio(partial(losses, 0), partial(losses, 1024), repeats=3)
    results.say("tuning.nano_cache_gain", gain, "nano, 4 epochs of 8 pictures twice: times faster by the cache")


def make_tokenizer() -> WordPiece:
    return WordPiece(make_vocabulary(word for name in NAMES for word in name.split()), max_tokens=256)


def make_sample(height: int, width: int, seed: int = 0) -> GroundingSample:
    """A picture of noise with two boxes."""
    prompt = build_prompt(list(enumerate(NAMES)))
    pixels = make_picture(height, width)[0].roll(seed, 2)
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.4, 0.1, 0.9, 0.8]]) * torch.tensor([width, height] * 2)
    return GroundingSample(
        picture=Picture(pixels=pixels, scale_xy=(1.0, 1.0), original_size=(width, height)),
        text=prompt.text,
        boxes_xyxy=boxes,
        tokens_positive=[[prompt.spans[2]], [prompt.spans[7]]],
    )


def _step(learner: PromptLearner, view: View) -> float:
    loss = learner.backward([view])
    update(learner.parameters, learner.optimizer, CFG.clip_norm)
    return loss


def reference_step(model: GLIPv2, tokenizer: WordPiece, sample: GroundingSample) -> Callable[[], float]:
    """Give a step through the whole frozen model, with 256 positions of text and an offset for each of them."""
    batch = collate([sample], tokenizer, model.cfg.pad_multiple_px)
    ids, mask = pad_text(batch.ids, batch.mask)
    missing = ids.shape[1] - batch.ids.shape[1]
    target = batch.targets[0]
    padded = replace(
        batch,
        ids=ids,
        mask=mask,
        loss_mask=mask > 0,
        token_categories=nn.functional.pad(batch.token_categories, (0, missing), value=-1),
        masked_words=nn.functional.pad(batch.masked_words, (0, missing), value=-100),
        targets=(replace(target, positive_map=nn.functional.pad(target.positive_map, (0, missing))),),
    )
    offset = nn.Parameter(torch.zeros(ids.shape[1], model.cfg.text_dim))
    optimizer = torch.optim.AdamW([offset], lr=CFG.lr, weight_decay=CFG.weight_decay)
    criterion = Criterion(model.cfg)

    def step() -> float:
        with reference_way():
            regions = model.fuse(model.encode_image(batch.pixels), model.encode_text(ids, mask) + offset, mask)
            loss = torch.stack(list(criterion.grounding(regions, padded).values())).sum()
            loss.backward()
        update([offset], optimizer, CFG.clip_norm)
        return loss.item()

    return step
