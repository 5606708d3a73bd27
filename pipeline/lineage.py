"""What was made of what, as the MLflow runs tell it: directories of shards, models, and what was done with those.

Everything is pinned by content. What went into a run are its dataset inputs, each with the hash, the place and what it
was for; what came out is told by tags: of a directory `MADE`, of a model the hash of its weights. A run that has the
weights of a model among its inputs used that model, any other with that tag made it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from glipv2.checkpoint import weights_sha256
from pipeline.mlflow_client import asking
from pipeline.shards import MANIFEST_NAME, Manifest
from pipeline.storage import Place
from pipeline.tracking import COMMIT_TAG, DIGEST_LENGTH, JOB_KEY, PARENT, ROLE, Input, Run, tracking_uri

CONTENT_HASH, MADE = "content_hash.", "made."
"""Tags of a run for each directory it made: the hash of its content, and, as JSON, its stage, place and inputs."""
MODEL, WEIGHTS_SHA256 = "model", "weights_sha256"
"""Tags of a run that made a model: its folder and the hash of its weights."""
DROP = "drop"
"""Stage of a takedown."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something made, or done, with what it was made of."""

    what: str
    """``shards``, ``model`` or ``run``."""
    name: str
    """Name of the stage or run."""
    place: str = ""
    """Where it lies, as far as is known."""
    run_id: str = ""
    """MLflow run that made it."""
    git_commit: str = ""
    """Commit of the code that ran."""
    status: str = ""
    """State of that run: ``FINISHED``, ``RUNNING``, ``FAILED`` or ``KILLED``."""
    parent: str = ""
    """MLflow run around that run."""
    recorded_by: str = field(default="", compare=False)
    """MLflow run that tells of it: not the one that made it, where a finished directory was found."""
    inputs: tuple[Input, ...] = field(default=(), repr=False)
    """What went in."""
    produces: frozenset[str] = field(default=frozenset(), repr=False)
    """Hash of what came out."""

    @property
    def consumes(self) -> frozenset[str]:
        """Hashes of what went in."""
        return frozenset(one.digest for one in self.inputs)


class Store:
    """One MLflow store, read only."""

    def __init__(self, uri: str) -> None:
        """Name a store."""
        self.uri = uri

    def describe_run(self, run_id: str) -> dict[str, str] | None:
        """Tell a run's name, commit and state; None if it is not of this store."""
        from mlflow.exceptions import MlflowException

        try:
            with asking(self.uri) as client:
                run = client.get_run(run_id)
        except MlflowException:
            return None
        about = _about(run)
        return {name: about[name] for name in ("name", "git_commit", "status")} | {"store": self.uri}

    def steps(self) -> Iterator[Step]:
        """Tell everything the runs made, and what was done that made nothing; the latest first."""
        for run in self._runs:
            yield from _steps(run, self.runs)

    @cached_property
    def runs(self) -> dict[str, dict[str, str]]:
        """Tell all runs by id, the latest first: name, commit, state, the run around it, and its output folder."""
        return {str(run.info.run_id): _about(run) for run in self._runs}

    @cached_property
    def _runs(self) -> list[Any]:
        found: list[Any] = []
        with asking(self.uri) as client:
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            token = None
            while token != "":
                page = client.search_runs(experiments, max_results=500, page_token=token)
                found += page
                token = page.token or ""
        return found


def record_stage(run: Run, manifest: Manifest, folder: Place | Path) -> None:
    """Record both sides of a stage's account: metrics for comparing runs, the manifest itself for everything else."""
    numbers = {"rows_in": manifest.rows_in, "rows_out": manifest.rows_out, "seconds": manifest.seconds}
    rejects = {f"rejects/{reason.replace(':', '/')}": count for reason, count in manifest.rejects.items()}
    run.metrics({f"{manifest.stage}/{key}": float(value) for key, value in {**numbers, **rejects}.items()})
    made = {"stage": manifest.stage, "place": str(folder), "run_id": manifest.run_id, "inputs": manifest.inputs}
    run.tags({f"{CONTENT_HASH}{folder.name}": manifest.content_hash, f"{MADE}{folder.name}": json.dumps(made)})
    with TemporaryDirectory() as copies:
        copy = Path(copies) / MANIFEST_NAME
        copy.write_text((Place.of(folder) / MANIFEST_NAME).read_text(), encoding="utf-8")
        run.artifact(copy, f"manifests/{folder.name}")


