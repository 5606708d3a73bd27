"""The stages as a user runs them: their command, what they commit bit by bit, and the processes that do the work."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.ledger import PENDING
from pipeline.miniature.world import World

NUM_PAIRS, NUM_STEPS = 30, 60
TASKS = ("ray::ListFiles", "ray::ReadFiles", "ray::StreamingRepartition", "ray::Write")
DRAWN = ("sweep", "evaluate")
"""Stages that need the miniature world."""
POOL = ("ray::MapWorker(MapBatches(_Worker))",)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the commands work on."""

    model: Path
    """An untrained nano model."""
    world: Callable[[], World]
    """Gives the miniature world."""
    boxes: Path
    """Folder of `tests.pipeline.trainings.make_inputs`."""
    pairs: Path
    """List of addresses and captions."""
    pictures: str
    """``host:port`` of the web server that has them."""


@dataclass(frozen=True)
class Home:
    """Where the output of one cell lies."""

    local: Path
    """Folder on this machine."""
    remote: str = ""
    """``s3://`` folder for what the stage can keep there, in cells that take the store away."""

    @property
    def place(self) -> str:
        return self.remote or str(self.local)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the data's way."""

    name: str
    flags: Callable[[Given, Home], list[str]]
    """The command line after ``python -m``."""
    committed: Callable[[str], bool]
    """Tells by its path in the home whether a file is a piece of work that was committed."""
    actors: tuple[str, ...]
    """Titles of the long-lived processes."""
    after: tuple[int, int]
    """Fewest and most committed pieces before a fault."""

    def command(self, given: Given, home: Home) -> list[str]:
        return [sys.executable, "-m", *self.flags(given, home)]


def _captions(given: Given, home: Home, *more: str) -> list[str]:
    return [
        *("jobs.pseudo_label", "photos", "--pairs", str(given.pairs), "--teacher", str(given.model)),
        *("--out", home.place, "--num-pictures", "1", "--label.num-teachers", "1", "--label.batch-size", "1"),
        *("--label.rows-per-block", "2", "--download.rows-per-block", "2", "--download.blocks-per-actor", "2"),
        *("--download.image-size-px", "96", "--download.decode.processes", "1"),
        *("--download.fetch.allow-hosts", given.pictures, "--download.fetch.max-attempts", "1"),
        *more,
    ]


def _pretrain(given: Given, home: Home) -> list[str]:
    size = ("--pretrain.model.min-size-px", "32", "--pretrain.model.max-size-px", "32")
    small = (*size, "--pretrain.model.max-tokens", "32", "--pretrain.ingest.batch-size", "4")
    counts = ("--pretrain.num-steps", str(NUM_STEPS), "--pretrain.checkpoint-every", "12", "--pretrain.log-every", "1")
    kept = ("--pretrain.checkpoints", f"{home.remote}/kept") if home.remote else ()
    inputs = ("--sources", str(given.boxes / "boxes"), "--vocabulary", str(given.boxes / "vocab.txt"))
    patience = ("--pretrain.max-failures", "10")
    return ["jobs.pretrain", "nano", *inputs, "--out", str(home.local), *small, *counts, *kept, *patience]


def _sweep(given: Given, home: Home) -> list[str]:
    inputs = ("--checkpoint", str(given.model), "--data", str(given.world().odinw), "--datasets", "LoneHearts")
    short = ("--sweep.max-epochs", "1", "--sweep.shots", "1", "2", "--sweep.seeds", "3", "30")
    store = ("--store", f"{home.remote}/trials") if home.remote else ()
    return ["jobs.sweep", "few-shot", *inputs, "--out", str(home.local), *short, *store]


def _evaluate(given: Given, home: Home) -> list[str]:
    shown = given.world().objects365_val
    inputs = ("--checkpoint", str(given.model), "--annotations", str(shown.annotations))
    small = ("--run.rows-per-block", "1", "--run.batch-size", "1")
    return ["jobs.evaluate", "folder", *inputs, "--images", str(shown.images), "--out", str(home.local), *small]


def _done_in(ledger: str) -> Callable[[str], bool]:
    folder = f"{ledger}.ledger/done/"
    return lambda path: path.startswith(folder) and path.endswith(".parquet") and not path.endswith(PENDING)


def _checkpoint(path: str) -> bool:
    return "/checkpoint_" in path and path.endswith("/model.safetensors")


def _trial(path: str) -> bool:
    return path.startswith("trials/") and path.count("/") == 1 and path.endswith(".json")


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(name="labels", flags=_captions, committed=_done_in("labels"), actors=POOL, after=(2, 6)),
        Stage(
            name="download",
            flags=lambda given, home: _captions(given, home, "--staged"),
            committed=_done_in("images"),
            actors=POOL,
            after=(2, 6),
        ),
        Stage(name="pretrain", flags=_pretrain, committed=_checkpoint, actors=("RayTrainWorker",), after=(1, 3)),
        Stage(name="sweep", flags=_sweep, committed=_trial, actors=("ImplicitFunc",), after=(1, 2)),
        Stage(name="evaluate", flags=_evaluate, committed=_done_in("found.parquet"), actors=POOL, after=(1, 5)),
    )
}
