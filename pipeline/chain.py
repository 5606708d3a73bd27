"""The chain a run is part of: what it was made of, back to the list of URLs, and what was made of it.

It is put together from MLflow (`pipeline.lineage`) and the manifests of directories that are still where they were.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glipv2.checkpoint import WEIGHTS, weights_sha256
from pipeline.lineage import DROP, Step, Store, open_stores, stage_step
from pipeline.mlflow_client import shown
from pipeline.paths import NOT_GIVEN, require
from pipeline.shards import plain, read_manifest, write_atomically
from pipeline.storage import Place
from pipeline.tracking import DIGEST_LENGTH, Input

SHORT = 10
"""Characters shown of an id, a hash or a commit."""
LEAST = 4
"""Fewest characters of a run's id that are taken for one."""
DATABASE = "mlflow.db"


@dataclass(frozen=True, kw_only=True)
class LineageJob:
    """Whose chain is told, and where it is looked for."""

    run: str = ""
    """Id of a run or the beginning of one, or what a job wrote: its ``--out``, a directory of shards, a model."""
    stores: tuple[Path, ...] = ()
    """Output folders whose MLflow store is asked too, absolute; not needed where MLFLOW_TRACKING_URI names a server."""
    json: Path = NOT_GIVEN
    """File for everything as JSON, absolute."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        if not self.run:
            raise ValueError("no run is given; give a run's id, or the folder a job wrote: python -m jobs.lineage RUN")
        given = {f"stores.{i}": path for i, path in enumerate(self.stores)}
        require(**given, **({} if self.json == NOT_GIVEN else {"json": self.json}))


@dataclass(frozen=True, kw_only=True)
class Link:
    """A run, an input or something made, in its place in the chain."""

    told: str
    """It in a line."""
    facts: dict[str, Any]
    """All that is known of it."""
    further: tuple["Link", ...] = ()
    """Upward what it was made of, downward what was made of it; empty also where that was told before."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A run, or something made, with what is around it."""

    root: Link
    """It itself."""
    made_of: tuple[Link, ...]
    """Upward."""
    made_of_it: tuple[Link, ...]
    """Downward."""
    stores: list[str]
    """MLflow stores that were asked."""


def lineage(cfg: LineageJob) -> str:
    """Tell a run's chain as a tree, and write it as JSON if wanted.

    Raises:
        ValueError: there is no store, no such run, or more than one.
    """
    chain = Known([*cfg.stores, *_homes(cfg.run)]).chain(cfg.run)
    if cfg.json != NOT_GIVEN:
        cfg.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cfg.json, json.dumps(asdict(chain), indent=1, default=plain))
    return "\n".join(_tell(chain))