def record_model(run: Run, model: Path) -> None:
    """Record the model a run made."""
    run.tags({MODEL: str(model), WEIGHTS_SHA256: weights_sha256(model)})


def stage_step(manifest: Manifest, place: str) -> Step:
    """Tell what a finished directory was made of."""
    inputs = tuple(Input(name=name, hash=value, role=name) for name, value in manifest.inputs.items())
    made = frozenset({manifest.content_hash[:DIGEST_LENGTH]})
    return Step(what="shards", name=manifest.stage, place=place, run_id=manifest.run_id, inputs=inputs, produces=made)


def open_stores(homes: Iterable[Path]) -> list[Store]:
    """Open the store the environment names, or those that lie in the given output folders; none is created."""
    uris = dict.fromkeys(tracking_uri(home) for home in homes)
    return [
        Store(uri) for uri in uris if not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()
    ]


def descendants(origins: Iterable[str], steps: Sequence[Step]) -> list[Step]:
    """Find everything made of what has one of these hashes, directly or by way of others, nearest first.

    What a takedown wrote (`pipeline.trace`) is no descendant of its source.
    """
    known = {origin[:DIGEST_LENGTH] for origin in origins}
    found: dict[Step, None] = {}
    waiting = [step for step in dict.fromkeys(steps) if (step.what, step.name) != ("shards", DROP)]
    while reached := [step for step in waiting if step.consumes & known]:
        found |= dict.fromkeys(reached)
        waiting = [step for step in waiting if step not in found]
        known |= {digest for step in reached for digest in step.produces}
    return list(found)


def _steps(run: Any, about: Mapping[str, dict[str, str]]) -> Iterator[Step]:
    """Tell what a run made, or else that it was."""
    tags, inputs = run.data.tags, tuple(map(_input, run.inputs.dataset_inputs))
    own = about[str(run.info.run_id)]
    made = [name.removeprefix(MADE) for name in tags if name.startswith(MADE)]
    for name in made:
        yield _directory(tags[f"{CONTENT_HASH}{name}"], json.loads(tags[f"{MADE}{name}"]), inputs, (own, about))
    weights = tags.get(WEIGHTS_SHA256, "")[:DIGEST_LENGTH]
    if weights and weights not in {one.digest for one in inputs}:
        yield Step(what="model", inputs=inputs, produces=frozenset({weights}), **{**own, "place": tags.get(MODEL, "")})
    elif not made:
        yield Step(what="run", inputs=inputs, produces=frozenset(), **own)


def _directory(
    content_hash: str, made: Mapping[str, Any], inputs: Sequence[Input], runs: tuple[dict[str, str], Any]
) -> Step:
    """Tell what a directory was made of; the run that recorded it may have found it finished."""
    own, about = runs
    maker = about.get(made["run_id"], {"run_id": made["run_id"]}) if made["run_id"] else own
    # The run knows an input by the place a person gave; the manifest by what became of it.
    given = {one.role: one for one in inputs}
    told = tuple(given.get(name, Input(name=name, hash=value, role=name)) for name, value in made["inputs"].items())
    made_by = {**maker, "name": made["stage"], "place": made["place"], "recorded_by": own["run_id"]}
    return Step(what="shards", inputs=told, produces=frozenset({content_hash[:DIGEST_LENGTH]}), **made_by)


def _input(given: Any) -> Input:
    """Read a dataset input back."""
    roles = {tag.key: tag.value for tag in given.tags}
    source = json.loads(given.dataset.source or "{}")
    return Input(
        name=given.dataset.name, hash=given.dataset.digest, place=source.get("uri", ""), role=roles.get(ROLE, "")
    )


def _about(run: Any) -> dict[str, str]:
    tags = run.data.tags
    parent = tags.get(PARENT, "")
    return {
        "name": str(run.info.run_name),
        "run_id": str(run.info.run_id),
        "recorded_by": str(run.info.run_id),
        "git_commit": tags.get(COMMIT_TAG, ""),
        "status": str(run.info.status),
        "parent": parent,
        "place": "" if parent else tags.get(JOB_KEY, "").rpartition("/")[0],
    }
