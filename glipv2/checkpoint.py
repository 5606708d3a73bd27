"""A model on disk: weights, size and vocabulary in one folder, enough to rebuild it with nothing else.

`load_released` builds a model from weights of the public GLIP instead.
"""

import hashlib
import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from glipv2.config import ModelConfig
from glipv2.model.glipv2 import GLIPv2
from glipv2.released import OPTIONAL_HEADS, bare_state, from_released, read_released, read_safetensors
from glipv2.text.tokenizer import Tokenizer, load_tokenizer

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save(model: GLIPv2, tokenizer: Tokenizer, directory: Path) -> None:
    """Write a model folder; an existing one is overwritten file by file."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / WEIGHTS)
    (directory / CONFIG).write_text(json.dumps(asdict(model.cfg), indent=1), encoding="utf-8")
    tokenizer.save(directory)


def load(directory: Path, device: torch.device | str = "cpu") -> tuple[GLIPv2, Tokenizer]:
    """Rebuild a model and its tokenizer, in eval mode.

    Raises:
        ValueError: the folder is not a model, or its weights do not fit its configuration.
    """
    if missing := [name for name in (WEIGHTS, CONFIG) if not (directory / name).exists()]:
        raise ValueError(
            f"{directory} is no model folder: it lacks {', '.join(missing)}; give one written by pre-training"
        )
    cfg = _read_config(directory / CONFIG)
    tokenizer = load_tokenizer(directory, cfg.max_tokens)
    model = _uninitialised(cfg)
    try:
        model.load_state_dict(read_safetensors(directory / WEIGHTS), assign=True)
    except (RuntimeError, SafetensorError) as error:
        reason = textwrap.shorten(str(error), 200)  # torch lists every tensor on a line of its own
        raise ValueError(f"{directory / WEIGHTS} does not fit its {CONFIG}: {reason}; save the model again") from error
    return model.to(device).eval(), tokenizer


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


def _read_config(path: Path) -> ModelConfig:
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
