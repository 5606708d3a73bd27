"""Use a model: find categories in images, or the phrases of captions.

>>> predictor = Predictor.load(Path("/models/mine"), device="cuda", bf16=True)
>>> [found] = predictor.detect([Image.open("photo.jpg")], ["cat", "remote control"])
>>> [found] = predictor.ground([Image.open("photo.jpg")], ["Two cats sleep on a pink sofa."])
>>> [found] = predictor.detect_tuned([Image.open("photo.jpg")], TunedPrompt.load(Path("/prompts/cats.safetensors")))
>>> list(zip(found.phrases, found.scores, found.boxes_xyxy.tolist()))
"""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glipv2.checkpoint import fingerprint, load
from glipv2.image import Picture, pad_pictures, padded_size, prepare
from glipv2.inference.postprocess import Detections, PostprocessConfig, postprocess
from glipv2.inference.query import Query, caption_prompt, make_queries
from glipv2.model.boxes import to_half_open
from glipv2.model.glipv2 import GLIPv2, Pyramid
from glipv2.sample import pad_tokens
from glipv2.text.phrases import PatternParser, PhraseConfig, PhraseParser
from glipv2.text.prompts import Prompt, chunk_prompts
from glipv2.text.tokenizer import CharSpan, Tokenizer
from glipv2.transfer.feature_cache import FeatureCache
from glipv2.transfer.tuned_prompt import TunedPrompt

CACHED_TEXTS = 256
"""Encoded texts a predictor keeps: 200 MB if each is 256 tokens of width 768."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was found in one image, best first."""

    boxes_xyxy: Float[Tensor, "n 4"]
    """Half-open pixels of the image as given, on the CPU; EXIF orientation is not applied."""
    scores: list[float]
    """0..1."""
    labels: list[int]
    """For `Predictor.detect` category ids, for `Predictor.ground` positions in the list of spans."""
    phrases: list[str] = field(default_factory=list)
    """What each box is said to show: the category's name as given, or the caption's words."""
    spans: list[CharSpan] = field(default_factory=list)
    """``[begin, end)`` characters of the phrases in the caption; for `Predictor.detect` in no text of the caller's, so
    empty."""
    unseen: list[int] = field(default_factory=list)
    """Labels that could not be looked for: beyond the longest text, or without a token of their own."""
    finite: bool = True
    """Whether the network gave numbers; if not, it is broken, and that nothing was found means nothing."""


