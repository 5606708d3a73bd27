"""Which teacher a word means: a model folder of ours, or a grounding detector of transformers, here or on the hub.

What tells teachers apart in the stored rows is their name and the hash of their weights, which both driver and actors
can find without loading the model.
"""

import hashlib
import json
import re
from pathlib import Path

from glipv2.checkpoint import CONFIG, weights_sha256
from pipeline.teachers.interface import Teacher, TeacherConfig

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?")
GROUNDING_DETECTORS = ("grounding-dino", "mm-grounding-dino")
"""Architectures of transformers that score the words of a caption."""
WORDS = ("tokenizer.json", "vocab.txt")
"""Either holds a tokenizer's words."""
FILES = ("*.json", "*.txt", "*.safetensors")
"""What of a repository on the hub is needed."""


def load_teacher(ref: str, cfg: TeacherConfig) -> Teacher:
    """Load a teacher.

    Args:
        ref: absolute path of a model folder, or ``owner/name`` on the Hugging Face hub, optionally with ``@revision``.
        cfg: how it runs.

    Raises:
        ValueError: it is no teacher.
        OSError: the hub has to be asked and cannot be reached.
    """
    folder, identity = _resolve(ref)
    if _architecture(folder) is None:
        from pipeline.teachers.glip import GlipTeacher

        return GlipTeacher(folder, identity, cfg)
    from pipeline.teachers.dino import DinoTeacher

    return DinoTeacher(folder, identity, cfg)


def teacher_identity(ref: str) -> tuple[str, str]:
    """Tell a teacher's name and the sha256 of its weights without loading it.

    The name is that of the folder (of the one around it if it is called ``model``), or the repository on the hub.

    Raises:
        ValueError: it is no teacher.
        OSError: the hub has to be asked and cannot be reached.
    """
    return _resolve(ref)[1]


def _resolve(ref: str) -> tuple[Path, tuple[str, str]]:
    folder, name = _find(ref)
    architecture = _architecture(folder)
    if architecture is None:
        return folder, (name, weights_sha256(folder))
    if architecture not in GROUNDING_DETECTORS:
        raise ValueError(
            f"{ref} is a model of type {architecture!r}, but of transformers' models only "
            f"{' and '.join(GROUNDING_DETECTORS)} score the words of a caption; give one of those, or a model folder "
            "of this project"
        )
    if not any((folder / name).is_file() for name in WORDS):  # transformers would make up an empty vocabulary
        raise ValueError(f"{folder} holds no tokenizer ({' or '.join(WORDS)}); save the processor beside the model")
    return folder, (name, _shards_sha256(folder))


def _find(ref: str) -> tuple[Path, str]:
    """Find the folder and the name of a teacher."""
    path = Path(ref)
    if path.is_file():
        raise ValueError(f"{ref} is a file; make a model folder of weights with jobs.convert and give that")
    if path.is_absolute() and path.is_dir():
        return path, path.parent.name if path.name == "model" else path.name
    match = HUB_ID.fullmatch(ref)
    if match is None:
        raise ValueError(
            f"there is no teacher at {ref!r}; give a model folder's absolute path, or owner/name on the hub"
        )
    return _from_hub(match["repository"], match["revision"]), match["repository"]


def _from_hub(repository: str, revision: str | None) -> Path:
    """Fetch a repository, or find it as it was fetched before if the hub cannot be reached."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except OSError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionError(
            f"cannot get the teacher {repository} from the hub: {reason} Or give the folder it was saved to"
        ) from error


def _architecture(folder: Path) -> str | None:
    """Tell which architecture of transformers a folder holds; None for a model of ours, or for nothing at all."""
    config = folder / CONFIG
    try:
        known = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{config} is damaged: {error}; save the model again") from error
    return known.get("model_type") if isinstance(known, dict) else None


def _shards_sha256(folder: Path) -> str:
    """Hash the weights, which may come in several files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no weights in safetensors; save the model again with transformers")
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
