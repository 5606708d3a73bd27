"""Golden arrays under our names, eight drawn images, and a model small enough to build anew for every test."""

import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from glipv2 import checkpoint
from glipv2.config import ModelConfig, glip_t, nano
from glipv2.image import prepare
from glipv2.model.glipv2 import GLIPv2
from glipv2.model.heads import Regions
from glipv2.released import BLOCK_PARTS, LEVEL_SCALE, upstream_names
from glipv2.sample import NOT_PREDICTED, Batch, GroundingSample, Target
from glipv2.text.prompts import Prompt, build_prompt
from glipv2.text.tokenizer import WordPiece, make_vocabulary

Arrays = dict[str, Tensor]

NO_CASE = "none"
GOLDENS = Path(os.environ.get("GLIPV2_GOLDENS", Path(__file__).resolve().parents[3] / "shared" / "goldens"))
LEVELS = ("P3", "P4", "P5", "P6", "P7")
ATOL = 5e-4  # the reference's own float32 noise is 3e-5
RTOL = 1e-5  # where numbers are large, as in a saturated case, seven digits are all there are


@dataclass(frozen=True, kw_only=True)
class Case:
    """One golden case: what goes in, what came out of the reference, and what comes out here."""

    name: str
    inputs: Arrays
    expected: Arrays
    facts: dict[str, Any]
    batch: Batch
    taps: Arrays
    regions: Regions

    def assert_close(self, tap: str, ours: Tensor) -> None:
        expected = self.expected[tap]
        torch.testing.assert_close(
            ours, expected, atol=ATOL, rtol=RTOL, msg=lambda text: f"{tap} of case {self.name}: {text}"
        )

    def rows(self, prefix: str) -> Tensor:
        """The five upstream maps after a prefix as our rows: b, anchors, channels."""
        return torch.cat([self.expected[f"{prefix}.{level}"].flatten(2) for level in LEVELS], 2).transpose(1, 2)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """True width and height of every image."""
        return [(width, height) for height, width in self.inputs["image_sizes_hw"].tolist()]

    @property
    def label_tokens(self) -> list[list[list[int]]]:
        """Per image the tokens of every label from 1 up to the largest, whatever numbers are used."""
        tokens = {int(label): positions for label, positions in self.facts["label_to_token"].items()}
        return [[tokens.get(label, []) for label in range(1, max(tokens) + 1)]] * len(self.sizes)

    def trained(self, variant: str) -> dict[str, Any]:
        """Losses and gradients of one set of terms; the test is skipped where the case has none of them."""
        if variant not in self.facts["train"]:
            pytest.skip(f"case {self.name} has no {variant}")
        facts: dict[str, Any] = self.facts["train"][variant]
        return facts


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test of ``case`` one run per golden case, whatever cases there are."""
    if "case" in metafunc.fixturenames:
        names = sorted(path.name.removesuffix("_inputs.npz") for path in GOLDENS.glob("nano_*_inputs.npz"))
        metafunc.parametrize("case", names or [NO_CASE], indirect=True, scope="session")


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest, goldens: Path, golden_model: GLIPv2) -> Case:
    assert request.param != NO_CASE, f"{goldens} holds no golden case"
    inputs, expected = (read_arrays(goldens / f"{request.param}_{part}.npz") for part in ("inputs", "expected"))
    batch = golden_batch(inputs)
    taps: Arrays = {}
    hooks = [
        getattr(block, part).register_forward_hook(_record(taps, f"layer{number}.{tap}"))
        for number, block in enumerate(golden_model.tower)
        for part, tap in (("fusion", "fuse"), ("text_layer", "bert"), ("dynamic_conv", "dyconv"))
    ]
    hooks.append(golden_model.swin.stages[0].register_forward_hook(_record(taps, "swin.stage2")))
    with torch.no_grad():
        regions = golden_model(batch.pixels, batch.ids, batch.mask).regions
    for hook in hooks:
        hook.remove()
    facts = json.loads((goldens / f"{request.param}_meta.json").read_text(encoding="utf-8"))
    return Case(
        name=request.param, inputs=inputs, expected=expected, facts=facts, batch=batch, taps=taps, regions=regions
    )


def golden_batch(inputs: Arrays) -> Batch:
    counts = inputs["boxes_per_image"].tolist()
    boxes, words = inputs["gt_boxes"].split(counts), inputs["positive_map_train"].split(counts)
    return Batch(
        pixels=inputs["images"],
        ids=inputs["input_ids"],
        mask=inputs["attention_mask"],
        loss_mask=inputs["attention_mask"] > 0,
        token_categories=torch.full_like(inputs["input_ids"], -1),
        masked_words=torch.full_like(inputs["input_ids"], NOT_PREDICTED),
        targets=tuple(
            Target(boxes_xyxy=b, positive_map=w, categories=torch.full((len(b),), -1))
            for b, w in zip(boxes, words, strict=True)
        ),
    )


def _record(taps: Arrays, name: str) -> Callable[..., None]:
    def hook(_module: object, _inputs: object, output: Any) -> None:
        if name.endswith("fuse"):
            taps[f"{name}.rows"], taps[f"{name}.text"] = output
        elif name.endswith("bert"):
            taps[f"{name}.text"] = output
        elif name.startswith("swin"):
            taps[name] = output.permute(0, 3, 1, 2)
        else:
            taps.update({f"{name}.{level}": x for level, x in zip(LEVELS, output, strict=True)})

    return hook


@pytest.fixture(scope="session")
def cfg(goldens: Path) -> ModelConfig:
    """The size of the golden model: GLIP-T's structure, with the heads of both further losses, as upstream has them."""
    stored = json.loads((goldens / "nano_config.json").read_text(encoding="utf-8"))
    bert, model = stored["bert"], stored["cfg_overrides_on_glip_T_yaml"]
    return replace(
        glip_t(),
        swin_embed_dim=model["MODEL.SWINT.EMBED_DIM"],
        swin_depths=tuple(model["MODEL.SWINT.DEPTHS"]),
        swin_num_heads=tuple(model["MODEL.SWINT.NUM_HEADS"]),
        swin_drop_path=0.0,
        channels=model["MODEL.DYHEAD.CHANNELS"],
        fpn_drop_block=0.0,
        vocab_size=bert["vocab_size"],
        text_dim=bert["hidden_size"],
        text_layers=bert["num_hidden_layers"],
        text_heads=bert["num_attention_heads"],
        text_ffn_dim=bert["intermediate_size"],
        text_dropout=0.0,
        num_blocks=model["MODEL.DYHEAD.NUM_CONVS"],
        fusion_dim=stored["fuse_embed_dim"],
        fusion_heads=stored["fuse_heads"],
        fusion_dropout=0.0,
        contrast="reference",
        contrast_dim=model["MODEL.DYHEAD.FUSE_CONFIG.SHALLOW_CONTRASTIVE_HIDDEN_DIM"],
        word_head=True,
    )


