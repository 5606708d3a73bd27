"""Golden arrays under our names, eight drawn images, and a model small enough to build anew for every test."""

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from glipv2.config import ModelConfig, nano
from glipv2.image import prepare
from glipv2.model.glipv2 import GLIPv2
from glipv2.sample import GroundingSample
from glipv2.text.prompts import Prompt, build_prompt
from glipv2.text.tokenizer import WordPiece, make_vocabulary

Arrays = dict[str, Tensor]

# Upstream's parameter names and ours; the first rule that fits a name replaces that part of it.
SWIN = (
    (r"^backbone\.body\.patch_embed\.proj", "swin.patch_embed"),
    (r"^backbone\.body\.patch_embed\.norm", "swin.patch_norm"),
    (r"^backbone\.body\.norm([123])", lambda m: f"swin.norms.{int(m[1]) - 1}"),
    # Upstream ends a stage with the merging that we begin the next one with, so a later stage's blocks move by one.
    (r"^backbone\.body\.layers\.(\d)\.downsample", lambda m: f"swin.stages.{int(m[1]) + 1}.0"),
    (r"^backbone\.body\.layers\.0\.blocks\.(\d+)", r"swin.stages.0.\1"),
    (r"^backbone\.body\.layers\.(\d)\.blocks\.(\d+)", lambda m: f"swin.stages.{m[1]}.{int(m[2]) + 1}"),
)
FPN_AND_TEXT = (
    (r"^backbone\.fpn\.fpn_inner([234])", lambda m: f"fpn.laterals.{int(m[1]) - 2}"),
    (r"^backbone\.fpn\.fpn_layer([234])", lambda m: f"fpn.outputs.{int(m[1]) - 2}"),
    (r"^backbone\.fpn\.top_blocks", "fpn"),
    (r"^language_backbone\.body\.model", "text_encoder.bert"),
)
FUSION = (
    (r"gamma_v", "image_scale"),
    (r"gamma_l", "text_scale"),
    (r"layer_norm_v", "image_norm"),
    (r"layer_norm_l", "text_norm"),
    (r"attn\.v_proj", "image_query"),
    (r"attn\.l_proj", "text_key"),
    (r"attn\.values_v_proj", "image_value"),
    (r"attn\.values_l_proj", "text_value"),
    (r"attn\.out_v_proj", "image_output"),
    (r"attn\.out_l_proj", "text_output"),
)
TEXT_LAYER = (
    (r"attention\.self\.(query|key|value)", r"\1"),
    (r"attention\.output\.dense", "output"),
    (r"attention\.output\.LayerNorm", "attention_norm"),
    (r"intermediate\.dense", "up"),
    (r"output\.dense", "down"),
    (r"output\.LayerNorm", "output_norm"),
)
DYNAMIC_CONV = (
    (r"DyConv\.0\.conv", "coarser.conv"),
    (r"DyConv\.1\.conv", "same.conv"),
    (r"DyConv\.2\.conv", "finer.conv"),
    (r"DyConv\.0\.bn", "coarser.norm"),
    (r"DyConv\.1\.bn", "same.norm"),
    (r"DyConv\.2\.bn", "finer.norm"),
    (r"AttnConv\.1", "scale"),
    (r"relu\.fc\.0", "activation.reduce"),
    (r"relu\.fc\.2", "activation.expand"),
    (r"offset", "offset"),
)
HEAD = (
    (r"^rpn\.head\.dot_product_projection_text", "head.text_projection"),
    (r"^rpn\.head\.bias_lang", "head.text_bias"),
    (r"^rpn\.head\.bias0", "head.bias"),
    (r"^rpn\.head\.bbox_pred", "head.box"),
    (r"^rpn\.head\.(log_scale|centerness)", r"head.\1"),
)
TOWER = {0: ("fusion", FUSION), 1: ("text_layer", TEXT_LAYER), 2: ("dynamic_conv", DYNAMIC_CONV)}
WITHOUT_TWIN = re.compile(
    r"relative_position_index|anchor_generator|cls_logits|mlm_head|loss_evaluator|head\.scales\.\d"
)
"""Buffers we derive, losses not built yet, and the five scalars that are one vector here."""


def _first_rule(rules: tuple[Any, ...], name: str) -> str:
    for pattern, ours in rules:
        renamed, hits = re.subn(pattern, ours, name, count=1)
        if hits:
            return renamed
    raise KeyError(f"no rule for {name}")


def our_name(name: str) -> str:
    """Translate the upstream name of a whole model's parameter."""
    if tower := re.match(r"^rpn\.head\.dyhead_tower\.(\d+)\.(?:b_attn\.)?(.*)", name):
        block, layer = divmod(int(tower[1]), 3)
        part, rules = TOWER[layer]
        return f"tower.{block}.{part}.{_first_rule(rules, tower[2])}"
    return _first_rule((*SWIN, *FPN_AND_TEXT, *HEAD), name)


