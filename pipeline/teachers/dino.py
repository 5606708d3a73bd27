"""Grounding detectors of transformers as teachers: Grounding DINO and MM Grounding DINO.

The caption is the prompt, as these models expect it: lower case, with a full stop at its end.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glipv2.image import target_size, to_rgb
from glipv2.inference.postprocess import suppress
from glipv2.text.tokenizer import Encoding
from pipeline.teachers.interface import Entity, Found, TeacherConfig
from pipeline.teachers.tokens import entity_tokens

PAD_MULTIPLE_PX = 32
"""Images are padded to multiples of it. A mask tells the network what is padding, yet its backbone reads it, so images
share a pass only if they would be padded alike alone."""
NUM_AROUND = 3
"""Tokens added to every caption: its start, the full stop and its end."""


class DinoTeacher:
    """A Grounding DINO or MM Grounding DINO, weights and processor from one folder."""

    def __init__(self, folder: Path, identity: tuple[str, str], cfg: TeacherConfig) -> None:
        """Load the model.

        Args:
            folder: as ``save_pretrained`` of model and processor write it.
            identity: name and hash of the weights.
            cfg: how it runs.

        Raises:
            ValueError: a file of the folder is missing or damaged.
        """
        from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.name, self.sha256 = identity
        self.cfg = cfg
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self.processor: Any = AutoImageProcessor.from_pretrained(folder)
            model = AutoModelForZeroShotObjectDetection.from_pretrained(folder, use_safetensors=True)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{folder} cannot be loaded: {reason}; save model and processor there again") from error
        self.model: Any = model.to(device=cfg.device, dtype=torch.float32).eval()
        text = self.model.config.text_config
        self.max_tokens = min(self.model.config.max_text_len, text.max_position_embeddings)
        self._lock = threading.Lock()

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Tell the width and height an image of this size has in the network."""
        wanted = self.processor.size
        if wanted.shortest_edge and wanted.longest_edge:
            size = target_size(*size, wanted.shortest_edge, wanted.longest_edge)
        return size[0] + -size[0] % PAD_MULTIPLE_PX, size[1] + -size[1] % PAD_MULTIPLE_PX

    def ground(
        self, images: Sequence[Image], captions: Sequence[str], entities: Sequence[Sequence[Entity]]
    ) -> list[Found]:
        """Find the entities of each image's own caption."""
        encodings = [self._encode(caption) for caption in captions]
        tokens = [entity_tokens(*own) for own in zip(encodings, captions, entities, strict=True)]
        found = [Found() for _ in images]
        pictures = {i: self._prepare(images[i]) for i, own in enumerate(tokens) if any(own)}
        for batch in self._batches(pictures):
            logits, boxes = self._forward([pictures[i] for i in batch], [encodings[i] for i in batch])
            for i, scored, placed in zip(batch, logits, boxes, strict=True):
                found[i] = self._choose(scored, placed, tokens[i], images[i].size)
        return found

    def _encode(self, caption: str) -> Encoding:
        """Tokenize a caption; a full stop ends it even if it is cut, as without it no word would see another."""
        # Letters whose lower case is longer would shift all spans behind them.
        text = "".join(c.lower() if len(c.lower()) == 1 else c for c in caption)
        with self._lock:  # a tokenizer in use by one thread refuses another
            known = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            start, stop, end = self.tokenizer.convert_tokens_to_ids(
                [self.tokenizer.cls_token, ".", self.tokenizer.sep_token]
            )
        room = self.max_tokens - NUM_AROUND
        ids, offsets = known["input_ids"][:room], [(begin, until) for begin, until in known["offset_mapping"][:room]]
        last = offsets[-1][1] if offsets else 0
        return Encoding(
            ids=[start, *ids, stop, end],
            offsets=[(0, 0), *offsets, (last, last), (0, 0)],
            cut=len(known["input_ids"]) > room,
        )

    def _prepare(self, image: Image) -> Float[Tensor, "3 h w"]:
        pixels: Tensor = self.processor(images=to_rgb(image), return_tensors="pt")["pixel_values"][0]
        return pixels

    def _batches(self, pictures: dict[int, Tensor]) -> list[list[int]]:
        """Group images by their padded size, which the processor decides in the end."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, pixels in pictures.items():
            groups.setdefault(_padded(pixels), []).append(i)
        size = self.cfg.batch_size
        return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]

    @torch.no_grad()
    def _forward(
        self, pictures: Sequence[Tensor], encodings: Sequence[Encoding]
    ) -> tuple[Float[Tensor, "b q t"], Float[Tensor, "b q 4"]]:
        height, width = _padded(pictures[0])
        pixels = torch.stack([_pad(p, height, width) for p in pictures])
        seen = torch.stack([_pad(torch.ones(p.shape[1:], dtype=torch.long), height, width) for p in pictures])
        ids, mask = _pad_texts(encodings, self.tokenizer.pad_token_id)
        device = self.cfg.device
        with self._lock, torch.autocast(device, torch.bfloat16, enabled=self.cfg.bf16):
            answer = self.model(
                pixel_values=pixels.to(device),
                pixel_mask=seen.to(device),
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
            )
            return answer.logits.float().cpu(), answer.pred_boxes.float().cpu()

    def _choose(
        self,
        logits: Float[Tensor, "q t"],
        boxes_cxcywh_norm: Float[Tensor, "q 4"],
        tokens: Sequence[Sequence[int]],
        size: tuple[int, int],
    ) -> Found:
        """Score every entity by the mean of its tokens and keep its boxes.

        The mean is how the models' own demonstrations and mmdetection score a phrase, and how GLIP does: a phrase needs
        all its words, where the highest would let "red" alone answer for a red ring.
        """
        scores = torch.stack([logits[:, own].sigmoid().mean(1) for own in tokens if own], 1)
        if not (scores.isfinite().all() and boxes_cxcywh_norm.isfinite().all()):
            return Found(finite=False)
        labels = torch.tensor([number for number, own in enumerate(tokens) if own])
        query, column = (scores >= self.cfg.min_score).nonzero(as_tuple=True)
        ranked, order = scores[query, column].sort(descending=True, stable=True)
        boxes = _to_pixels(boxes_cxcywh_norm[query[order]], size)
        entities = labels[column[order]]
        # Suppression expects inclusive corners, which are a pixel less.
        inclusive = boxes - boxes.new_tensor([0, 0, 1, 1])
        kept = suppress(inclusive, entities, self.cfg.nms_iou)[: self.cfg.max_boxes]
        return Found(boxes_xyxy=boxes[kept].tolist(), scores=ranked[kept].tolist(), entities=entities[kept].tolist())


def _padded(pixels: Float[Tensor, "3 h w"]) -> tuple[int, int]:
    height, width = pixels.shape[1:]
    return height + -height % PAD_MULTIPLE_PX, width + -width % PAD_MULTIPLE_PX


def _pad(pixels: Tensor, height: int, width: int) -> Tensor:
    return F.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]))


def _pad_texts(encodings: Sequence[Encoding], pad_id: int) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    ids = [torch.tensor(encoding.ids) for encoding in encodings]
    mask = pad_sequence([torch.ones_like(own) for own in ids], batch_first=True)
    return pad_sequence(ids, batch_first=True, padding_value=pad_id), mask


def _to_pixels(boxes_cxcywh_norm: Float[Tensor, "n 4"], size: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """Turn shares of the image, padding excluded, into corners within it."""
    centre, extent = boxes_cxcywh_norm[:, :2], boxes_cxcywh_norm[:, 2:]
    corners = torch.cat([centre - extent / 2, centre + extent / 2], 1).clamp(0, 1)
    return corners * corners.new_tensor([*size, *size])
