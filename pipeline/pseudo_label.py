"""Captions to boxes: noun phrases, a GLIP teacher, and grounding shards (GLIPv2 section 4, "pseudo-labelling").

The images are those of a finished download, or come straight from where they are fetched: then URL list to shards is
one stream, and no image is written twice.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from glipv2.text.phrases import clean_caption, make_parser
from pipeline import schema
from pipeline.engine import Source, Step, Work, carry_out
from pipeline.guards import EvaluationIndex, guard_table
from pipeline.labelling import LabelConfig, Labeller
from pipeline.progress import Report
from pipeline.shards import Manifest, read_manifest, shard_places
from pipeline.storage import Place
from pipeline.teachers import teacher_identity

STAGE = "pseudo_label"

_MACHINERY = ("batch_size", "threads", "num_gpus", "bf16")
"""Fields of `LabelConfig` that decide how fast the rows come, not which."""


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig(LabelConfig):
    """How captions become boxes (`LabelConfig`), and on how much of the cluster."""

    num_teachers: int = 1
    """Teachers working side by side."""
    rows_per_block: int = 256
    """Rows a teacher takes at once, to batch alike ones together; also the rows of a shard, labelled and rejected."""
    node_resource: str = ""
    """Custom resource of the machines that label; the cluster files give ``label``. Empty labels on any machine."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        for name in ("num_teachers", "rows_per_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """Who labels, and how."""

    cfg: PseudoLabelConfig
    """How captions become boxes."""
    teacher: str
    """Model folder or hub id (`pipeline.teachers`)."""
    guard: EvaluationIndex | None = None
    """Images that must not be labelled, because models are measured on them."""


def pseudo_label(
    plan: LabelPlan, source: Source, out: Place, *, run_id: str = "", on_progress: Report | None = None
) -> Manifest:
    """Label images into ``out``; a finished one is only read, an unfinished one gone on with.

    Args:
        plan: who labels, and how.
        source: rows of `schema.IMAGES`: `downloaded` ones, or a list's (`pipeline.download.collecting`).
        out: directory to write.
        run_id: MLflow run, recorded in every row.
        on_progress: told about rows done; by default a status line is shown.

    Raises:
        ValueError: the teacher is none, or ``out`` was made otherwise.
    """
    cfg, guard = plan.cfg, plan.guard
    name, sha256 = teacher_identity(plan.teacher)
    parser = make_parser(cfg.phrases)
    provenance = {"teacher": name, "teacher_sha256": sha256, "run_id": run_id}
    labelling = Step(
        make=_Guarded if guard else Labeller,
        arguments={
            "cfg": cfg,
            "teacher_ref": plan.teacher,
            "provenance": provenance,
            **({"guard": guard} if guard else {}),
        },
        num_actors=cfg.num_teachers,
        num_cpus=1,
        num_gpus=cfg.num_gpus,
        calls_at_once=2,  # one is made ready while the network runs for the other
        node_resource=cfg.node_resource,
    )
    deciding = {f.name: getattr(cfg, f.name) for f in fields(LabelConfig) if f.name not in _MACHINERY}
    identity = {
        **source.identity,
        "teacher": {"name": name, "sha256": sha256},
        "parser": {"name": parser.name, "version": parser.version},
        "label": {**deciding, "phrases": asdict(cfg.phrases)},
        "guard": guard.fingerprint if guard else "",
    }
    work = Work(
        stage=STAGE,
        source=replace(
            source,
            identity=identity,
            inputs={**source.inputs, "teacher": sha256},
            steps=[*source.steps, labelling],
        ),
        table=schema.GROUNDING,
        good=schema.LABELLED,
        apart=True,
        crashed=partial(_crashed, cfg.source),
        rows_per_block=cfg.rows_per_block,
        config=asdict(cfg),
    )
    return carry_out(work, out, run_id=run_id, on_progress=on_progress)


class _Guarded:
    """A labeller that is shown no image of the evaluation sets; such a row is rejected, with the set's name."""

    def __init__(self, cfg: LabelConfig, teacher_ref: str, provenance: dict[str, str], guard: EvaluationIndex) -> None:
        self._labeller, self._guard = Labeller(cfg, teacher_ref, provenance), guard

    def __call__(self, images: pa.Table) -> pa.Table:
        leaks = pa.array(guard_table(images, self._guard), pa.string())
        for name, value in (("status", pa.scalar(schema.REJECTED)), ("reason", leaks)):
            column = pc.if_else(pc.is_valid(leaks), value, images[name])
            images = images.set_column(images.schema.get_field_index(name), name, column)
        return self._labeller(images)


def downloaded(images: Place) -> Source:
    """Take the rows of a finished download.

    Raises:
        ValueError: it is not finished.
    """
    given = read_manifest(images)
    if given is None:
        raise ValueError(f"{images} holds no finished download (no manifest.json); run the download first")
    inputs = {"images": given.content_hash}
    return Source(
        places=shard_places(images),
        columns=schema.IMAGES.names,
        num_rows=given.rows_in,
        identity={"inputs": inputs},
        inputs=inputs,
    )


def _crashed(source: str, row: Mapping[str, Any]) -> dict[str, object]:
    return {
        "sample_id": f"{source}/train/{row['key']}",
        "source": source,
        "split": "train",
        "kind": schema.CAPTION,
        "image_uri": row["url"],
        "text": clean_caption(row["caption"]),
        "status": schema.REJECTED,
        "reason": "worker_crash",
        "schema_version": schema.SCHEMA_VERSION,
    }
