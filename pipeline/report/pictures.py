"""Boxes over images, drawn so that a person likes to look at them."""

import io
import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from pipeline.report.inputs import Picture
from pipeline.report.tables import shorten, unique

PALETTE = ("#56b4e9", "#e69f00", "#2fc08f", "#f0e442", "#e78ac3", "#ff7f50", "#a6a4ff", "#ffffff")
"""Colours of phrases: apart for colour-blind readers, light enough for black text on them."""
WIDTH_PX = 640
"""Width of a drawn picture: about twice what a page shows, so that it is sharp on fine screens."""
MAX_HEIGHT_PX = 860
LINE_PX = 5
FONT_PX = 22
PAD_PX = 5
PHRASE_LENGTH = 26

Rect = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture with its boxes drawn."""

    name: str
    """File name without ending; unique in a report."""
    picture: Picture
    """What was drawn."""
    colours: dict[str, str]
    """Colour of each phrase."""
    jpeg: bytes
    """The drawn picture."""

    @property
    def alt(self) -> str:
        """The boxes in words, for those who cannot see them."""
        boxes = "1 box" if len(self.picture.boxes) == 1 else f"{len(self.picture.boxes)} boxes"
        told = ", ".join(label_texts(self.picture))
        return f"{self.picture.group}: {boxes}{': ' if told else ''}{told}"


def draw_all(pictures: list[Picture]) -> dict[str, list[Drawing]]:
    """Draw pictures and arrange them under headings, in the order given.

    Pictures of one title from different groups share a heading (the title) and colours; all others stand under the
    name of their group.
    """
    blocks: dict[str, list[Drawing]] = {}
    for number, picture in enumerate(pictures):
        same = [other for other in pictures if other.title == picture.title]
        compared = len(same) > 1 and len({other.group for other in same}) == len(same)
        colours = phrase_colours([phrase for other in (same if compared else [picture]) for phrase in other.phrases])
        drawing = Drawing(name=f"picture_{number:03d}", picture=picture, colours=colours, jpeg=draw(picture, colours))
        blocks.setdefault(picture.title if compared else picture.group, []).append(drawing)
    return blocks


def phrase_colours(phrases: list[str]) -> dict[str, str]:
    """Give each phrase a colour, in the order of appearance; past the palette's end colours repeat."""
    return dict(zip(unique(phrases), itertools.cycle(PALETTE), strict=False))


def label_texts(picture: Picture) -> list[str]:
    """Write phrase and score of every box; scores of 1 (human labels) are left out."""
    scores = picture.scores or [1.0] * len(picture.boxes)
    return [
        phrase if score >= 1 else f"{phrase} {score:.2f}" for phrase, score in zip(picture.phrases, scores, strict=True)
    ]


def draw(picture: Picture, colours: dict[str, str]) -> bytes:
    """Draw the boxes and labels of a picture over its image and return a JPEG."""
    image = Image.open(io.BytesIO(picture.image)).convert("RGB")
    scale = min(WIDTH_PX / image.width, MAX_HEIGHT_PX / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = image.resize(size, Image.Resampling.LANCZOS)
    boxes = [_inside([value * scale for value in box], size) for box in picture.boxes]
    canvas = _draw_boxes(canvas, boxes, [colours[phrase] for phrase in picture.phrases])
    pen = ImageDraw.Draw(canvas)
    choices = [_choices(*both) for both in zip(picture.phrases, label_texts(picture), strict=True)]
    for phrase, label in zip(picture.phrases, place_labels(size, boxes, choices), strict=True):
        if label is not None:
            (left, top, right, bottom), text = label
            pen.rounded_rectangle((left, top, right - 1, bottom - 1), radius=5, fill=colours[phrase])
            pen.text((left + PAD_PX, (top + bottom) / 2), text, fill="#10151a", font=_font(), anchor="lm")
    stream = io.BytesIO()
    canvas.save(stream, "JPEG", quality=88, subsampling=0, optimize=True)
    return stream.getvalue()


def place_labels(size: tuple[int, int], boxes: list[Rect], choices: list[list[str]]) -> list[tuple[Rect, str] | None]:
    """Find a place for each box's label: within the picture, over no other label, hiding as little as possible.

    Args:
        size: Width and height of the picture, px.
        boxes: ``xyxy`` px, within the picture.
        choices: Per box the texts that would do, best first; the first that fits somewhere is taken.

    Returns:
        Per box the place and the text of its label, or None where no text fits.
    """
    placed: list[tuple[Rect, str] | None] = [None] * len(boxes)
    for index in sorted(range(len(boxes)), key=lambda index: _area(boxes[index])):  # small boxes have fewer places
        taken = [label[0] for label in placed if label is not None]
        for text in choices[index]:
            free = [place for place in _places(size, boxes[index], text) if not any(_overlap(place, t) for t in taken)]
            if free:
                placed[index] = min(free, key=lambda place: sum(_overlap(place, box) for box in boxes)), text
                break
    return placed


def _places(size: tuple[int, int], box: Rect, text: str) -> list[Rect]:
    """List the places at a box's corners, above, inside and below, that lie within the picture."""
    ascent, descent = _font().getmetrics()
    width, height = _font().getlength(text) + 2 * PAD_PX, ascent + descent + 2
    lefts = [box[0], box[2] - width]
    tops = [box[1] - height - 1, box[3] + 1, box[1], box[3] - height]
    corners = [(min(max(left, 0), size[0] - width), top) for top in tops for left in lefts]
    return [(x, y, x + width, y + height) for x, y in corners if x >= 0 and y >= 0 and y + height <= size[1]]


def _choices(phrase: str, label: str) -> list[str]:
    """List ever shorter texts for one box."""
    phrase, label = " ".join(phrase.split()), " ".join(label.split())
    score = label.removeprefix(phrase)
    short = shorten(phrase, PHRASE_LENGTH)
    return unique(text for text in (short + score, short, shorten(phrase, 12)) if text)


def _draw_boxes(canvas: Image.Image, boxes: list[Rect], colours: list[str]) -> Image.Image:
    """Draw rounded boxes with a dark edge, at twice the size first: Pillow's lines are not smooth by themselves."""
    layer = Image.new("RGBA", (2 * canvas.width, 2 * canvas.height))
    pen = ImageDraw.Draw(layer)
    for dark in (True, False):
        for box, colour in zip(boxes, colours, strict=True):
            inset = 0 if dark else 2
            left, top, right, bottom = (2 * value for value in box)
            pen.rounded_rectangle(
                (left + inset, top + inset, right - 1 - inset, bottom - 1 - inset),
                radius=min(14, (right - left) / 4, (bottom - top) / 4),
                outline=(0, 0, 0, 150) if dark else colour,
                width=2 * LINE_PX - 2 * inset,
            )
    layer = layer.resize(canvas.size, Image.Resampling.LANCZOS)
    return Image.alpha_composite(canvas.convert("RGBA"), layer).convert("RGB")


def _inside(box: list[float], size: tuple[int, int]) -> Rect:
    """Cut a box to the picture and give it at least the size that its line needs."""
    least = 3 * LINE_PX
    left, top = (min(max(box[i], 0), max(size[i] - least, 0)) for i in (0, 1))
    right, bottom = (max(min(box[i + 2], size[i]), min(start + least, size[i])) for i, start in ((0, left), (1, top)))
    return left, top, right, bottom


def _area(box: Rect) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Rect, b: Rect) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Load the bold font that comes with matplotlib: it is there on every machine and knows most scripts."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")), FONT_PX)
