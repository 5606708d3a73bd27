"""A model on disk: weights, size and vocabulary in one folder, enough to rebuild it with nothing else."""

import hashlib
import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from glipv2.config import ModelConfig
from glipv2.model.glipv2 import GLIPv2
from glipv2.text.tokenizer import WordPiece

WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "vocab.txt"


def save(model: GLIPv2, tokenizer: WordPiece, directory: Path) -> None:
    """Write a model folder; an existing one is overwritten file by file."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / WEIGHTS)
    (directory / CONFIG).write_text(json.dumps(asdict(model.cfg), indent=1), encoding="utf-8")
    (directory / VOCABULARY).write_text("\n".join(tokenizer.vocabulary) + "\n", encoding="utf-8")


def load(directory: Path, device: torch.device | str = "cpu") -> tuple[GLIPv2, WordPiece]:
    """Rebuild a model and its tokenizer, in eval mode.

    Raises:
        ValueError: the folder is not a model, or its weights do not fit its configuration.
    """
    if missing := [name for name in (WEIGHTS, CONFIG, VOCABULARY) if not (directory / name).exists()]:
        raise ValueError(
            f"{directory} is no model folder: it lacks {', '.join(missing)}; give one written by pre-training"
        )
    cfg = _read_config(directory / CONFIG)
    model = GLIPv2(cfg)
    try:
        model.load_state_dict(load_file(directory / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        reason = textwrap.shorten(str(error), 200)  # torch lists every tensor on a line of its own
        raise ValueError(f"{directory / WEIGHTS} does not fit its {CONFIG}: {reason}; save the model again") from error
    # Not splitlines: real vocabularies hold characters it takes for line breaks.
    words = (directory / VOCABULARY).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return model.to(device).eval(), WordPiece(words, cfg.max_tokens)


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
