"""LVIS's 1,203 names asked of one picture, from names to boxes: ours, packed, and the reference's way, run whole."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from glipv2.config import glip_t
from glipv2.image import pad_pictures, prepare
from glipv2.inference import Predictor
from glipv2.inference.postprocess import PostprocessConfig, postprocess
from glipv2.inference.query import make_queries
from glipv2.model.glipv2 import GLIPv2
from glipv2.sample import pad_tokens
from glipv2.text.prompts import chunk_prompts
from glipv2.text.tokenizer import WordPiece
from tests.bench.reference_way import pad_text, reference_way
from tests.bench.timing import Results, timed
from tests.bench.whole_model import HEIGHT, SAME, WIDTH, make_model

DATA = Path(os.environ.get("GLIPV2_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "text"
NAMES_IN_A_PROMPT = 40
"""The reference's."""
CFG = PostprocessConfig(min_class_score=0.0102)
"""So that an untrained network gives thousands of candidates, as a trained one does."""


def compare_lvis(results: Results, side_px: int) -> None:
    """Ask all names once each way; the time of a whole run needs no repeats, each has thirty prompts or fourteen."""
    lists = DATA / "names" / "lvis_v1_1203.json"
    if not lists.exists():
        print(f"LVIS's names left out: {lists} is absent; set GLIPV2_TEST_DATA")
        return
    names = [found["name"].replace("_", " ") for found in json.loads(lists.read_text(encoding="utf-8"))]
    words = (DATA / "bert-base-uncased-vocab.txt").read_text(encoding="utf-8").splitlines()
    model, tokenizer = _model(side_px), WordPiece(words, glip_t().max_tokens)
    pixels = np.random.default_rng(1).integers(0, 255, (HEIGHT * side_px // 800, WIDTH * side_px // 800, 3), np.uint8)
    picture = Image.fromarray(pixels)
    print(f"{len(names)} names of LVIS, GLIP-T, one {picture.height} x {picture.width} picture (CPU seconds)")

    def ours(most: int | None) -> list[float]:
        [found] = Predictor(model, tokenizer, CFG).detect([picture], names, max_categories=most)
        return found.scores

    packed_s, _ = timed(partial(ours, None), warm=0)
    ours_s, scores = timed(partial(ours, NAMES_IN_A_PROMPT), warm=0)
    theirs_s, expected = timed(partial(_reference, model, tokenizer, picture, names), warm=0)
    apart = max(abs(a - b) for a, b in zip(scores, expected, strict=True))
    if apart > SAME:
        raise AssertionError(f"scores of the two ways differ by {apart:.1e}, so their times compare nothing")
    results.say("lvis.reference_way_s", theirs_s, f"the reference's way, {NAMES_IN_A_PROMPT} names in a prompt", " s")
    results.say("lvis.ours_s", ours_s, f"ours, the same prompts, scores equal to {apart:.0e}", " s")
    results.say("lvis.times_faster", theirs_s / ours_s, "  times faster")
    results.say("lvis.packed_s", packed_s, "ours, prompts filled: another protocol, other scores", " s")
    results.say("lvis.packed_times_faster", theirs_s / packed_s, "  times faster")


def _model(side_px: int) -> GLIPv2:
    """The bench's model, for pictures of another size: no weight depends on it."""
    model = make_model()
    model.cfg = replace(model.cfg, min_size_px=side_px, max_size_px=side_px * 5 // 3)
    return model


@torch.inference_mode()
def _reference(model: GLIPv2, tokenizer: WordPiece, picture: Image.Image, names: list[str]) -> list[float]:
    """Encode picture and text anew for each prompt, all 256 positions of it; give the best scores."""
    shown = prepare(picture, model.cfg)
    pixels, scores = pad_pictures([shown], model.cfg.pad_multiple_px), []
    prompts = chunk_prompts(list(enumerate(names)), tokenizer, NAMES_IN_A_PROMPT)
    for query in make_queries(prompts, tokenizer):
        ids, mask = pad_text(*pad_tokens([query.encoding], tokenizer.pad_id))
        with reference_way():
            regions = model(pixels, ids, mask).regions
        [found] = postprocess(regions, [list(query.tokens.values())], [shown.size], model.cfg, CFG)
        scores.append(found.scores)
    return torch.cat(scores).sort(descending=True).values[: CFG.max_detections].tolist()
