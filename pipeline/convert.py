"""Weights of the public GLIP into a model folder of ours: one process, no Ray."""

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from glipv2 import checkpoint
from glipv2.config import ModelConfig
from glipv2.model.glipv2 import GLIPv2
from glipv2.text.tokenizer import Tokenizer, load_tokenizer
from pipeline.paths import NOT_GIVEN, require

HUB_ID = re.compile(r"([\w.-]+/[\w.-]+?)(?::(.+))?")
VOCABULARY_REPOSITORY, VOCABULARY = "google-bert/bert-base-uncased", "vocab.txt"


@dataclass(frozen=True, kw_only=True)
class ConvertJob:
    """One file of weights."""

    weights: str = ""
    """File of the public GLIP, absolute, or ``owner/repo[:filename]`` on the Hugging Face hub."""
    hub_filename: str = ""
    """What the file is called on the hub if ``weights`` does not say."""
    vocabulary: Path = NOT_GIVEN
    """bert-base-uncased's ``vocab.txt``, absolute; without it the hub's is taken."""
    out: Path = NOT_GIVEN
    """Model folder to write, absolute."""
    init_missing_heads: bool = False
    """Start heads that only training uses from random weights where the file has none."""
    model: ModelConfig
    """Size the weights are of."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        require(out=self.out, **({} if self.vocabulary == NOT_GIVEN else {"vocabulary": self.vocabulary}))
        if not Path(self.weights).is_absolute():
            self.hub_file()

    def hub_file(self) -> tuple[str, str]:
        """Tell repository and file on the hub.

        Raises:
            ValueError: ``weights`` names none.
        """
        match = HUB_ID.fullmatch(self.weights)
        filename = match and (match[2] or self.hub_filename)
        if not match or not filename or (not match[2] and self.weights.endswith((".pth", ".safetensors"))):
            raise ValueError(
                f"--weights is {self.weights!r}; give an absolute path, or owner/repo:filename on the Hugging Face hub"
            )
        return match[1], filename


def convert(cfg: ConvertJob) -> str:
    """Write the model folder and tell where it is; repeated, it writes the same again.

    Raises:
        ValueError: the weights or the vocabulary do not fit, or ``out`` holds another model.
        OSError: the hub has to be asked and cannot be reached.
    """
    vocabulary = cfg.vocabulary
    if vocabulary == NOT_GIVEN:
        vocabulary = _from_hub(VOCABULARY_REPOSITORY, VOCABULARY, "give --vocabulary /abs/vocab.txt")
    tokenizer = load_tokenizer(vocabulary, cfg.model.max_tokens)
    if tokenizer.vocab_size != cfg.model.vocab_size:
        raise ValueError(
            f"{vocabulary} has {tokenizer.vocab_size} tokens but the model {cfg.model.vocab_size}; give the vocabulary "
            "the weights were trained with"
        )
    weights = Path(cfg.weights)
    if not weights.is_absolute():
        weights = _from_hub(*cfg.hub_file(), "give --weights /abs/file.pth")
    torch.manual_seed(0)  # heads that start at random shall be the same the second time
    model = checkpoint.load_released(weights, cfg.model, init_missing_heads=cfg.init_missing_heads)

    return f"model      {cfg.out}\nweights    sha256 {_publish(model, tokenizer, cfg.out)}"


def _publish(model: GLIPv2, tokenizer: Tokenizer, out: Path) -> str:
    """Write beside the folder, then move file by file, weights last: with them a model is whole."""
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an earlier attempt that was killed
    checkpoint.save(model, tokenizer, unfinished)
    digest = checkpoint.weights_sha256(unfinished)
    if (out / checkpoint.WEIGHTS).exists() and checkpoint.weights_sha256(out) != digest:
        shutil.rmtree(unfinished)
        raise ValueError(f"{out} already holds another model; give another --out")
    out.mkdir(exist_ok=True)
    for file in sorted(unfinished.iterdir(), key=lambda file: file.name == checkpoint.WEIGHTS):
        file.replace(out / file.name)
    unfinished.rmdir()
    return digest


def _from_hub(repository: str, filename: str, remedy: str) -> Path:
    from huggingface_hub import hf_hub_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it announces each of its retries
    try:
        return Path(hf_hub_download(repository, filename))
    except OSError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionError(f"cannot get {filename} of {repository} from the hub: {reason} Or {remedy}") from error
