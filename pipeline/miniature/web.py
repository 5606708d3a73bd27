"""The list of captions and addresses that a crawl of the miniature web would give, and the truth about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from pipeline.miniature.annotations import Json, truth_objects
from pipeline.miniature.draw import Picture
from pipeline.miniature.grammar import QUOTED_FRAMES, SILENT_CAPTIONS, WEB_FRAMES, Caption, web_caption
from pipeline.miniature.hazards import FOLDER, HAZARDS
from pipeline.schema import SUCCESS

_CYCLE, _SILENT, _QUOTED = 20, 7, 13
"""Of twenty captions one names no object and one has quotation marks; these are their places."""


@dataclass(frozen=True, kw_only=True)
class WebRow:
    """One row of the list."""

    url: str
    """As it stands in the list."""
    caption: str
    """As it stands in the list: no tab, no line break."""
    hazard: str
    """Kind of trouble, "" for none."""
    expected: str
    """What should become of it, see `hazards`."""
    truth: Json
    """What can be seen and what the caption says of it; empty if there is no such picture to be had."""


def list_web(
    ordinary: Sequence[tuple[str, Picture]], hazardous: Sequence[tuple[str, Picture]], seed: int, base: str
) -> list[WebRow]:
    """Write the captions and mix the hazards in among the ordinary rows."""
    rows = []
    for number, (name, picture) in enumerate(ordinary):
        caption = _caption(Random(f"{seed}/web_caption/{number}"), number, picture)
        url, file = f"{base}/images/{name}", f"images/{name}"
        truth = _truth(file, url, picture, caption)
        rows.append(WebRow(url=url, caption=caption.text, hazard="", expected=SUCCESS, truth=truth))
    for number, (name, picture) in enumerate(hazardous):
        hazard = HAZARDS[number % len(HAZARDS)]
        caption = web_caption(Random(f"{seed}/hazard_caption/{number}"), picture.things)
        url = hazard.url.format(base=base, name=name)
        truth = _truth(f"{FOLDER}/{name}", url, picture, caption) if hazard.shows_scene else {}
        rows.append(WebRow(url=url, caption=caption.text, hazard=hazard.hazard, expected=hazard.expected, truth=truth))
    Random(f"{seed}/web_order").shuffle(rows)
    return rows


def _caption(rng: Random, number: int, picture: Picture) -> Caption:
    place, turn = number % _CYCLE, number // _CYCLE
    if place == _SILENT:
        return Caption(text=SILENT_CAPTIONS[turn % len(SILENT_CAPTIONS)])
    return web_caption(rng, picture.things, QUOTED_FRAMES if place == _QUOTED else WEB_FRAMES)


def _truth(file: str, url: str, picture: Picture, caption: Caption) -> Json:
    return {
        "file": file,
        "url": url,
        "caption": caption.text,
        "width": picture.width,
        "height": picture.height,
        "objects": truth_objects(picture, caption),
    }