@pytest.fixture(scope="session")
def renamed() -> Callable[[Mapping[str, Tensor]], Arrays]:
    """Translate a whole state dict (or its gradients); what has no twin here is left out."""

    def rename(upstream: Mapping[str, Tensor]) -> Arrays:
        ours = {our_name(name): value for name, value in upstream.items() if not WITHOUT_TWIN.search(name)}
        scales = [value for name, value in sorted(upstream.items()) if ".head.scales." in name]
        return {**ours, "head.level_scale": torch.cat(scales)} if scales else ours

    return rename


@pytest.fixture(scope="session")
def part_of() -> Callable[[Arrays, str, str], Arrays]:
    """Take one layer's parameters, given under upstream names after a prefix, under ours."""
    rules = dict(TOWER.values())

    def take(arrays: Arrays, prefix: str, part: str) -> Arrays:
        names = [name for name in arrays if name.startswith(prefix)]
        return {_first_rule(rules[part], name.removeprefix(prefix)): arrays[name] for name in names}

    return take


@pytest.fixture(scope="session")
def units(goldens: Path) -> Arrays:
    return read_arrays(goldens / "units.npz")


@pytest.fixture(scope="session")
def unit_facts(goldens: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((goldens / "units.json").read_text(encoding="utf-8"))
    return facts


@pytest.fixture(scope="session")
def golden_tokenizer(goldens: Path) -> WordPiece:
    return WordPiece((goldens / "nano_vocab.txt").read_text(encoding="utf-8").splitlines(), max_tokens=256)


def read_arrays(path: Path) -> Arrays:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


CATEGORIES = {1: "red square", 2: "green disc", 3: "blue triangle"}
SIDE_PX = 64


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A drawn image with two coloured shapes."""

    image: Image.Image
    categories: list[int]
    boxes_xyxy: Tensor


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Two threads on two busy cores wait for each other: one was seen to be ten times as fast.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def prompt() -> Prompt:
    return build_prompt(list(CATEGORIES.items()))


@pytest.fixture(scope="session")
def drawings() -> list[Drawing]:
    return [_draw(random.Random(seed)) for seed in range(8)]


def _draw(rng: random.Random) -> Drawing:
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), (225, 225, 215))
    pen = ImageDraw.Draw(image)
    chosen, boxes = rng.sample(sorted(CATEGORIES), 2), []
    for column, category in enumerate(chosen):
        side = rng.randint(16, 26)
        x, y = column * 32 + rng.randint(1, 31 - side), rng.randint(1, 62 - side)
        colour, shape = CATEGORIES[category].split()
        corners = [x, y, x + side - 1, y + side - 1]  # the pen paints both corners
        if shape == "square":
            pen.rectangle(corners, fill=colour)
        elif shape == "disc":
            pen.ellipse(corners, fill=colour)
        else:
            pen.polygon([(x, corners[3]), (x + side // 2, y), (corners[2], corners[3])], fill=colour)
        boxes.append([x, y, x + side, y + side])
    return Drawing(image=image, categories=chosen, boxes_xyxy=torch.tensor(boxes, dtype=torch.float32))


@pytest.fixture(scope="session")
def samples(drawings: list[Drawing], prompt: Prompt, tiny: ModelConfig) -> list[GroundingSample]:
    """The drawings, each with the prompt of all three categories."""
    return [
        GroundingSample(
            picture=prepare(drawing.image, tiny),
            text=prompt.text,
            boxes_xyxy=drawing.boxes_xyxy,
            tokens_positive=[[prompt.spans[category]] for category in drawing.categories],
        )
        for drawing in drawings
    ]


@pytest.fixture(scope="session")
def tokenizer() -> WordPiece:
    words = ["and", *(word for name in CATEGORIES.values() for word in name.split())]
    return WordPiece(make_vocabulary(words), max_tokens=32)


@pytest.fixture(scope="session")
def tiny(tokenizer: WordPiece) -> ModelConfig:
    """A model of the true structure for images of 64 px; a forward pass takes some ten milliseconds."""
    return replace(
        nano(len(tokenizer.vocabulary)),
        swin_embed_dim=16,
        swin_window=4,
        channels=32,
        text_dim=32,
        text_ffn_dim=64,
        fusion_dim=64,
        group_norm_groups=8,
        max_tokens=32,
        min_size_px=SIDE_PX,
        max_size_px=SIDE_PX,
    )


@pytest.fixture
def model(tiny: ModelConfig) -> GLIPv2:
    """A random model in eval mode whose samplings, boxes and logits differ visibly from place to place."""
    torch.manual_seed(0)
    made = GLIPv2(tiny).eval()
    for name, parameter in made.named_parameters():
        if name.endswith(("offset.weight", "head.box.weight", "head.text_projection.weight")):
            nn.init.normal_(parameter, std=0.2)
    return made
