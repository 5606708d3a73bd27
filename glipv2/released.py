"""Weights of the public GLIP: the one table of its parameter names, and what its files hold besides parameters.

Read by `glipv2.checkpoint.load_released`; `to_released` writes the same form, for tools that expect it.
"""

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from glipv2.config import ModelConfig
from glipv2.model.glipv2 import GLIPv2

State = dict[str, Tensor]

# Ours, theirs. A name stands for everything under it: what follows is the same on both sides.
BLOCK_PARTS = {
    "fusion": {
        "image_scale": "gamma_v",
        "text_scale": "gamma_l",
        "image_norm": "layer_norm_v",
        "text_norm": "layer_norm_l",
        "image_query": "attn.v_proj",
        "text_key": "attn.l_proj",
        "image_value": "attn.values_v_proj",
        "text_value": "attn.values_l_proj",
        "image_output": "attn.out_v_proj",
        "text_output": "attn.out_l_proj",
    },
    "text_layer": {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "output_norm": "output.LayerNorm",
    },
    "dynamic_conv": {
        "coarser.conv": "DyConv.0.conv",
        "coarser.norm": "DyConv.0.bn",
        "same.conv": "DyConv.1.conv",
        "same.norm": "DyConv.1.bn",
        "finer.conv": "DyConv.2.conv",
        "finer.norm": "DyConv.2.bn",
        "scale": "AttnConv.1",
        "activation.reduce": "relu.fc.0",
        "activation.expand": "relu.fc.2",
        "offset": "offset",
    },
}
OUTSIDE_THE_TOWER = {
    "swin.patch_embed": "backbone.body.patch_embed.proj",
    "swin.patch_norm": "backbone.body.patch_embed.norm",
    **{f"swin.norms.{i}": f"backbone.body.norm{i + 1}" for i in range(3)},
    **{f"fpn.laterals.{i}": f"backbone.fpn.fpn_inner{i + 2}" for i in range(3)},
    **{f"fpn.outputs.{i}": f"backbone.fpn.fpn_layer{i + 2}" for i in range(3)},
    "fpn": "backbone.fpn.top_blocks",
    "text_encoder.bert": "language_backbone.body.model",
    "head.text_projection": "rpn.head.dot_product_projection_text",
    "head.text_bias": "rpn.head.bias_lang",
    "head.bias": "rpn.head.bias0",
    "head.box": "rpn.head.bbox_pred",
    "head": "rpn.head",
    "word_head.dense": "rpn.head.mlm_head.transform.dense",
    "word_head.norm": "rpn.head.mlm_head.transform.LayerNorm",
    "word_head.decoder": "rpn.head.mlm_head.decoder",
    "contrast_head.region_projection": "rpn.loss_evaluator.shallow_contrastive_projection_image",
    "contrast_head.word_projection": "rpn.loss_evaluator.shallow_contrastive_projection_text",
    "contrast_head.log_temperature": "rpn.loss_evaluator.shallow_log_scale",
}
LEVEL_SCALE = "head.level_scale"
"""One vector here, one scalar per level there."""
WORD_BIAS = "rpn.head.mlm_head.bias"
"""The decoder's bias once more; files hold it twice."""
OPTIONAL_HEADS = {"word_head.": "rpn.head.mlm_head.", "contrast_head.": "rpn.loss_evaluator."}
"""Heads that only training uses, ours and theirs: a file may lack them, a model may do without."""
NOT_NEEDED = re.compile(
    r"relative_position_index$|anchor_generator\.cell_anchors\.|embeddings\.position_ids$"  # derived from the sizes
    r"|^language_backbone\.body\.model\.pooler\.|^rpn\.head\.cls_logits\."  # never used
)
LOOKS_LIKE = {(96, True): "glip_t", (96, False): "glip_t_a", (192, True): "glip_l"}
"""Released sizes by width of the first Swin stage and presence of deep fusion."""


