"""What the files of a benchmark were when they were first used: a file that changed since is named and refused.

The hashes lie in ``pins.json``: beside the data, so that every evaluation on them compares with the same, or in the
output of the evaluation where the data's folder cannot be written.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.shards import config_hash, file_sha256, write_atomically

logger = logging.getLogger(__name__)

PINS = "pins.json"


def files_hash(files: Sequence[Path]) -> str:
    """Hash the content of files: one by its sha256, several by names and content of all."""
    return file_sha256(files[0]) if len(files) == 1 else config_hash([[f.name, file_sha256(f)] for f in files])


def pictures_hash(files: Sequence[Path]) -> str | None:
    """Hash names and sizes of images: tells another export apart, and reads none of them. None if one is not there."""
    try:
        return config_hash([[file.name, file.stat().st_size] for file in files])
    except FileNotFoundError:
        return None


def check_pins(found: Mapping[str, str], places: Sequence[Path]) -> None:
    """Compare hashes with those of the first use; what is new is noted in the first place that can be written.

    Args:
        found: hash by the path from the root of the data.
        places: files of pins, the preferred one first.

    Raises:
        ValueError: a file changed, or the pins cannot be read.
    """
    known: dict[str, str] = {}
    for place in (place for place in reversed(places) if place.is_file()):
        pinned = _read(place)
        if changed := [name for name in found if name in pinned and pinned[name] != found[name]]:
            which = f"{changed[0]} and {len(changed) - 1} others are" if len(changed) > 1 else f"{changed[0]} is"
            raise ValueError(
                f"{which} not what was first used ({pinned[changed[0]][:12]}, now {found[changed[0]][:12]}): numbers "
                f"on it would be of another benchmark; restore it, or delete {place} to begin anew"
            )
        known |= pinned
    if not found.keys() <= known.keys():
        _note({**known, **found}, places)


def _read(place: Path) -> dict[str, str]:
    try:
        pinned: dict[str, str] = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{place} cannot be read as pins ({error}); delete it to begin anew") from error
    return pinned


def _note(pins: Mapping[str, str], places: Sequence[Path]) -> None:
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, json.dumps(pins, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            logger.info("pins cannot be kept in %s: %s", place, error.strerror)
            continue
        return
    raise ValueError(f"none of {', '.join(map(str, places))} can be written; give an output folder that can")
