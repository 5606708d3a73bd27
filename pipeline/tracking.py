"""One memory: every job is an MLflow run, every trial a run inside it.

The store is ``MLFLOW_TRACKING_URI`` where that is set, else one SQLite file beside the outputs. Only the driver and
rank 0 write. A job started again after it was killed continues its own run instead of opening a second one.
"""

import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.storage import Place

logger = logging.getLogger(__name__)

EXPERIMENT = "glipv2"
JOB_KEY = "glipv2.job_key"
PARENT = "mlflow.parentRunId"
MAX_PARAM_LENGTH = 6000
"""MLflow refuses longer parameter values."""


@dataclass(frozen=True)
class Run:
    """A handle on one MLflow run; small and picklable, so that rank 0 can write to the driver's run."""

    uri: str
    run_id: str

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record numbers at a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(name, float(value), now, step) for name, value in values.items()]
        _client(self.uri).log_batch(self.run_id, metrics=batch)

    def params(self, config: Mapping[str, object]) -> None:
        """Record a resolved configuration, nested names joined by dots; a run continued keeps its own."""
        from mlflow.entities import Param

        client = _client(self.uri)
        known = client.get_run(self.run_id).data.params
        flat = {name: str(value)[:MAX_PARAM_LENGTH] for name, value in flatten(config).items()}
        client.log_batch(self.run_id, params=[Param(k, v) for k, v in flat.items() if k not in known])

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""
        from mlflow.entities import RunTag

        _client(self.uri).log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def artifact(self, path: Path, folder: str = "") -> None:
        """Store a file, or a folder with everything in it."""
        log = _client(self.uri).log_artifacts if path.is_dir() else _client(self.uri).log_artifact
        log(self.run_id, str(path), folder or None)

    def history(self, names: tuple[str, ...]) -> list[dict[str, float]]:
        """Read metrics back, one row per step; of a step logged twice (a resumed job repeats some) the later counts."""
        client = _client(self.uri)
        rows: dict[int, dict[str, float]] = {}
        for name in names:
            for point in client.get_metric_history(self.run_id, name):
                rows.setdefault(point.step, {"step": float(point.step)})[name] = point.value
        return [rows[step] for step in sorted(rows)]

    def child(self, name: str, key: str, config: Mapping[str, object]) -> "Run":
        """Open, or continue, a run inside this one. ``key`` says what it is: the same key is the same run."""
        client = _client(self.uri)
        experiment = client.get_run(self.run_id).info.experiment_id
        run = _find_or_create(self.uri, experiment, name, f"{self.run_id}/{key}", {PARENT: self.run_id})
        run.params(config)
        return run

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        _client(self.uri).set_terminated(self.run_id, status)


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
    run = _find_or_create(uri, _experiment(uri, home), job, f"{home}/{key}", {"glipv2.job": job})
    run.tags({"mlflow.source.git.commit": git_commit(), "mlflow.user": os.environ.get("USER", "")})
    run.params(config)
    try:
        yield run
    except (KeyboardInterrupt, SystemExit):
        run.finish("KILLED")
        raise
    except BaseException:
        run.finish("FAILED")
        raise
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
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--match", ""]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return found.stdout.strip() or "unknown"


def _client(uri: str):  # type: ignore[no-untyped-def]  # mlflow is imported late: it takes seconds
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    return mlflow.MlflowClient(tracking_uri=uri)


def _experiment(uri: str, home: Place) -> str:
    client = _client(uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    # A SQLite store would put artifacts into the current directory, whatever that is.
    location = _artifacts(uri, home)
    return str(client.create_experiment(EXPERIMENT, artifact_location=location))


def _artifacts(uri: str, home: Place) -> str | None:
    if not uri.startswith("sqlite"):
        return None
    return f"file://{home.local / 'mlartifacts'}" if home.is_local else str(home / "mlartifacts")


def _find_or_create(uri: str, experiment: str, name: str, key: str, tags: dict[str, str]) -> Run:
    client = _client(uri)
    # A finished job given again is a new run; a child belongs to its parent whether finished or not.
    unfinished = "" if PARENT in tags else " and attributes.status != 'FINISHED'"
    found = client.search_runs([experiment], filter_string=f"tags.`{JOB_KEY}` = '{key}'{unfinished}", max_results=1)
    if found:
        run_id = str(found[0].info.run_id)
        client.update_run(run_id, status="RUNNING")
        return Run(uri, run_id)
    created = client.create_run(experiment, run_name=name, tags={**tags, JOB_KEY: key})
    return Run(uri, str(created.info.run_id))
