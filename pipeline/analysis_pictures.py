"""The worst mistakes of a detector as pictures: false positives by score and kind, misses by size."""

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from glipv2.evaluation.coco_json import Record
from glipv2.evaluation.errors import SIZES_PX, WRONG, Id, Judged
from pipeline.predict import open_picture
from pipeline.report import Picture
from pipeline.report.analysis_tables import score_text
from pipeline.report.pictures import MAX_HEIGHT_PX, WIDTH_PX
from pipeline.report.tables import count
from pipeline.sources.coco import file_name

ROOM = 3
"""A mistake is shown in a square of so many times the longer side of its box,"""
LEAST_PART = 1 / 3
"""but at least of this part of the longer side of the picture, as far as there is picture."""


@dataclass(frozen=True)
class _Mistake:
    """A box to be shown with those it touches."""

    box: Record
    phrase: str
    touched: Sequence[Record]
    prefix: str

    @property
    def title(self) -> str:
        """What it is, with its size: mistakes of one image are not to be taken for one picture seen by several."""
        name = f"{self.phrase} {score_text(self.box['score'])}" if "score" in self.box else self.phrase
        width, height = self.box["bbox"][2:]
        return f"{name}, {width:.0f} × {height:.0f} px"


def worst_pictures(judged: Judged, images: Path, threshold: float, most: int) -> list[Picture]:
    """Show what is wrong at a threshold, at most one mistake of a kind per image; only what is shown is opened.

    Args:
        judged: truth and detections.
        images: folder of the images; what cannot be read there is told and left out.
        threshold: score from which on a detection counts.
        most: pictures for each kind of false positive and each size of misses.
    """
    names = judged.categories
    found = judged.detections[: int((judged.scores >= threshold).sum())]  # they come best first
    truth_of, found_of = _by_image(judged.truth), _by_image(found)
    pictures: list[Picture] = []
    for kind in WRONG:
        wrong = [d for d, verdict in zip(found, judged.verdicts.tolist(), strict=False) if verdict == kind]
        mistakes = (_Mistake(d, names[d["category_id"]], truth_of[d["image_id"]], "truth: ") for d in wrong)
        group = f"False positives, {kind.words}: the highest scores of {count(len(wrong))}"
        pictures += _draw(judged, images, mistakes, group, most)
    for size, (low, high) in reversed(SIZES_PX.items()):
        missed = [t for t, at in zip(judged.truth, judged.found_at, strict=True) if at < threshold]
        missed = sorted((t for t in missed if low <= t["area"] < high), key=lambda t: -t["area"])
        mistakes = (_Mistake(t, f"missed: {names[t['category_id']]}", found_of[t["image_id"]], "") for t in missed)
        pictures += _draw(judged, images, mistakes, f"Misses, {size}: the largest of {count(len(missed))}", most)
    return pictures


def _by_image(records: Iterable[Record]) -> dict[Id, list[Record]]:
    grouped: dict[Id, list[Record]] = defaultdict(list)
    for record in records:
        grouped[record["image_id"]].append(record)
    return grouped


def _draw(judged: Judged, images: Path, mistakes: Iterable[_Mistake], group: str, most: int) -> list[Picture]:
    """Make pictures of the first mistakes whose images can be read."""
    return list(islice(_pictures(judged, images, mistakes, group), most))


def _pictures(judged: Judged, images: Path, mistakes: Iterable[_Mistake], group: str) -> Iterator[Picture]:
    seen: set[Id] = set()
    for mistake in mistakes:
        image = mistake.box["image_id"]
        if image in seen:
            continue
        seen.add(image)
        file = file_name(judged.images[image])
        if (opened := open_picture(images / file)) is not None:
            yield _picture(opened, mistake, f"{mistake.title}, {file}", group, judged.categories)


def _picture(image: Image.Image, mistake: _Mistake, title: str, group: str, names: dict[Id, str]) -> Picture:
    own = mistake.box["bbox"]
    left, top, right, bottom = window = _window(own, image.size)
    part = image.crop(window)
    part.thumbnail((WIDTH_PX, MAX_HEIGHT_PX))
    across, down = part.width / (right - left), part.height / (bottom - top)
    touched = [record for record in mistake.touched if _touch(record["bbox"], own)]
    stream = io.BytesIO()
    part.save(stream, "BMP")
    boxes = [record["bbox"] for record in (mistake.box, *touched)]
    return Picture(
        image=stream.getvalue(),
        title=title,
        boxes=[
            [(x - left) * across, (y - top) * down, (x + w - left) * across, (y + h - top) * down]
            for x, y, w, h in boxes
        ],
        phrases=[mistake.phrase, *(f"{mistake.prefix}{names[record['category_id']]}" for record in touched)],
        scores=[float(record.get("score", 1)) for record in (mistake.box, *touched)],
        group=group,
    )


def _window(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Choose the part of a picture that shows a box of ``x y width height`` with some room around it."""
    side = max(ROOM * max(box[2:]), LEAST_PART * max(size))
    starts, ends = [], []
    for start, length, whole in zip(box[:2], box[2:], size, strict=True):
        wanted = min(whole, side)
        first = round(min(max(start + length / 2 - wanted / 2, 0), whole - wanted))
        starts.append(first)
        ends.append(min(first + max(round(wanted), 1), whole))
    return starts[0], starts[1], ends[0], ends[1]


def _touch(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (0, 1))
