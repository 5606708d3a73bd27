"""Finished trials by what they are: a sweep that was killed, or that meets a trial done before, runs nothing twice."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.storage import Place


@dataclass(frozen=True)
class ResultStore:
    """A folder, local or on S3, with one JSON file for each trial. Several sweeps may share it."""

    place: Place

    def read(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Read those of the given trials that are there."""
        there = {name for name, _ in self.place.listing()}
        return {key: json.loads(self._file(key).read_text()) for key in keys if f"{key}.json" in there}

    def write(self, key: str, result: Mapping[str, Any]) -> None:
        """Keep what a trial came to; whole or not at all."""
        self._file(key).write_text(json.dumps(result, indent=1))

    def folder(self, key: str) -> Place:
        """Name the folder of what a trial leaves besides its numbers, such as a tuned prompt."""
        return self.place / key

    def _file(self, key: str) -> Place:
        return self.place / f"{key}.json"
