"""A model on disk: weights, size and vocabulary in one folder, enough to rebuild it with nothing else.

`load_released` builds a model from weights of the public GLIP instead.
"""

import hashlib
import json
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from glipv2.config import ModelConfig
from glipv2.model.glipv2 import GLIPv2
from glipv2.model.language import TextEncoder
from glipv2.released import OPTIONAL_HEADS, bare_state, from_released, read_released
from glipv2.text.tokenizer import Tokenizer, load_tokenizer

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TEXT_ENCODER = "text_encoder."
"""Begins the names of its weights."""
MAY_DIFFER = frozenset(
    {
        *("swin_drop_path", "fpn_drop_block", "text_dropout", "fusion_dropout", "word_init_std"),
        *("min_size_px", "max_size_px", "pad_multiple_px"),
    }
)
"""What of a configuration says nothing about what the weights mean: they serve a model that differs in these."""


def save(
    model: GLIPv2, tokenizer: Tokenizer, directory: Path, weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write a model folder, of the model's own weights or of those given; an existing one is overwritten by file."""
    directory.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if weights is None else weights
    save_file({k: v.contiguous() for k, v in state.items()}, directory / WEIGHTS)
    (directory / CONFIG).write_text(json.dumps(asdict(model.cfg), indent=1), encoding="utf-8")
    tokenizer.save(directory)


def load(directory: Path, device: torch.device | str = "cpu", *, text_encoder: bool = True) -> tuple[GLIPv2, Tokenizer]:
    """Rebuild a model and its tokenizer, in eval mode.

    Args:
        directory: written by `save`.
        device: where the model goes.
        text_encoder: without it, neither its memory is taken nor its weights are read. Such a model serves tuned
            prompts alone (`glipv2.transfer.tuned_prompt`).

    Raises:
        ValueError: the folder is not a model, or its weights or its vocabulary do not fit its configuration.
    """
    cfg = _read_config(directory)
    tokenizer = load_tokenizer(directory, cfg.max_tokens)
    if tokenizer.vocab_size != cfg.vocab_size:
        raise ValueError(
            f"{directory} holds a vocabulary of {tokenizer.vocab_size} tokens, but its {CONFIG} says {cfg.vocab_size}; "
            "save the model again with its own tokenizer"
        )
    model = _uninitialised(cfg)
    try:
        if not text_encoder:
            model.text_encoder = _NoTextEncoder()
        model.load_state_dict(_read_weights(directory / WEIGHTS, text_encoder), assign=True)
    except (RuntimeError, SafetensorError) as error:
        reason = textwrap.shorten(str(error), 200)  # torch lists every tensor on a line of its own
        raise ValueError(f"{directory / WEIGHTS} does not fit its {CONFIG}: {reason}; save the model again") from error
    return model.to(device).eval(), tokenizer


class _NoTextEncoder(TextEncoder):
    """Stands where a text encoder was left out."""

    def __init__(self) -> None:
        nn.Module.__init__(self)  # none of what the encoder is made of

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Refuse."""
        raise ValueError(
            "the model was loaded without its text encoder, so it knows tuned prompts alone; load it whole for "
            "other texts"
        )


def _read_weights(path: Path, text_encoder: bool) -> dict[str, torch.Tensor]:
    """Read weights into memory of their own: those of safetensors break when their file is written again."""
    mapped = load_file(path)
    return {k: v.clone() for k, v in mapped.items() if text_encoder or not k.startswith(TEXT_ENCODER)}


def check_start(directory: Path, cfg: ModelConfig, tokenizer: Tokenizer) -> None:
    """See to it that a model can start from the weights in a folder (`start`).

    Stochastic rates and image sizes may differ, and either may lack heads that only training uses.

    Raises:
        ValueError: the folder is no model, a damaged one, or one of another size or vocabulary; names all that differs.
    """
    found = _read_config(directory)
    may_differ = set(MAY_DIFFER)
    if "none" in (found.contrast, cfg.contrast):
        may_differ |= {"contrast", "contrast_dim"}
    if cfg.text_encoder == "bert":  # its positions do not hang on how many are used
        may_differ.add("max_tokens")
    before, now = asdict(found), asdict(cfg) | {"vocab_size": tokenizer.vocab_size}
    names = [name for name in now if before[name] != now[name] and name not in {*may_differ, "word_head"}]
    if names:
        differences = ", ".join(f"{name} {before[name]} (here {now[name]})" for name in names)
        raise ValueError(
            f"{directory} is a model of another size: {differences}; take the sizes in its {CONFIG} and its "
            "vocabulary, or start from another model"
        )
    if _files(load_tokenizer(directory, cfg.max_tokens)) != _files(tokenizer):
        raise ValueError(
            f"{directory} has another vocabulary of the same size; take the one in that folder, or start from another "
            "model"
        )
    _check_weights(directory, found)


def _check_weights(directory: Path, cfg: ModelConfig) -> None:
    """Compare names and shapes of weights with their configuration; of their file the header alone is read."""
    path = directory / WEIGHTS
    try:
        with safe_open(path, "pt") as stored:
            names = stored.keys()
            found = {name: tuple(stored.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; copy it again, or start from another model") from error
    wanted = {name: tuple(value.shape) for name, value in _uninitialised(cfg).state_dict().items()}
    if wrong := sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)):
        raise ValueError(
            f"{path} does not fit its {CONFIG}: {len(wrong)} tensors are missing, left over or of another shape, the "
            f"first {wrong[0]}; save the model again"
        )


def start(model: GLIPv2, directory: Path) -> None:
    """Copy the weights of a folder that `check_start` let through into a model.

    Heads the folder lacks stay as they are; those the model lacks are left out.
    """
    given, wanted = load(directory)[0].state_dict(), model.state_dict().keys()
    missing = model.load_state_dict({k: v for k, v in given.items() if k in wanted}, strict=False).missing_keys
    assert all(name.startswith(tuple(OPTIONAL_HEADS)) for name in missing), missing


def _files(tokenizer: Tokenizer) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def load_released(
    source: Path | str | Mapping[str, Any], config: ModelConfig, *, init_missing_heads: bool = False
) -> GLIPv2:
    """Build a model from weights of the public GLIP, in eval mode.

    Args:
        source: a ``.pth`` or ``.safetensors`` file, or what is in one: a state dict under upstream names, with or
            without ``module.`` before each, bare or as ``{"model": ...}``.
        config: the size the weights are of. Its heads for L_inter and L_mlm are filled if it has them, else dropped.
        init_missing_heads: start those heads from random weights where the file has none.

    Raises:
        ValueError: a parameter is missing, left over or of another shape; names them and a remedy.
    """
    released = bare_state(source) if isinstance(source, Mapping) else read_released(Path(source))
    # Random weights are drawn only where some of them may stay.
    model = GLIPv2(config) if init_missing_heads else _uninitialised(config)
    given = isinstance(source, Mapping)
    state = {
        name: value.to(torch.float32, copy=given)  # the model shall share no memory with what it was given
        for name, value in from_released(released, model, heads_may_lack=init_missing_heads).items()
    }
    missing = model.load_state_dict(state, strict=False, assign=True).missing_keys
    assert all(name.startswith(tuple(OPTIONAL_HEADS)) for name in missing), missing
    return model.eval()


class _WithoutInit(TorchFunctionMode):
    """Skip drawing random numbers and filling parameters; their memory is then never touched."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return the tensor as it is instead of initialising it."""
        if getattr(func, "__module__", "") == "torch.nn.init" or func.__name__ in ("normal_", "uniform_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _uninitialised(cfg: ModelConfig) -> GLIPv2:
    """Build a model whose parameters are all still to be assigned.

    Not on the meta device: there the tables that the constructors derive (window positions, token positions) would be
    empty too, and no state dict holds them.
    """
    with _WithoutInit():
        return GLIPv2(cfg)


def _read_config(directory: Path) -> ModelConfig:
    if missing := [name for name in (WEIGHTS, CONFIG) if not (directory / name).exists()]:
        raise ValueError(
            f"{directory} is no model folder: it lacks {', '.join(missing)}; give one written by pre-training"
        )
    path = directory / CONFIG
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        return ModelConfig(**sizes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not of this model: {error}; give a folder written by pre-training") from error


def weights_sha256(directory: Path) -> str:
    """Hash a model's weights: the teacher's name in every row it labels.

    Raises:
        ValueError: the folder is no model.
    """
    if not (directory / WEIGHTS).is_file():
        raise ValueError(f"{directory} is no model folder: it lacks {WEIGHTS}; give one written by pre-training")
    with (directory / WEIGHTS).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(model: GLIPv2) -> str:
    """Hash what works on a tuned prompt: all of a model's weights but the text encoder and the heads for training."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith((TEXT_ENCODER, *OPTIONAL_HEADS)):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
