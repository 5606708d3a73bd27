"""Models of this project as teachers: own checkpoints, and released GLIP weights after ``jobs.convert``."""

from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image

from glipv2.image import padded_size
from glipv2.inference.postprocess import PostprocessConfig
from glipv2.inference.predictor import Predictor
from glipv2.inference.query import Query
from glipv2.text.prompts import Prompt
from glipv2.text.tokenizer import Encoding
from pipeline.teachers.interface import Entity, Found, TeacherConfig
from pipeline.teachers.tokens import entity_tokens


class GlipTeacher:
    """A model folder (`glipv2.checkpoint`) as a teacher."""

    def __init__(self, folder: Path, identity: tuple[str, str], cfg: TeacherConfig) -> None:
        """Load the model.

        Args:
            folder: the model.
            identity: name and hash of the weights.
            cfg: how it runs.

        Raises:
            ValueError: the folder is no model.
        """
        self.name, self.sha256 = identity
        limits = PostprocessConfig(
            # A score is the root of class score times centerness, so what is below its square never reaches it.
            min_class_score=max(PostprocessConfig.min_class_score, 0.99 * cfg.min_score**2),
            nms_iou=cfg.nms_iou,
            max_detections=cfg.max_boxes,
        )
        self.predictor = Predictor.load(folder, cfg.device, limits, bf16=cfg.bf16, batch_size=cfg.batch_size)

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Tell the width and height an image of this size has in the network."""
        return padded_size(size, self.predictor.model.cfg)

    def ground(
        self, images: Sequence[Image], captions: Sequence[str], entities: Sequence[Sequence[Entity]]
    ) -> list[Found]:
        """Find the entities of each image's own caption."""
        encodings = self.predictor.tokenizer(captions)
        queries = [[_query(*own)] for own in zip(captions, entities, encodings, strict=True)]
        return [
            Found(boxes_xyxy=p.boxes_xyxy.tolist(), scores=p.scores, entities=p.labels, finite=p.finite)
            for p in self.predictor.find(images, queries)
        ]


def _query(caption: str, entities: Sequence[Entity], encoding: Encoding) -> Query:
    prompt = Prompt(text=caption, spans={number: mentions[0] for number, mentions in enumerate(entities)})
    return Query(prompt=prompt, encoding=encoding, tokens=dict(enumerate(entity_tokens(encoding, caption, entities))))
