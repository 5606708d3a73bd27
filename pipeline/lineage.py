"""What was made of what, as the MLflow runs tell it: directories of shards, models, and what was done with those.

Everything is pinned by content: a stage's manifest names the hashes of its inputs, a training run those of its sources,
and weights are known by their own hash. What a takedown wrote (`pipeline.trace`) is no descendant of its source.
"""

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.shards import MANIFEST_NAME, Manifest
from pipeline.tracking import tracking_uri

CONTENT_HASH = "content_hash."
DROP = "drop"
"""Stage of a takedown."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something made, or done, with what it was made of."""

    what: str
    """``shards``, ``model`` or ``run``."""
    name: str
    """Name of the stage, model or run."""
    place: str = ""
    """Where it lies, as far as is known."""
    run_id: str = ""
    """MLflow run."""
    git_commit: str = ""
    """Commit of the code that ran."""
    consumes: frozenset[str] = field(default=frozenset(), repr=False)
    """Hashes and paths of what went in."""
    produces: frozenset[str] = field(default=frozenset(), repr=False)
    """Hashes and paths of what came out; of a model without the hash of its weights, which takes long to read."""


class Store:
    """One MLflow store, read only."""

    def __init__(self, uri: str) -> None:
        """Open a store."""
        import mlflow  # takes seconds

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.uri = uri
        self._client = mlflow.MlflowClient(tracking_uri=uri)

    def describe_run(self, run_id: str) -> dict[str, str] | None:
        """Tell a run's name, commit and state; None if it is not of this store."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException:
            return None
        commit = run.data.tags.get("mlflow.source.git.commit", "")
        return {"name": str(run.info.run_name), "git_commit": commit, "status": run.info.status, "store": self.uri}

    def steps(self) -> Iterator[Step]:
        """Tell everything the runs made."""
        for run in self._runs():
            yield from self._models(run)
            yield from self._stages(run)

    def _runs(self) -> Iterator[Any]:
        experiments = [experiment.experiment_id for experiment in self._client.search_experiments()]
        token = None
        while token != "":
            page = self._client.search_runs(experiments, max_results=500, page_token=token)
            yield from page
            token = page.token or ""

    def _models(self, run: Any) -> Iterator[Step]:
        tags, params = run.data.tags, run.data.params
        about = _about(run)
        if "inputs" in tags:
            made = {tags.get("model", ""), tags.get("weights_sha256", "")} - {""}
            consumes = frozenset(tags["inputs"].split())
            yield Step(what="model", place=tags.get("model", ""), consumes=consumes, produces=frozenset(made), **about)
        elif used := {tags.get("model", ""), params.get("model", "")} - {""}:
            yield Step(what="run", consumes=frozenset(used), **about)

    def _stages(self, run: Any) -> Iterator[Step]:
        for name in (tag.removeprefix(CONTENT_HASH) for tag in run.data.tags if tag.startswith(CONTENT_HASH)):
            with tempfile.TemporaryDirectory() as folder:
                path = self._client.download_artifacts(run.info.run_id, f"manifests/{name}/{MANIFEST_NAME}", folder)
                manifest = Manifest(**json.loads(Path(path).read_text(encoding="utf-8")))
            if (step := stage_step(manifest, name)) is not None:
                yield step


def stage_step(manifest: Manifest, place: str) -> Step | None:
    """Tell what a finished directory was made of; None for what a takedown wrote."""
    if manifest.stage == DROP:
        return None
    made, of = frozenset({manifest.content_hash}), frozenset(manifest.inputs.values())
    return Step(what="shards", name=manifest.stage, place=place, run_id=manifest.run_id, consumes=of, produces=made)


def open_stores(homes: Iterable[Path]) -> list[Store]:
    """Open the store the environment names, or those that lie in the given output folders; none is created."""
    uris = dict.fromkeys(tracking_uri(home) for home in homes)
    return [
        Store(uri) for uri in uris if not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()
    ]


def descendants(origins: Iterable[str], steps: Sequence[Step]) -> list[Step]:
    """Find everything made of what has one of these hashes, directly or by way of others, nearest first."""
    from glipv2.checkpoint import WEIGHTS, weights_sha256

    known = set(origins)
    found: dict[Step, None] = {}
    waiting = list(dict.fromkeys(steps))
    while reached := [step for step in waiting if step.consumes & known]:
        found |= dict.fromkeys(reached)
        waiting = [step for step in waiting if step not in found]
        for step in reached:
            known |= step.produces
            if step.what == "model" and (Path(step.place) / WEIGHTS).is_file():
                known.add(weights_sha256(Path(step.place)))
    return list(found)


def _about(run: Any) -> dict[str, Any]:
    commit = run.data.tags.get("mlflow.source.git.commit", "")
    return {"name": str(run.info.run_name), "run_id": str(run.info.run_id), "git_commit": commit}
