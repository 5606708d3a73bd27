"""A tuned prompt as one small file: the text features themselves, so that nobody needs the text encoder to use it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from glipv2.checkpoint import fingerprint
from glipv2.model.glipv2 import GLIPv2
from glipv2.sample import pad_tokens
from glipv2.text.prompts import Prompt
from glipv2.text.tokenizer import Tokenizer

FEATURES, ABOUT = "features", "tuned_prompt"


@dataclass(frozen=True, kw_only=True)
class TunedPrompt:
    """What prompt tuning learned, ready for `glipv2.inference.predictor.Predictor.detect_tuned`."""

    prompt: Prompt
    """The text and its categories."""
    tokens: tuple[int, ...]
    """The text's token ids, which tell whether a tokenizer is the one it was tuned with."""
    features: Float[Tensor, "t d"]
    """The prompt's features plus the learned offset, one row per token."""
    model: str
    """Fingerprint of the model it was tuned for, text encoder excepted (`glipv2.checkpoint.fingerprint`)."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Where it comes from: data set, shots, seed and the like."""

    def check(self, model: str, tokens: Sequence[int]) -> None:
        """See to it that it is used with its own model.

        Args:
            model: the fingerprint of the model at hand.
            tokens: the text's tokens under that model's tokenizer.

        Raises:
            ValueError: it is another model.
        """
        if model != self.model:
            raise ValueError(
                f"the tuned prompt is for the model {self.model[:12]}, but this one is {model[:12]}; load the model it "
                "was tuned with, or tune it anew"
            )
        if tuple(tokens) != self.tokens:
            raise ValueError(
                f"the tokenizer makes other tokens of the tuned prompt {self.prompt.text[:40]!r} than it was tuned "
                "with; load the model's own vocabulary"
            )

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        about = {"prompt": asdict(self.prompt), "tokens": self.tokens, "model": self.model, "tags": dict(self.tags)}
        save_file({FEATURES: self.features.detach().cpu().contiguous()}, path, {ABOUT: json.dumps(about)})

    @staticmethod
    def load(path: Path) -> "TunedPrompt":
        """Read a file that `save` wrote.

        Raises:
            ValueError: there is none, or it is something else.
        """
        try:
            with safe_open(path, "pt") as file:
                features = file.get_tensor(FEATURES).clone()
                about = json.loads((file.metadata() or {})[ABOUT])
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise ValueError(
                f"{path} cannot be read as a tuned prompt ({error}); give a file that TunedPrompt.save wrote"
            ) from error
        saved = about["prompt"]
        spans = {int(category): (begin, end) for category, (begin, end) in saved["spans"].items()}
        return TunedPrompt(
            prompt=Prompt(text=saved["text"], spans=spans, dropped=tuple(saved["dropped"])),
            tokens=tuple(about["tokens"]),
            features=features,
            model=about["model"],
            tags=about["tags"],
        )


def make_tuned_prompt(
    model: GLIPv2,
    tokenizer: Tokenizer,
    prompt: Prompt,
    offset: Float[Tensor, "t d"],
    tags: Mapping[str, str] | None = None,
) -> TunedPrompt:
    """Put the prompt's features and a learned offset together, with the model's fingerprint."""
    [encoding] = tokenizer([prompt.text])
    return TunedPrompt(
        prompt=prompt,
        tokens=tuple(encoding.ids),
        features=(encode_prompt(model, tokenizer, prompt.text) + offset).cpu(),
        model=fingerprint(model),
        tags=dict(tags or {}),
    )


@torch.no_grad()
def encode_prompt(model: GLIPv2, tokenizer: Tokenizer, text: str) -> Float[Tensor, "t d"]:
    """Compute the text features of one prompt, without padding, on the model's device."""
    ids, mask = pad_tokens(tokenizer([text]), tokenizer.pad_id)
    device = next(model.parameters()).device
    return model.encode_text(ids.to(device), mask.to(device))[0]
