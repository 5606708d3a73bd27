"""Fetch the image of every pair and store it, or the reason why there is none (DESIGN, section 2).

Ray Data streams the pairs in blocks through a few long-lived actors (`pipeline.collect`). Each works on several blocks
at once, so that the slowest address of one block holds up only that block.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.collect import CollectConfig, Collector
from pipeline.decode import ImageConfig
from pipeline.engine import Source, Step, Work, carry_out
from pipeline.progress import Report
from pipeline.shards import Manifest, place_sha256
from pipeline.storage import Place

STAGE = "download"

_POSITIVE = ("num_actors", "num_cpus", "rows_per_block", "blocks_per_actor")


@dataclass(frozen=True, kw_only=True)
class DownloadConfig(CollectConfig):
    """How images are fetched, chosen and stored (`CollectConfig`), and on how much of the cluster."""

    num_actors: int = 1
    """Processes that fetch, each with decoders of its own; one fetched 174 images/s on two cores (2026-11-21)."""
    num_cpus: float = 1.0
    """CPUs reserved for each actor. Leave one CPU for Ray's tasks that read and write, or nothing moves."""
    rows_per_block: int = 500
    """Pairs an actor takes at once; also the rows of an output file."""
    blocks_per_actor: int = 4
    """Blocks an actor works on at once; a block is held up by its slowest address, the others go on."""
    node_resource: str = ""
    """Custom resource of the machines that fetch; the cluster files give ``download``. Empty fetches on any machine."""

    def __post_init__(self) -> None:
        """Refuse a plan on which nothing would run."""
        super().__post_init__()
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)} but must be above 0; leave it out for the default")


def download(
    config: DownloadConfig, pairs: Place, out: Place, *, on_progress: Report | None = None, run_id: str = ""
) -> Manifest:
    """Download the images of a pairs file into a directory of `schema.IMAGES` shards.

    A finished directory of the same configuration and pairs is returned as it is, an unfinished one is gone on with.

    Args:
        config: What to fetch, keep and store.
        pairs: One parquet file of `schema.PAIRS`, see `pipeline.sources.pairs`.
        out: Directory for the shards.
        on_progress: Told about rows done; by default a status line is shown.
        run_id: MLflow run to note in the manifest.

    Returns:
        The manifest; ``rows_out`` counts the images, ``rejects`` the rest by ``status:reason``.

    Raises:
        ValueError: ``pairs`` is no pairs file, or ``out`` holds something else.
    """
    work = Work(
        stage=STAGE,
        source=collecting(config, pairs),
        table=schema.IMAGES,
        good=schema.SUCCESS,
        apart=False,
        crashed=_crashed,
        rows_per_block=config.rows_per_block,
        config=asdict(config),
    )
    return carry_out(work, out, run_id=run_id, on_progress=on_progress)


def collecting(config: DownloadConfig, pairs: Place) -> Source:
    """Plan the collecting of a pairs file's images: rows of `schema.PAIRS` become rows of `schema.IMAGES`.

    Raises:
        ValueError: ``pairs`` is no pairs file.
    """
    num_rows = _count_pairs(pairs)
    inputs = {"pairs": place_sha256(pairs)}
    step = Step(
        make=Collector,
        arguments={"config": config},
        num_actors=config.num_actors,
        num_cpus=config.num_cpus,
        calls_at_once=config.blocks_per_actor,
        node_resource=config.node_resource,
    )
    # Time limits and politeness may change when a run is gone on with; what an image is may not.
    deciding = {field.name: getattr(config, field.name) for field in fields(ImageConfig)}
    return Source(
        places=[pairs],
        columns=schema.PAIRS.names,
        num_rows=num_rows,
        identity={"inputs": inputs, "image": {**deciding, "max_bytes": config.fetch.max_bytes}},
        inputs=inputs,
        steps=[step],
    )


def _crashed(pair: Mapping[str, Any]) -> dict[str, object]:
    return {**pair, "status": schema.FAILED_TO_RESIZE, "reason": "worker_crash"}


def _count_pairs(pairs: Place) -> int:
    if not pairs.is_file():
        raise ValueError(f"{pairs} is no file; make it from a list of addresses with pipeline.sources.pairs")
    try:
        with pairs.open_input() as stream, pq.ParquetFile(stream) as file:
            names, rows = file.schema_arrow.names, file.metadata.num_rows
    except pa.ArrowInvalid as error:
        raise ValueError(f"{pairs} is no parquet file ({error}); make it with pipeline.sources.pairs") from error
    if missing := set(schema.PAIRS.names) - set(names):
        raise ValueError(
            f"{pairs} has columns {names} but lacks {sorted(missing)}; make it with pipeline.sources.pairs"
        )
    if rows == 0:
        raise ValueError(f"{pairs} has no rows; make it from a list with at least one pair")
    return int(rows)
