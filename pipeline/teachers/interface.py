"""What a teacher is given and what it answers. Knows no model, so that the driver may import it cheaply."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from PIL.Image import Image

from glipv2.text.tokenizer import CharSpan

Entity = Sequence[CharSpan]
"""Mentions of one thing: ``[begin, end)`` characters of the caption, first mention first."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How a teacher runs, and which boxes it answers with."""

    device: str = "cpu"
    """Where the network runs: ``cpu`` or ``cuda``."""
    bf16: bool = False
    """Run the network in bfloat16."""
    batch_size: int = 16
    """Images per forward pass at most."""
    min_score: float = 0.3
    """Boxes below it are not wanted."""
    nms_iou: float = 0.6
    """Of two boxes of one entity overlapping more than this only the better one is kept."""
    max_boxes: int = 100
    """Boxes per image, best first."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a teacher found in one image, best first."""

    boxes_xyxy: list[list[float]] = field(default_factory=list)
    """Half-open pixels of the image as given."""
    scores: list[float] = field(default_factory=list)
    """0..1."""
    entities: list[int] = field(default_factory=list)
    """Per box, the position of its entity in the list given."""
    finite: bool = True
    """False if the network gave what is no number; then what was found means nothing."""


@runtime_checkable
class Teacher(Protocol):
    """A model that grounds captions.

    Several threads may call it: images are prepared side by side, the network runs for one at a time.
    """

    @property
    def name(self) -> str:
        """Name stored with every row it labels."""

    @property
    def sha256(self) -> str:
        """Hash of its weights, stored with every row it labels."""

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Tell the width and height an image of this size has in the network; those of one size share a pass."""

    def ground(
        self, images: Sequence[Image], captions: Sequence[str], entities: Sequence[Sequence[Entity]]
    ) -> list[Found]:
        """Find the entities of each image's own caption; what is found in one image depends on no other.

        An entity is scored by the mean probability of the tokens of all its mentions. Mentions beyond the longest text
        of the model are left out; an entity without any other is not looked for.
        """