class Known:
    """All that the stores know, those beside what was found in others included."""

    def __init__(self, homes: Iterable[Path]) -> None:
        """Ask the store of the environment, or those in these folders."""
        self.stores: dict[str, Store] = {}
        self.steps: list[Step] = []
        asked: set[Path] = set()
        waiting = set(homes) or {Path.cwd()}
        while waiting:
            new = [store for store in open_stores(sorted(waiting)) if store.uri not in self.stores]
            self.stores |= {store.uri: store for store in new}
            self.steps += [step for store in new for step in store.steps()]
            asked |= waiting
            places = {one.place for step in self.steps for one in step.inputs}
            waiting = {home for place in places for home in _homes(place)} - asked
        self.runs = {run_id: about for store in self.stores.values() for run_id, about in store.runs.items()}

    def chain(self, run: str) -> Chain:
        """Tell what is around a run, or what a folder holds."""
        about, own = self._find(run)
        made_of: list[Link] = []
        seen: set[Step] = set()
        for step in own:
            links = tuple(self._up(one, seen) for one in step.inputs)
            made_of += links if len(own) == 1 else [Link(told=_step(step), facts=asdict(step), further=links)]
        if not made_of and (parent := about.get("parent")):  # a trial is told by its sweep
            made_of = [self._run(parent, tuple(self._up(one, seen) for s in self._own(parent) for one in s.inputs))]
        return Chain(
            root=Link(told=_run(about), facts=about) if about else Link(told=_step(own[0]), facts=asdict(own[0])),
            made_of=tuple(made_of),
            made_of_it=(*self._nested(about), *self._down(own, set())),
            stores=[shown(uri) for uri in self.stores],
        )

    def _find(self, run: str) -> tuple[dict[str, str], list[Step]]:
        """Find a run, or what was made, by whatever names it."""
        if "/" in run:
            if (step := self._made(Place.of(run))) is not None:
                return self.runs.get(step.run_id, {}), [step]
            found = [run_id for run_id, about in self.runs.items() if about["place"] == str(Place.of(run))][:1]
        else:
            found = [run_id for run_id in self.runs if len(run) >= LEAST and run_id.startswith(run)]
        if not found:
            where = f"in {', '.join(map(shown, self.stores))}" if self.stores else "as there is no MLflow store"
            raise ValueError(
                f"{run} is not known {where}; give a run's id, at least {LEAST} characters of it, or the folder a job "
                "wrote, and further output folders as --stores, or set MLFLOW_TRACKING_URI"
            )
        if len(found) > 1:
            raise ValueError(f"{run} begins {len(found)} runs: {', '.join(found[:5])}; give more of one")
        return self.runs[found[0]], self._own(found[0])

    def _made(self, place: Place) -> Step | None:
        """Tell what lies in a folder, if it is a finished directory, a model, or the folder of a training."""
        if (manifest := read_manifest(place)) is not None:
            known = self._maker(manifest.content_hash)
            return known or stage_step(manifest, str(place))
        for folder in (Path(place.path), Path(place.path) / "model") if place.is_local else ():
            if (folder / WEIGHTS).is_file():
                digest = weights_sha256(folder)
                unknown = Step(what="model", name="", place=str(folder), produces=frozenset({digest[:DIGEST_LENGTH]}))
                return self._maker(digest) or unknown
        return None

    def _own(self, run_id: str) -> list[Step]:
        return [step for step in self.steps if step.recorded_by == run_id]

    def _maker(self, content: str) -> Step | None:
        """Find what made a content, the latest first."""
        return next((step for step in self.steps if content[:DIGEST_LENGTH] in step.produces), None)

    def _up(self, one: Input, seen: set[Step]) -> Link:
        """Tell an input, and what it was made of."""
        step = self._maker(one.hash) or _by_manifest(one)
        told = " ".join(filter(None, (f"{one.role}:", one.name, one.digest[:SHORT], one.place)))
        if step is None:
            return Link(told=told, facts=asdict(one))
        again, made = step in seen, f"{told}  made by {_by(step)}"
        seen.add(step)
        if again and step.inputs:
            return Link(told=f"{made}, as above", facts=asdict(one) | {"made_by": asdict(step)})
        further = tuple(self._up(each, seen) for each in step.inputs)
        return Link(told=made, facts=asdict(one) | {"made_by": asdict(step)}, further=further)

    def _down(self, made: Sequence[Step], seen: set[Step]) -> Iterator[Link]:
        """Tell what was made of these, and what of that."""
        contents = frozenset().union(*(step.produces for step in made))
        for step in dict.fromkeys(self.steps):
            if not step.consumes & contents or step in made or (step.what, step.name) == ("shards", DROP):
                continue
            again = step in seen
            seen.add(step)
            further = () if again else tuple(self._down([step], seen))
            yield Link(told=_step(step) + (", as above" if again else ""), facts=asdict(step), further=further)

    def _run(self, run_id: str, further: tuple[Link, ...]) -> Link:
        about = self.runs.get(run_id, {"run_id": run_id})
        return Link(told=f"part of: {_run(about)}", facts=about, further=further)

    def _nested(self, about: dict[str, str]) -> Iterator[Link]:
        """Count the runs inside a run."""
        inside = [other["status"] for other in self.runs.values() if about and other["parent"] == about["run_id"]]
        if inside:
            states = ", ".join(f"{count} {status}" for status, count in Counter(inside).items())
            yield Link(told=f"{len(inside)} runs inside: {states}", facts=dict(Counter(inside)))


def _homes(place: str) -> list[Path]:
    """Name the folders above a place, itself included, that have a store of their own."""
    path = Path(place)
    return [home for home in (path, *path.parents[:3]) if path.is_absolute() and (home / DATABASE).is_file()]


def _by_manifest(one: Input) -> Step | None:
    """Ask the directory an input lay in, if it is still there and the same."""
    try:
        manifest = read_manifest(Place.of(one.place)) if one.place and Place.of(one.place).is_absolute else None
    except (OSError, ValueError):  # out of reach from here, or no place of ours
        return None
    same = manifest is not None and manifest.content_hash[:DIGEST_LENGTH] == one.digest
    return stage_step(manifest, one.place) if manifest is not None and same else None


def _step(step: Step) -> str:
    digest = next(iter(step.produces), "")[:SHORT]
    return " ".join(filter(None, (step.what if step.what != "run" else "", digest, step.place, "", _by(step)))).strip()


def _by(step: Step) -> str:
    return _run({"name": step.name, "run_id": step.run_id, "status": step.status, "git_commit": step.git_commit})


def _run(about: Mapping[str, str]) -> str:
    commit, _, dirty = about.get("git_commit", "").partition("-")
    parts = {"": about.get("name", ""), "run": about.get("run_id", "")[:SHORT], "state": about.get("status", "")}
    parts |= {"commit": commit[:SHORT] + ("-dirty" if dirty else ""), "in": about.get("place", "")}
    told = (f"{name} {value}".strip() if name != "state" else value for name, value in parts.items() if value)
    return " ".join(told)


def _tell(chain: Chain) -> Iterator[str]:
    yield chain.root.told
    for title, links, none in (
        ("made of", chain.made_of, "nothing that is known"),
        ("what was made of it", chain.made_of_it, "nothing that is known"),
    ):
        yield f"{title}:"
        yield from _tree(links) if links else [f"  {none}"]


def _tree(links: Sequence[Link], before: str = "") -> Iterator[str]:
    for number, link in enumerate(links):
        last = number == len(links) - 1
        yield f"{before}{'└─' if last else '├─'} {link.told}"
        yield from _tree(link.further, before + ("   " if last else "│  "))
