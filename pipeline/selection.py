"""Which of the stored boxes training uses. Labels are stored low (0.3) once; this choice is made at load time.

The published rules differ and thresholds belong to their teacher (reference notes on GLIP, Kosmos-2 and OWL-ST), so the
rule is three numbers. The default is exclusive: an object belongs to its best phrase, a phrase mention to its best box.
In a trial of a small teacher on drawn captions with novel nouns, letting every phrase keep three boxes gave precision
0.26 on novel phrases and a student far below its teacher; exclusive labels gave 0.6 to 0.7.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Box = Sequence[float]


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """The rule."""

    min_score: float = 0.4
    """Boxes below it are not used; labels are stored from 0.3 up."""
    exclusive_iou: float = 0.5
    """Of two boxes of different phrases overlapping more than this only the better one is used; 1 switches it off."""
    boxes_per_phrase: int = 1
    """Best boxes used per phrase mention; 0 means all."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in (("min_score", self.min_score), ("exclusive_iou", self.exclusive_iou)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; give a number between 0 and 1")
        if self.boxes_per_phrase < 0:
            raise ValueError(f"boxes_per_phrase is {self.boxes_per_phrase}; give 0 for all, or a count")


def glip() -> SelectionConfig:
    """Select as GLIP's reader does: every box above 0.5."""
    return SelectionConfig(min_score=0.5, exclusive_iou=1.0, boxes_per_phrase=0)


def kosmos2() -> SelectionConfig:
    """Select as Kosmos-2's GRIT does: above 0.65, one phrase per object (class-agnostic suppression)."""
    return SelectionConfig(min_score=0.65, exclusive_iou=0.5, boxes_per_phrase=0)


def select(
    boxes_xyxy: Sequence[Box], scores: Sequence[float], phrases: Sequence[int], cfg: SelectionConfig
) -> list[int]:
    """Choose boxes of one image.

    Args:
        boxes_xyxy: half-open pixels.
        scores: teacher's confidence per box.
        phrases: phrase mention per box.
        cfg: the rule.

    Returns:
        Positions of the chosen boxes, best first.
    """
    chosen: list[int] = []
    per_phrase: dict[int, int] = {}
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        full = cfg.boxes_per_phrase and per_phrase.get(phrases[index], 0) >= cfg.boxes_per_phrase
        if scores[index] < cfg.min_score or full:
            continue
        if any(
            phrases[other] != phrases[index] and overlap(boxes_xyxy[other], boxes_xyxy[index]) > cfg.exclusive_iou
            for other in chosen
        ):
            continue
        chosen.append(index)
        per_phrase[phrases[index]] = per_phrase.get(phrases[index], 0) + 1
    return chosen


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two half-open boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (areas[0] + areas[1] - width * height)