@pytest.fixture(scope="session")
def golden_model(goldens: Path, cfg: ModelConfig) -> GLIPv2:
    return checkpoint.load_released(goldens / "nano_state_dict.safetensors", cfg)


@pytest.fixture(scope="session")
def renamed(golden_model: GLIPv2) -> Callable[[Mapping[str, Tensor]], Arrays]:
    """Translate what is given per upstream parameter (gradients, norms); the five level scales become one vector."""

    def rename(upstream: Mapping[str, Tensor]) -> Arrays:
        ours = {a: upstream[b] for a, b in upstream_names(golden_model).items() if b in upstream}
        scales = [value for name, value in sorted(upstream.items()) if ".head.scales." in name]
        return {**ours, LEVEL_SCALE: torch.cat(scales)} if scales else ours

    return rename


@pytest.fixture(scope="session")
def part_of() -> Callable[[Arrays, str, str], Arrays]:
    """Take one layer's parameters, given under upstream names after a prefix, under ours."""

    def take(arrays: Arrays, prefix: str, part: str) -> Arrays:
        return {
            ours + name.removeprefix(prefix + theirs): value
            for name, value in arrays.items()
            for ours, theirs in BLOCK_PARTS[part].items()
            if f"{name}.".startswith(f"{prefix}{theirs}.")
        }

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