class Predictor:
    """A model with its tokenizer, ready for images of any size and mode (`glipv2.image.to_rgb`).

    The architecture has no mask for an image's padding, so padding changes what is found. Images share a batch only if
    each would be padded to the same size alone: what is found in one depends on no other image.

    Text features are kept from call to call. After changing a model's weights make a new predictor.

    Several threads may use it: each prepares its images and sorts out its boxes itself, only the network runs for one
    at a time.
    """

    def __init__(
        self,
        model: GLIPv2,
        tokenizer: Tokenizer,
        cfg: PostprocessConfig | None = None,
        *,
        bf16: bool = False,
        parser: PhraseParser | None = None,
        batch_size: int = 8,
    ) -> None:
        """Put the model in eval mode; it stays on its device.

        Args:
            model: shared, not copied.
            tokenizer: the model's own.
            cfg: thresholds; the reference's if not given.
            bf16: run image encoder, fusion and head in bfloat16. The text encoder and everything after the logits stay
                in single precision.
            parser: finds the phrases of captions given without spans; `PatternParser` if not given.
            batch_size: images per forward pass, which bounds the memory.

        Raises:
            ValueError: ``batch_size`` is less than one.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give at least 1")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.cfg = cfg or PostprocessConfig()
        self.device = next(model.parameters()).device
        self.bf16, self.batch_size = bf16, batch_size
        self.parser = parser or PatternParser(PhraseConfig())
        self.image_cache: FeatureCache | None = None
        """Set one to remember what the image encoder made of images: asking the same ones again then costs fusion and
        head alone. It must outlive its use here, and know no other model."""
        self._texts: dict[str, Tensor] = {}
        self._fingerprint = ""
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        directory: Path,
        device: torch.device | str = "cpu",
        cfg: PostprocessConfig | None = None,
        *,
        bf16: bool = False,
        batch_size: int = 8,
    ) -> "Predictor":
        """Load a model folder (`glipv2.checkpoint.load`)."""
        return cls(*load(directory, device), cfg, bf16=bf16, batch_size=batch_size)

    def detect(
        self,
        images: Sequence[Image.Image],
        categories: Sequence[str] | Mapping[int, str],
        *,
        max_categories: int | None = None,
    ) -> list[Prediction]:
        """Find any number of categories in every image.

        Categories are packed into as few prompts as hold them; an image is encoded once for all of them. The prompts'
        boxes are put together by score, at most ``max_detections`` an image. Categories of one prompt see each other:
        which other names are asked for, and in which order, changes the scores a little, but only within a prompt.

        Args:
            images: any sizes.
            categories: names, a label being the position of its name, or names by label. Cleaned as training does
                (`glipv2.text.prompts.clean_name`); a name given twice is looked for twice.
            max_categories: at most so many names in a prompt, even if more fit; LVIS is evaluated with 40.

        Raises:
            ValueError: an image cannot be read.
            TypeError: images are no PIL images, or categories a single text.
        """
        _check_images(images)
        _refuse_text(categories=categories)
        names = dict(categories if isinstance(categories, Mapping) else enumerate(categories))
        _check_texts("categories", names)
        prompts = chunk_prompts(list(names.items()), self.tokenizer, max_categories)
        found = self.find(images, [make_queries(prompts, self.tokenizer)] * len(images))
        return [replace(f, phrases=[names[label] for label in f.labels], spans=[]) for f in found]

    def detect_prompt(
        self, images: Sequence[Image.Image], prompt: Prompt, offset: Float[Tensor, "t d"] | None = None
    ) -> list[Prediction]:
        """Find the categories of one given prompt, optionally with tuned text features.

        Args:
            images: any sizes.
            prompt: a text whose spans are looked for; what its longest length cuts off is reported as unseen.
            offset: learned offset of the text features (`glipv2.transfer.tune`).
        """
        _check_images(images)
        queries = make_queries([prompt], self.tokenizer)
        features = None if offset is None else self._shift(queries, offset)
        return [replace(f, spans=[]) for f in self.find(images, [queries] * len(images), features)]

    def detect_tuned(self, images: Sequence[Image.Image], tuned: TunedPrompt) -> list[Prediction]:
        """Find the categories of a tuned prompt; needs no text encoder (`glipv2.checkpoint.load`).

        Raises:
            ValueError: it was tuned for another model, or an image cannot be read.
        """
        _check_images(images)
        queries = make_queries([tuned.prompt], self.tokenizer)
        self._fingerprint = self._fingerprint or fingerprint(self.model)
        tuned.check(self._fingerprint, queries[0].encoding.ids)
        return [replace(f, spans=[]) for f in self.find(images, [queries] * len(images), tuned.features)]

    def ground(
        self,
        images: Sequence[Image.Image],
        captions: Sequence[str],
        spans: Sequence[Sequence[CharSpan]] | None = None,
    ) -> list[Prediction]:
        """Find the phrases of each image's own caption.

        A phrase is scored by the mean of exactly the tokens of its span. Every span is a label of its own, whatever the
        words: neighbours never merge, and a phrase said twice is looked for twice.

        Args:
            images: any sizes.
            captions: one per image.
            spans: per caption the ``[begin, end)`` characters of its phrases; noun phrases found by the parser if not
                given.

        Raises:
            ValueError: images, captions and spans differ in number, a span is not within its caption, or an image
                cannot be read.
            TypeError: images are no PIL images, or captions a single text.
        """
        _check_images(images)
        _refuse_text(captions=captions)
        _check_texts("captions", dict(enumerate(captions)))
        if len(captions) != len(images):
            raise ValueError(f"{len(images)} images, but {len(captions)} captions; give one caption for each image")
        if spans is None:
            spans = [[(phrase.begin, phrase.end) for phrase in self.parser(caption)] for caption in captions]
        if len(spans) != len(captions):
            raise ValueError(f"{len(captions)} captions, but {len(spans)} lists of spans; give one list for each")
        prompts = [caption_prompt(*both) for both in zip(captions, spans, strict=True)]
        return self.find(images, [[query] for query in make_queries(prompts, self.tokenizer)])

    @torch.no_grad()  # not inference mode: its tensors could not be changed by who gets them
    def find(
        self, images: Sequence[Image.Image], queries: Sequence[Sequence[Query]], text: Tensor | None = None
    ) -> list[Prediction]:
        """Look for what is asked of each image; all images are asked equally often.

        Args:
            images: any sizes.
            queries: per image tokenized texts; a label is scored by the mean of the tokens its query names.
            text: features of the text of all queries, instead of what the text encoder would give.
        """
        found = [_prediction(None, own, [], 0) for own in queries]
        for batch in self._batches(images, [i for i, own in enumerate(queries) if any(q.seen for q in own)]):
            pictures = [prepare(images[i], self.model.cfg) for i in batch]
            pixels = pad_pictures(pictures, self.model.cfg.pad_multiple_px)
            with self._lock, self._autocast():
                pyramid = self._see(pixels)
            turns = zip(*(queries[i] for i in batch), strict=True)
            parts = [self._ask(pyramid, [p.size for p in pictures], turn, text) for turn in turns]
            finite = torch.stack([numbers for _, numbers in parts]).all(0).tolist()
            for i, picture, sound, *own in zip(batch, pictures, finite, *(part for part, _ in parts), strict=True):
                found[i] = replace(_prediction(picture, queries[i], own, self.cfg.max_detections), finite=sound)
        return found

    def _see(self, pixels: Float[Tensor, "b 3 h w"]) -> Pyramid:
        """Encode a batch of images, or remember it: the same pixels, padding included, have the same features."""
        if self.image_cache is None:
            return self.model.encode_image(pixels.to(self.device))
        key = (pixels.shape, hashlib.sha256(pixels.numpy().tobytes()).digest())
        known = self.image_cache.get(key, lambda: self.model.encode_image(pixels.to(self.device)))
        return [level.to(self.device) for level in known]

    def _batches(self, images: Sequence[Image.Image], wanted: Sequence[int]) -> list[list[int]]:
        """Group images by their size in the network."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i in wanted:
            groups.setdefault(padded_size(images[i].size, self.model.cfg), []).append(i)
        size = self.batch_size
        return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]

    def _ask(
        self, pyramid: Pyramid, sizes: Sequence[tuple[int, int]], queries: Sequence[Query], features: Tensor | None
    ) -> tuple[list[Detections], Bool[Tensor, " b"]]:
        """Ask one query of each image of a batch; tell also whose alignments are numbers."""
        lengths = torch.tensor([len(query.encoding.ids) for query in queries], device=self.device)
        with self._lock:
            text = self._encode(queries) if features is None else features.to(self.device).expand(len(queries), -1, -1)
            mask = (torch.arange(text.shape[1], device=self.device) < lengths[:, None]).long()
            with self._autocast():
                regions = self.model.fuse(pyramid, text, mask)
        tokens = [list(query.tokens.values()) for query in queries]
        # What is no number exceeds no threshold, so a broken network finds nothing. A sum shows it, in one pass.
        finite = regions.alignment.sum((1, 2)).isfinite()
        return postprocess(regions, tokens, sizes, self.model.cfg, self.cfg), finite

    @torch.no_grad()
    def _shift(self, queries: Sequence[Query], offset: Tensor) -> Float[Tensor, "t d"]:
        """Move the text features of one prompt by an offset."""
        with self._lock:
            features = self._encode(queries)[0]
        return features + offset[: len(features)].to(self.device)

    def _encode(self, queries: Sequence[Query]) -> Float[Tensor, "b t d"]:
        """Encode texts, or remember them; what is padded is zero and never read."""
        new = {q.prompt.text: q.encoding for q in queries if q.prompt.text not in self._texts}
        if new:
            ids, mask = pad_tokens(list(new.values()), self.tokenizer.pad_id)
            encoded = self.model.encode_text(ids.to(self.device), mask.to(self.device))
            for (text, encoding), features in zip(new.items(), encoded, strict=True):
                self._texts[text] = features[: len(encoding.ids)].clone()
        batch = pad_sequence([self._texts[query.prompt.text] for query in queries], batch_first=True)
        for text in list(self._texts)[:-CACHED_TEXTS]:
            del self._texts[text]
        return batch

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def _prediction(
    picture: Picture | None, queries: Sequence[Query], parts: Sequence[Detections], limit: int
) -> Prediction:
    """Put together what all queries found in one image."""
    unseen = sorted(label for query in queries for label in query.unseen)
    if picture is None:
        return Prediction(boxes_xyxy=torch.zeros(0, 4), scores=[], labels=[], unseen=unseen)
    scores, best = torch.cat([part.scores for part in parts]).cpu().sort(descending=True, stable=True)
    owners = [(query, label) for query, part in zip(queries, parts, strict=True) for label in _labels(query, part)]
    chosen = [owners[i] for i in best[:limit].tolist()]
    spans = [query.prompt.spans[label] for query, label in chosen]
    x, y = picture.scale_xy
    boxes = to_half_open(torch.cat([part.boxes_xyxy for part in parts]).cpu()[best[:limit]])
    boxes = boxes / torch.tensor([x, y, x, y])
    return Prediction(
        boxes_xyxy=boxes.minimum(torch.tensor(picture.original_size * 2)),  # rounding may step over the edge
        scores=scores[:limit].tolist(),
        labels=[label for _, label in chosen],
        phrases=[query.prompt.text[slice(*span)] for (query, _), span in zip(chosen, spans, strict=True)],
        spans=spans,
        unseen=unseen,
    )


def _labels(query: Query, part: Detections) -> list[int]:
    labels = list(query.tokens)
    return [labels[position] for position in part.labels.tolist()]


def _check_images(images: Sequence[Image.Image]) -> None:
    if isinstance(images, Image.Image):
        raise TypeError("images is one picture; give a list of pictures, as in [picture]")
    for i, image in enumerate(images):
        if not isinstance(image, Image.Image):
            raise TypeError(f"images[{i}] is a {type(image).__name__}; give PIL images, as from PIL.Image.open(path)")


def _check_texts(what: str, texts: Mapping[int, str]) -> None:
    for i, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{what}[{i}] is {text!r}, a {type(text).__name__}; give a text")


def _refuse_text(**given: object) -> None:
    """Refuse a single text where a list of texts is meant: its letters would be taken one by one."""
    for name, value in given.items():
        if isinstance(value, str):
            raise TypeError(f"{name} is the text {value[:40]!r}; give a list of texts, as in [{value[:40]!r}]")
