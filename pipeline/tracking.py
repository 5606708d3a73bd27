"""One memory: every job is an MLflow run, every trial a run inside it.

The store is ``MLFLOW_TRACKING_URI`` where that is set, else one SQLite file beside the outputs. Only the driver and
rank 0 write. A job started again after it was killed continues its own run instead of opening a second one.

What a run was made of are its dataset inputs, pinned by hash; what it made is told by tags (`pipeline.lineage`). A
server that is away stops no training and no sweep: numbers wait for it (`pipeline.outbox`). What a job cannot do
without is asked for as long as MLflow's own retries go; then the job ends with a line, and the same command goes on.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.mlflow_client import AwayError, asking
from pipeline.outbox import GRACE_S, PATIENCE_S, outbox
from pipeline.storage import Place

logger = logging.getLogger(__name__)

EXPERIMENT = "glipv2"
JOB, JOB_KEY = "glipv2.job", "glipv2.job_key"
PARENT = "mlflow.parentRunId"
COMMIT = "GLIPV2_COMMIT"
"""Variable that names the commit of submitted code, which arrives without its repository (`cluster.submit`)."""
MAX_PARAM_LENGTH = 6000
"""MLflow refuses longer parameter values."""
DIGEST_LENGTH = 32
"""Hex digits of a hash that name a dataset input: MLflow takes 36 characters at most."""
ROLE = "mlflow.data.context"
COMMIT_TAG = "mlflow.source.git.commit"


@dataclass(frozen=True, kw_only=True)
class Input:
    """Something that went into a run, pinned by its content."""

    name: str
    """What it is called."""
    hash: str
    """Hash of its content."""
    place: str = ""
    """Where it lay."""
    role: str
    """What it was for: ``train``, ``teacher``, ``pairs`` …; MLflow calls it the context."""

    @classmethod
    def of(cls, place: Place | Path, content: str, role: str) -> "Input":
        """Name what lies at a place by the end of its path."""
        whole = Place.of(place)
        return cls(name=f"{whole.parent.name}/{whole.name}", hash=content, place=str(whole), role=role)

    @property
    def digest(self) -> str:
        """Give as much of the hash as MLflow takes."""
        return self.hash[:DIGEST_LENGTH]


@dataclass(frozen=True)
class Run:
    """A handle on one MLflow run; small and picklable, so that rank 0 can write to the driver's run."""

    uri: str
    run_id: str

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record numbers at a step; what MLflow cannot take now it is given later."""
        self.later(partial(self._log_batch, metrics=_points([(step, values)])))

    def write(self, points: Iterable[tuple[int, Mapping[str, float]]], tags: Mapping[str, str]) -> None:
        """Record numbers at many steps, and tags, in one go and now."""
        from mlflow.entities import RunTag

        self._log_batch(metrics=_points(points), tags=[RunTag(k, v) for k, v in tags.items()])

    def later(self, write: Callable[[], None]) -> None:
        """Have something recorded after all that waits already: at once, or when the server is back."""
        outbox(self.uri).put(write)

    def settle(self, seconds: float = PATIENCE_S) -> int:
        """Wait until everything is recorded, so long at most; give the number of records that are left."""
        return outbox(self.uri).settle(seconds)

    def params(self, config: Mapping[str, object]) -> None:
        """Record a resolved configuration, nested names joined by dots; a run continued keeps its own."""
        from mlflow.entities import Param

        with asking(self.uri) as client:
            known = client.get_run(self.run_id).data.params
        flat = {name: str(value)[:MAX_PARAM_LENGTH] for name, value in flatten(config).items()}
        self._log_batch(params=[Param(k, v) for k, v in flat.items() if k not in known])

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""
        self.write([], tags)

    def inputs(self, given: Iterable[Input]) -> None:
        """Record what goes into the run; what is known already is not doubled."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        found = [
            DatasetInput(
                Dataset(one.name[:500], one.digest, "local", json.dumps({"uri": one.place})),
                [InputTag(ROLE, one.role)],
            )
            for one in given
        ]
        with asking(self.uri) as client:
            client.log_inputs(self.run_id, datasets=found)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Store a file, or a folder with everything in it."""
        with asking(self.uri) as client:
            log = client.log_artifacts if path.is_dir() else client.log_artifact
            log(self.run_id, str(path), folder or None)

    def history(self, names: tuple[str, ...]) -> list[dict[str, float]]:
        """Read metrics back, one row per step; of a step logged twice (a resumed job repeats some) the later counts."""
        rows: dict[int, dict[str, float]] = {}
        for name in names:
            with asking(self.uri) as client:
                points = client.get_metric_history(self.run_id, name)
            for point in points:
                rows.setdefault(point.step, {"step": float(point.step)})[name] = point.value
        return [rows[step] for step in sorted(rows)]

    def child(
        self, name: str, key: str, config: Mapping[str, object], *, kind: str = "training", seconds: float = 0.0
    ) -> "Run":
        """Open, or continue, a run inside this one.

        Args:
            name: name in lists and charts.
            key: says what it is: the same key is the same run.
            config: recorded as parameters.
            kind: its ``glipv2.job``.
            seconds: how long ago it began, if it is recorded afterwards.
        """
        with asking(self.uri) as client:
            experiment = client.get_run(self.run_id).info.experiment_id
        tags = {PARENT: self.run_id, JOB: kind}
        run = _find_or_create(self.uri, experiment, name, f"{self.run_id}/{key}", tags, seconds)
        run.params(config)
        return run

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        with asking(self.uri) as client:
            if client.get_run(self.run_id).info.status != status:  # when it ended is not to change
                client.set_terminated(self.run_id, status)

    def _log_batch(self, **batch: Any) -> None:
        with asking(self.uri) as client:
            client.log_batch(self.run_id, **batch)


def tracking_uri(home: Place | Path) -> str:
    """Name the store: the environment's, or a SQLite file in ``home``.

    Raises:
        ValueError: there is none in the environment, and ``home`` lies where no SQLite file can.
    """
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    place = Place.of(home)
    if not place.is_local:
        raise ValueError(
            f"--out is {place}, where MLflow's own store cannot lie; set MLFLOW_TRACKING_URI to a server or to "
            f"sqlite:////abs/mlflow.db"
        )
    return f"sqlite:///{place.local / 'mlflow.db'}"


@contextmanager
def open_run(home: Place | Path, job: str, key: str, config: Mapping[str, object]) -> Iterator[Run]:
    """Open a job's parent run for as long as the block runs.

    Args:
        home: the job's output folder; holds the default store, if it lies on this machine.
        job: name shown in the list of runs.
        key: what the job does, as a hash: an unfinished run of the same key is continued.
        config: resolved configuration, recorded as parameters.
    """
    home = Place.of(home)
    uri = tracking_uri(home)
    if home.is_local:
        home.local.mkdir(parents=True, exist_ok=True)
    name = job if home.name == job else f"{job} {home.name}"
    run = _find_or_create(uri, _experiment(uri, home), name, f"{home}/{key}", {JOB: job})
    run.tags({"mlflow.source.name": _command(), "mlflow.source.type": "JOB"})
    run.tags({COMMIT_TAG: git_commit(), "mlflow.user": os.environ.get("USER", "")})
    run.params(config)
    try:
        yield run
    except BaseException as error:
        run.later(partial(run.finish, "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"))
        run.settle(GRACE_S)
        raise
    if left := run.settle():
        raise AwayError(uri, f"{left} records are left")
    run.finish()


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Join nested names by dots, as on the command line."""
    flat: dict[str, object] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value, default=str) if isinstance(value, list | tuple) else value
    return flat


