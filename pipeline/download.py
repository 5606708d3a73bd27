"""Fetch the image of every pair and store it, or the reason why there is none (DESIGN, section 2).

Ray Data streams the pairs in blocks through a few long-lived actors. Each actor fetches with one pooled client and
decodes with img2dataset's ``Resizer``. It works on several blocks at once, so that the slowest address of one block
holds up only that block.
"""

import logging
import threading
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.util.annotations import RayDeprecationWarning

from pipeline import schema, shards
from pipeline.decode import Decoder, ImageConfig
from pipeline.fetch import FetchConfig, Fetcher
from pipeline.progress import Progress, Report, quiet_ray_data, track_dataset

logger = logging.getLogger(__name__)

STAGE = "download"

_MACHINERY = ("num_actors", "num_cpus", "rows_per_block", "blocks_per_actor")
"""Fields that decide how fast the rows come, not which: they may differ when a finished output is reused."""

_MAX_CRASHES = 2
"""Times an actor is started again, and its blocks are retried, when a decoder takes the process down with it."""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig(ImageConfig):
    """How images are fetched, chosen and stored (`ImageConfig`), and on how much of the cluster."""

    fetch: FetchConfig = field(default_factory=FetchConfig)
    """Limits of every request."""
    num_actors: int = 1
    """Processes that fetch and decode; about 200 images/s each."""
    num_cpus: float = 1.0
    """CPUs reserved for each actor. Leave one CPU for Ray's tasks that read and write, or nothing moves."""
    rows_per_block: int = 500
    """Pairs an actor takes at once; also the rows of an output file."""
    blocks_per_actor: int = 4
    """Blocks an actor works on at once; a block is held up by its slowest address, the others go on."""

    def __post_init__(self) -> None:
        """Refuse a plan on which nothing would run."""
        super().__post_init__()
        for name in _MACHINERY:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)} but must be above 0; leave it out for the default")


def download(
    config: DownloadConfig, pairs: Path, out: Path, *, on_progress: Report | None = None, run_id: str = ""
) -> shards.Manifest:
    """Download the images of a pairs file into a directory of `schema.IMAGES` shards.

    A finished directory of the same configuration and pairs is returned as it is, an unfinished one is made again.

    Args:
        config: What to fetch, keep and store.
        pairs: One parquet file of `schema.PAIRS`, see `pipeline.sources.pairs`.
        out: Directory for the shards.
        on_progress: Told about rows done; by default a status line is logged.
        run_id: MLflow run to note in the manifest.

    Returns:
        The manifest; ``rows_out`` counts the images, ``rejects`` the rest by ``status:reason``.

    Raises:
        ValueError: ``pairs`` is no pairs file, or ``out`` holds something else.
    """
    started = time.monotonic()
    rows_in = _count_pairs(pairs)
    inputs = {"pairs": shards.file_sha256(pairs)}
    wanted = _content_hash(config, inputs)
    if finished := shards.begin(out, wanted):
        return finished
    dataset = _plan(config, pairs)
    _warn_of_standstill(config)
    with track_dataset(dataset, on_progress or Progress(STAGE), rows_in):
        _write(dataset, out)
    shards.number_files(out, "key")
    rows_out, rejects = shards.count_rejects(out, schema.SUCCESS)
    manifest = shards.Manifest(
        stage=STAGE,
        config_hash=wanted,
        rows_in=rows_in,
        rows_out=rows_out,
        rejects=rejects,
        files=shards.describe_files(out),
        inputs=inputs,
        config=asdict(config),
        run_id=run_id,
        seconds=time.monotonic() - started,
    )
    shards.write_manifest(out, manifest)
    return manifest


class Downloader:
    """The actor: fetches and decodes blocks of pairs, several at once on threads of Ray's."""

    def __init__(self, config: DownloadConfig) -> None:
        """Load img2dataset and open the client, once per process."""
        self._decoder = Decoder(config)
        self._fetcher = Fetcher(config.fetch)
        self._decoding = threading.Lock()

    def __call__(self, pairs: pa.Table) -> pa.Table:
        """Give every pair its outcome; the order stays."""
        rows = [{**pair, "status": schema.FAILED_TO_DOWNLOAD, "reason": "bad_line"} for pair in pairs.to_pylist()]
        named = [row for row in rows if row["url"] is not None]
        for position, body in self._fetcher.fetch_all([row["url"] for row in named]):
            named[position] |= self._store(body)
        return schema.to_table(rows, schema.IMAGES)

    def _store(self, body: bytes | str) -> dict[str, object]:
        if isinstance(body, str):
            return {"status": schema.FAILED_TO_DOWNLOAD, "reason": body}
        with self._decoding:
            picture = self._decoder(body)
        if isinstance(picture, str):
            return {"status": schema.FAILED_TO_RESIZE, "reason": picture}
        return {
            "status": schema.SUCCESS,
            "reason": None,
            "image": {"bytes": picture.data, "path": None},
            "width": picture.width,
            "height": picture.height,
            "original_width": picture.original_width,
            "original_height": picture.original_height,
            "sha256": picture.sha256,
        }


def _count_pairs(pairs: Path) -> int:
    if not pairs.is_file():
        raise ValueError(f"{pairs} is no file; make it from a list of addresses with pipeline.sources.pairs")
    try:
        with pq.ParquetFile(pairs) as file:
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


def _content_hash(config: DownloadConfig, inputs: dict[str, str]) -> str:
    deciding = {name: value for name, value in asdict(config).items() if name not in _MACHINERY}
    return shards.config_hash([STAGE, schema.SCHEMA_VERSION, deciding, inputs])


def _plan(config: DownloadConfig, pairs: Path) -> ray.data.Dataset:
    quiet_ray_data()
    with warnings.catch_warnings():
        # Ray 2.60 wants named options instead of **ray_remote_args, but has no name for these two.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return (
            ray.data.read_parquet(str(pairs.resolve()))
            .select_columns(schema.PAIRS.names)
            .repartition(target_num_rows_per_block=config.rows_per_block)
            .map_batches(
                Downloader,
                fn_constructor_args=(config,),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=config.num_cpus,
                compute=ray.data.ActorPoolStrategy(
                    size=config.num_actors,
                    max_concurrent_calls_per_actor=config.blocks_per_actor,
                    enable_true_multi_threading=True,
                ),
                max_restarts=_MAX_CRASHES,
                max_task_retries=_MAX_CRASHES,
            )
        )


def _warn_of_standstill(config: DownloadConfig) -> None:
    reserved, there = config.num_actors * config.num_cpus, ray.cluster_resources().get("CPU", 0)
    if reserved > there - 1:
        logger.warning(
            "%d actors of %g CPUs leave no CPU of %g for Ray's tasks that read and write; unless the cluster grows, "
            "nothing moves: lower num_actors or num_cpus",
            *(config.num_actors, config.num_cpus, there),
        )


def _write(dataset: ray.data.Dataset, out: Path) -> None:
    dataset.write_parquet(str(out.resolve()), schema=schema.IMAGES, **shards.parquet_options(schema.IMAGES))
