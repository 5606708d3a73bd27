"""Use a model: find categories in images, or the phrases of captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from glipv2.image import Picture, pad_pictures, prepare
from glipv2.inference.postprocess import Detections, PostprocessConfig, postprocess
from glipv2.model.boxes import to_half_open
from glipv2.model.glipv2 import GLIPv2
from glipv2.sample import pad_tokens
from glipv2.text.positive_map import tokens_of_span
from glipv2.text.prompts import Prompt
from glipv2.text.tokenizer import CharSpan, WordPiece


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was found in one image, best first."""

    boxes_xyxy: Float[Tensor, "n 4"]
    """Half-open pixels of the image as given."""
    scores: list[float]
    """0..1."""
    labels: list[int]
    """For `Predictor.detect` category ids, for `Predictor.ground` positions in the list of spans."""


class Predictor:
    """A model with its tokenizer, ready for images of any size."""

    def __init__(self, model: GLIPv2, tokenizer: WordPiece, cfg: PostprocessConfig | None = None) -> None:
        """Put the model in eval mode; it stays on its device."""
        self.model, self.tokenizer = model.eval(), tokenizer
        self.cfg = cfg or PostprocessConfig()
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def detect(
        self, images: Sequence[Image.Image], prompt: Prompt, offset: Float[Tensor, "t d"] | None = None
    ) -> list[Prediction]:
        """Find the categories of one prompt in every image.

        Args:
            images: any modes and sizes.
            prompt: the categories; a name cut off by the longest prompt never fires.
            offset: learned offset of the text features (`glipv2.transfer.prompt`).
        """
        encoding = self.tokenizer([prompt.text])[0]
        ids, mask = (x.to(self.device) for x in pad_tokens([encoding], self.tokenizer.pad_id))
        text = self.model.encode_text(ids, mask)
        if offset is not None:
            text = text + offset[: text.shape[1]]
        tokens = [tokens_of_span(encoding.offsets, span) for span in prompt.spans.values()]
        pictures = [prepare(image, self.model.cfg) for image in images]
        pyramid = self.model.encode_image(self._pixels(pictures))
        count = len(pictures)
        regions = self.model.fuse(pyramid, text.expand(count, -1, -1), mask.expand(count, -1))
        found = postprocess(regions, [tokens] * count, [p.size for p in pictures], self.model.cfg, self.cfg)
        categories = list(prompt.spans)
        return [
            _prediction(d, p, [categories[label] for label in d.labels.tolist()])
            for d, p in zip(found, pictures, strict=True)
        ]

    @torch.inference_mode()
    def ground(
        self, images: Sequence[Image.Image], captions: Sequence[str], spans: Sequence[Sequence[CharSpan]]
    ) -> list[Prediction]:
        """Find the phrases of each image's own caption; a label is the position of its span in ``spans[i]``."""
        encodings = self.tokenizer(captions)
        ids, mask = (x.to(self.device) for x in pad_tokens(encodings, self.tokenizer.pad_id))
        pictures = [prepare(image, self.model.cfg) for image in images]
        pyramid, text = self.model.encode_image(self._pixels(pictures)), self.model.encode_text(ids, mask)
        regions = self.model.fuse(pyramid, text, mask)
        tokens = [
            [tokens_of_span(encoding.offsets, span) for span in phrases]
            for encoding, phrases in zip(encodings, spans, strict=True)
        ]
        found = postprocess(regions, tokens, [p.size for p in pictures], self.model.cfg, self.cfg)
        return [_prediction(d, p, d.labels.tolist()) for d, p in zip(found, pictures, strict=True)]

    def _pixels(self, pictures: Sequence[Picture]) -> Tensor:
        return pad_pictures(pictures, self.model.cfg.pad_multiple_px).to(self.device)


def _prediction(found: Detections, picture: Picture, labels: list[int]) -> Prediction:
    x, y = picture.scale_xy
    boxes = to_half_open(found.boxes_xyxy.cpu()) / torch.tensor([x, y, x, y])
    boxes = boxes.minimum(torch.tensor(picture.original_size * 2))  # rounding may step over the edge
    return Prediction(boxes_xyxy=boxes, scores=found.scores.tolist(), labels=labels)