def git_commit() -> str:
    """Name the commit of the code that runs, with ``-dirty`` if it was changed; ``unknown`` outside a repository."""
    if submitted := os.environ.get(COMMIT):
        return submitted
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--match", ""]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return found.stdout.strip() or "unknown"


def _experiment(uri: str, home: Place) -> str:
    with asking(uri) as client:
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        # A SQLite store would put artifacts into the current directory, whatever that is.
        location = _artifacts(uri, home)
        return str(client.create_experiment(EXPERIMENT, artifact_location=location))


def _command() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return str(spec.name) if spec else Path(sys.argv[0]).name


def _points(points: Iterable[tuple[int, Mapping[str, float]]]) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, float(value), now, step) for step, values in points for name, value in values.items()]


def _artifacts(uri: str, home: Place) -> str | None:
    if not uri.startswith("sqlite"):
        return None
    return f"file://{home.local / 'mlartifacts'}" if home.is_local else str(home / "mlartifacts")


def _find_or_create(uri: str, experiment: str, name: str, key: str, tags: dict[str, str], seconds: float = 0.0) -> Run:
    # A finished job given again is a new run; a child belongs to its parent whether finished or not.
    unfinished = "" if PARENT in tags else " and attributes.status != 'FINISHED'"
    quote = '"' if "'" in key else "'"  # MLflow's filters know no escapes
    wanted = f"tags.`{JOB_KEY}` = {quote}{key}{quote}{unfinished}"
    with asking(uri) as client:
        if found := client.search_runs([experiment], filter_string=wanted, max_results=1):
            run_id = str(found[0].info.run_id)
            client.update_run(run_id, status="RUNNING")
        else:
            began = int(1000 * (time.time() - seconds))
            created = client.create_run(experiment, start_time=began, tags={**tags, JOB_KEY: key}, run_name=name)
            run_id = str(created.info.run_id)
    return Run(uri, run_id)