def read_released(path: Path) -> State:
    """Read a ``.pth`` or ``.safetensors`` file of the public GLIP and return its bare state dict.

    Raises:
        ValueError: no such file, or not readable as weights.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}; give a .pth or .safetensors file of the public GLIP")
    try:
        if path.suffix == ".safetensors":
            return bare_state(read_safetensors(path))
        return bare_state(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is not read, as it is damaged or holds more than tensors, which could run code; if you trust it, "
            "load it in Python and save what it has under 'model' alone, with torch.save or safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as weights: {reason}; download it again") from error


def read_safetensors(path: Path) -> State:
    """Read tensors into memory of their own: those of safetensors break when their file is written again."""
    return {name: value.clone() for name, value in load_file(path).items()}


def bare_state(saved: Mapping[str, object]) -> State:
    """Unwrap ``{"model": ...}`` and strip ``module.`` where every key begins with it."""
    inner = saved.get("model") if isinstance(saved, Mapping) else None
    state = inner if isinstance(inner, Mapping) else saved
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError("the file holds no state dict, bare or under 'model'; give one of the public GLIP")
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): value for name, value in state.items() if isinstance(value, Tensor)}


def upstream_names(model: GLIPv2) -> dict[str, str]:
    """Map every parameter of ours to the upstream name, `LEVEL_SCALE` excepted.

    Raises:
        ValueError: the public GLIP has no model of this structure.
    """
    cfg = model.cfg
    if cfg.text_encoder != "bert" or cfg.swin_conv_embed:
        kind = "a CLIP-type text encoder" if cfg.text_encoder != "bert" else "convolutional embedding"
        raise ValueError(f"the public GLIP has no model with {kind}; give a size with BERT and a plain Swin: t, glip_l")
    table = {**OUTSIDE_THE_TOWER, **_swin_modules(cfg), **_tower_modules(cfg)}
    return {name: _translate(name, table) for name in model.state_dict() if name != LEVEL_SCALE}


def to_released(model: GLIPv2) -> State:
    """Give a model's parameters under upstream names; upstream's buffers and its unused classifier are left out."""
    names, state = upstream_names(model), model.state_dict()
    released = {theirs: state[ours] for ours, theirs in names.items()}
    released |= {_scale(level): value[None] for level, value in enumerate(state[LEVEL_SCALE])}
    return released if model.word_head is None else {**released, WORD_BIAS: state["word_head.decoder.bias"]}


def from_released(released: Mapping[str, Tensor], model: GLIPv2, *, heads_may_lack: bool = False) -> State:
    """Give upstream parameters our names, all of the model's and no others.

    Args:
        released: a bare state dict (`bare_state`).
        model: what they are for; only names and shapes are read.
        heads_may_lack: a head that only training uses is left out if the file has nothing of it.

    Raises:
        ValueError: one line with everything that is missing, left over or of another shape, and a remedy.
    """
    wanted = {ours: value.shape for ours, value in model.state_dict().items()}
    names = {**{_scale(level): _scale(level) for level in range(len(model.cfg.strides))}, **upstream_names(model)}
    absent = {ours for ours, theirs in OPTIONAL_HEADS.items() if not any(name.startswith(theirs) for name in released)}
    if heads_may_lack:
        names = {ours: theirs for ours, theirs in names.items() if not ours.startswith(tuple(absent))}
    shapes = {theirs: wanted.get(ours, torch.Size([1])) for ours, theirs in names.items()}
    dropped = tuple(theirs for ours, theirs in OPTIONAL_HEADS.items() if not any(n.startswith(ours) for n in wanted))
    ignored = {n for n in released if NOT_NEEDED.search(n) or n == WORD_BIAS or n.startswith(dropped)}
    problems = {
        "missing": [name for name in shapes if name not in released],
        "left over": [name for name in released if name not in shapes and name not in ignored],
        "of another shape": [
            f"{name} {tuple(released[name].shape)} instead of {tuple(shape)}"
            for name, shape in shapes.items()
            if name in released and released[name].shape != shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {kind}: {_shorten(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"the weights do not fit the model: {found}; {_remedy(released, model.cfg)}")
    scales = torch.cat([released[_scale(level)] for level in range(len(model.cfg.strides))])
    return {LEVEL_SCALE: scales, **{ours: released[theirs] for ours, theirs in names.items() if ours in wanted}}


def _swin_modules(cfg: ModelConfig) -> dict[str, str]:
    modules: dict[str, str] = {}
    for stage, depth in enumerate(cfg.swin_depths):
        # Upstream ends a stage with the merging that we begin the next one with, so later stages' blocks move by one.
        if stage:
            modules[f"swin.stages.{stage}.0"] = f"backbone.body.layers.{stage - 1}.downsample"
        for block in range(depth):
            modules[f"swin.stages.{stage}.{block + (stage > 0)}"] = f"backbone.body.layers.{stage}.blocks.{block}"
    return modules


def _tower_modules(cfg: ModelConfig) -> dict[str, str]:
    parts = tuple(BLOCK_PARTS) if cfg.deep_fusion else ("dynamic_conv",)
    modules: dict[str, str] = {}
    for block in range(cfg.num_blocks):
        for number, part in enumerate(parts):
            theirs = f"rpn.head.dyhead_tower.{len(parts) * block + number}" + (".b_attn" if part == "fusion" else "")
            modules |= {f"tower.{block}.{part}.{a}": f"{theirs}.{b}" for a, b in BLOCK_PARTS[part].items()}
    return modules


def _translate(name: str, table: Mapping[str, str]) -> str:
    """Replace the longest beginning of a name that the table knows."""
    known = name
    while known not in table:
        if "." not in known:
            raise ValueError(f"{name} is in no line of the table of upstream names; add it to glipv2/released.py")
        known = known.rpartition(".")[0]
    return table[known] + name.removeprefix(known)


def _scale(level: int) -> str:
    return f"rpn.head.scales.{level}.scale"


def _shorten(names: Iterable[str], shown: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:shown]) + (", ..." if len(listed) > shown else "")


def _remedy(released: Mapping[str, Tensor], cfg: ModelConfig) -> str:
    embedding = released.get("backbone.body.patch_embed.proj.weight")
    width = len(embedding) if embedding is not None and embedding.ndim else 0
    fused = any(".b_attn." in name for name in released)
    size = LOOKS_LIKE.get((width, fused))
    if size is not None and (width, fused) != (cfg.swin_embed_dim, cfg.deep_fusion):
        return f"they look like {size.replace('_', '-').upper()}: use glipv2.config.{size}()"
    return "give weights of this size, or start heads they lack afresh with init_missing_heads"
