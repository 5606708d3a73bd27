"""Run rows through steps into shards, exactly once, through any kill of worker, actor, node or driver.

A `Work` says what to make: the rows, the steps each goes through, and everything that decides the outcome. `carry_out`
streams the rows through the steps in one Ray Data execution and writes shards. Ray Data's row checkpointing
(`ray.data.checkpoint`) remembers what is written; ours is what it does not do:

- an output is bound to what it is made from, and to one writer at a time (`pipeline.ledger`);
- a row that takes its process down costs itself, not its block: the rows that stay undone are given again in smaller
  and smaller blocks, and one that still crashes alone, twice, is rejected with a reason;
- an exception is a bug and ends the run; it is never taken for a bad row;
- nothing is finished before every shard was read and every row found once (`pipeline.audit`).
"""

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.checkpoint import CheckpointConfig
from ray.util.annotations import RayDeprecationWarning

from pipeline import placement, schema
from pipeline.audit import Account, AuditError, Keys, superfluous, take_account
from pipeline.failure import RunError
from pipeline.ledger import Ledger
from pipeline.lost_blocks import LostBlocks
from pipeline.progress import Progress, Report, quiet_ray_data, track_dataset
from pipeline.shards import Manifest, config_hash, parquet_options, plain, read_manifest, write_manifest
from pipeline.storage import Place

logger = logging.getLogger(__name__)

KEY = "key"
"""Column of the row ids."""
CRASH_RETRIES = 2
"""Times a block is given again after its process died, before its rows are tried in smaller blocks."""
SHRINK = 5
"""How much smaller the blocks of rows become that took their process down."""
MAX_LOST_BLOCKS = 100
"""Blocks one round may lose; more means that something is wrong with more than single rows, and the run fails."""
MAX_LOST_ROWS = 1000
"""Rows that may be rejected for killing their process."""

STORAGE_ROUNDS = 3
"""Rounds of a run that may lose blocks because they could not be read or written, beyond what each request retries."""

RETRIED_STORAGE_ERRORS = ("SLOW_DOWN", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "NETWORK_CONNECTION", "curlCode")
"""What S3 says when it wants to be asked again, beside what Ray knows."""

Batch = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What happens to rows, in processes that live as long as the run."""

    make: Callable[..., Batch]
    """Makes the callable that turns a table into another with the same number of rows; called once per process."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Handed to ``make``."""
    num_actors: int = 1
    """Processes."""
    num_cpus: float = 1.0
    """CPUs reserved for each."""
    num_gpus: float = 0.0
    """GPUs reserved for each; may be a fraction."""
    calls_at_once: int = 1
    """Blocks a process works on at once, on threads."""
    node_resource: str = ""
    """Custom resource of the machines the processes run on (`pipeline.placement`); none runs anywhere."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows, and what they go through before the step that is being planned."""

    places: list[Place]
    """Parquet files with a column `key`, int64."""
    columns: list[str]
    """Columns to read of them."""
    num_rows: int
    """Rows of them all."""
    identity: dict[str, object]
    """Everything that decides what the rows are: settings, and hashes of the inputs."""
    inputs: dict[str, str]
    """Name of each input and the hash that pins it."""
    steps: list[Step] = field(default_factory=list)
    """What every row goes through, in order."""
    keys: Keys | None = None
    """The row ids, where they are not 0 … ``num_rows`` - 1."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What to make."""

    stage: str
    """Name, for manifest and progress."""
    source: Source
    """The rows and all their steps."""
    table: pa.Schema
    """What the last step gives and the shards hold."""
    good: str
    """Status of rows the next stage can use."""
    apart: bool
    """Write good and other rows into folders of their own (`schema.OUTCOME`)."""
    crashed: Callable[[Mapping[str, Any]], dict[str, object]]
    """Makes the last row of one that no process survived, from what the source says of it."""
    rows_per_block: int
    """Rows that travel together; also the rows of a shard."""
    config: dict[str, object]
    """The resolved configuration."""


def carry_out(work: Work, out: Place, *, run_id: str = "", on_progress: Report | None = None) -> Manifest:
    """Make an output directory, or go on with it, or only read it if it is finished.

    Raises:
        ValueError: the output was begun with something else, somebody is writing it, or no machine has a resource
            that a step asks for.
        AuditError: rows are missing, doubled or unreadable after all was done.
        RunError: a step raised an exception, or too many rows crashed.
    """
    started = time.monotonic()
    ledger = Ledger(out)
    identity = {"stage": work.stage, "schema_version": schema.SCHEMA_VERSION, **work.source.identity}
    ledger.claim(identity)
    if (finished := read_manifest(out)) is not None:
        return finished
    for step in work.source.steps:
        placement.require(step.node_resource, step.num_gpus)
    with ledger.writer():
        ledger.forget_bugs()
        account = _write_all(work, out, ledger, on_progress or Progress(work.stage))
        manifest = Manifest(
            stage=work.stage,
            config_hash=config_hash(identity),
            rows_in=work.source.num_rows,
            rows_out=account.kept,
            rejects=account.rejects,
            files=[file.entry for file in account.files],
            inputs=work.source.inputs,
            config=json.loads(json.dumps(work.config, default=plain)),  # as it will be read
            run_id=run_id,
            seconds=time.monotonic() - started,
            digest=account.digest,
        )
        ledger.check_writer()
        write_manifest(out, manifest)
    return manifest


def _write_all(work: Work, out: Place, ledger: Ledger, report: Report) -> Account:
    """Write until every row is there once."""
    rows_per_block, num_rows, steps = work.rows_per_block, work.source.num_rows, work.source.steps
    account, failures, alone = Account(files=[]), 0, False
    while True:
        done = ledger.reconcile()
        raised: list[str] = []
        if done < num_rows:
            raised = _write_round(work, steps, rows_per_block, out, ledger, (report, done))
        account = _settle(work, out, ledger, account)
        missing = num_rows - sum(len(file.keys) for file in account.files)
        if not missing:
            return account
        if raised:  # no row is to blame
            failures += 1
            _check_storage(work, raised, failures)
            continue
        if done == num_rows:
            continue  # nothing ran: the checkpoint promised rows that are not there, and no longer does
        if steps is not work.source.steps:
            raise AuditError(f"{out}: {missing} rows could not even be rejected; give the same command again")
        if rows_per_block > 1:
            rows_per_block = max(1, rows_per_block // SHRINK)
            logger.warning("%d rows went down with their process; again in blocks of %d", missing, rows_per_block)
        elif not alone:
            alone = True
            logger.warning(
                "%d rows went down alone with their process; once more: a machine may have been lost", missing
            )
        else:
            _check_losses(missing, out)
            steps = [Step(make=_Reject, arguments={"work": replace(work, source=replace(work.source, steps=[]))})]
            rows_per_block = work.rows_per_block


def _write_round(
    work: Work, steps: list[Step], rows_per_block: int, out: Place, ledger: Ledger, progress: tuple[Report, int]
) -> list[str]:
    """Stream what is not done yet through the steps into shards; tell what blocks could not be read or written for."""
    (report, done), source = progress, work.source
    with _data_context(ledger):
        quiet_ray_data()
        dataset = (
            ray.data.read_parquet([place.path for place in source.places], filesystem=source.places[0].filesystem)
            .select_columns(source.columns)
            .repartition(target_num_rows_per_block=rows_per_block)
        )
        for step in steps:
            dataset = _add(dataset, step, rows_per_block, ledger)
        _warn_of_standstill(steps)
        told = track_dataset(
            dataset, lambda n, _, note: report(done + n, source.num_rows, note), source.num_rows - done
        )
        with LostBlocks() as lost, told:
            _write(dataset, work, out, ledger)
    return lost.raised


def _write(dataset: ray.data.Dataset, work: Work, out: Place, ledger: Ledger) -> None:
    """Write the rows, and tell what went wrong in a line."""
    try:
        dataset.write_parquet(
            out.path,
            filesystem=out.writing,
            partition_cols=[schema.OUTCOME] if work.apart else None,
            schema=None if work.apart else work.table,
            **parquet_options(work.table),
        )
    except ray.exceptions.RayError as error:
        _raise_bugs(work, ledger)
        raise RunError(
            f"{work.stage}: Ray gave up ({_last_line(str(error))}). What is done is kept: mend the cause and give the "
            f"same command again"
        ) from error
    _raise_bugs(work, ledger)


def _raise_bugs(work: Work, ledger: Ledger) -> None:
    if bugs := ledger.bugs_seen():
        raise RunError(
            f"{work.stage}: a step failed with {_last_line(bugs[0])!r}; {len(bugs)} such blocks, tracebacks in "
            f"{ledger.bugs}. What is done is kept: mend the cause and give the same command again"
        )


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].strip()


def _add(dataset: ray.data.Dataset, step: Step, rows_per_block: int, ledger: Ledger) -> ray.data.Dataset:
    with warnings.catch_warnings():
        # Ray 2.60 wants named options instead of **ray_remote_args, but has no name for these two.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            _Worker,
            fn_constructor_kwargs={"step": step, "ledger": ledger.out},
            batch_size=rows_per_block,
            batch_format="pyarrow",
            num_cpus=step.num_cpus,
            num_gpus=step.num_gpus or None,
            resources=placement.ask(step.node_resource) or None,
            compute=ray.data.ActorPoolStrategy(
                size=step.num_actors,
                max_concurrent_calls_per_actor=step.calls_at_once,
                enable_true_multi_threading=step.calls_at_once > 1,
            ),
            # A process may die any number of times in a long run on spot nodes; a block may not. With restarts bounded
            # too, a pool whose last process is gone waits for ever (seen in Ray 2.60).
            max_restarts=-1,
            max_task_retries=CRASH_RETRIES,
        )


class _Worker:
    """One process of a step: tells an exception, which is a bug, from the death of the process, which is a bad row."""

    def __init__(self, step: Step, ledger: Place) -> None:
        self._ledger = Ledger(ledger)
        self._batch = self._reporting(step.make, **step.arguments)

    def __call__(self, rows: pa.Table) -> pa.Table:
        found: pa.Table = self._reporting(self._batch, rows)
        return found

    def _reporting(self, function: Callable[..., Any], *arguments: object, **named: object) -> Any:
        try:
            return function(*arguments, **named)
        except Exception as error:
            self._ledger.report_bug(error)
            raise


class _Reject:
    """The last step of rows that took their process down each time: they end here, with a reason."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, rows: pa.Table) -> pa.Table:
        work = self._work
        table = schema.to_table([{KEY: row[KEY], **work.crashed(row)} for row in rows.to_pylist()], work.table)
        return table.append_column(schema.OUTCOME, table["status"]) if work.apart else table


def _settle(work: Work, out: Place, ledger: Ledger, before: Account) -> Account:
    """Read every new shard, delete what is there twice, and make the checkpoint agree with what is there."""
    account = take_account(out, work.good, before.files)
    if account.unreadable:
        raise AuditError(
            f"{out}: {len(account.unreadable)} shards cannot be read, the first is {account.unreadable[0]}; delete "
            f"them and give the same command again: their rows are made anew"
        )
    keys = np.arange(work.source.num_rows) if work.source.keys is None else work.source.keys
    seen = account.times_seen(int(keys.max()) + 1)
    for file in superfluous(account, seen):
        logger.warning("%s holds only rows that another shard holds too; deleted", file.path)
        (out / file.path).delete()
        account.files.remove(file)
        seen[file.keys] -= 1
    if doubled := int((seen > 1).sum()):
        raise AuditError(f"{out}: {doubled} rows are there more than once, the first is {int(np.argmax(seen > 1))}")
    present = np.flatnonzero(seen)
    if len(present) > work.source.num_rows or not np.isin(present, keys, assume_unique=True).all():
        raise AuditError(f"{out}: it holds rows that were not given; the directory is of another list")
    if len(present) < work.source.num_rows:
        ledger.heal(present.astype(np.int64))
    return account


def _check_storage(work: Work, raised: list[str], failures: int) -> None:
    """Let a store that was away be tried again, but not for ever."""
    if failures >= STORAGE_ROUNDS:
        raise RunError(
            f"{work.stage}: {len(raised)} blocks could not be read or written ({raised[0]}). What is done is kept: "
            f"mend the cause and give the same command again"
        )
    logger.warning("%d blocks could not be read or written (%s); again", len(raised), raised[0])


def _check_losses(missing: int, out: Place) -> None:
    if missing > MAX_LOST_ROWS:
        raise AuditError(
            f"{out}: {missing} rows kill the process that works on them, more than the {MAX_LOST_ROWS} that bad rows "
            f"can explain; look at memory and at the teacher, then give the same command again"
        )


@contextmanager
def _data_context(ledger: Ledger) -> Iterator[None]:
    """Set what Ray Data takes from its context for one data set, and put back what was there."""
    context = ray.data.DataContext.get_current()
    wanted = {
        "checkpoint_config": CheckpointConfig(
            id_column=KEY,
            checkpoint_path=str(ledger.done),
            override_filesystem=ledger.done.filesystem,
            # The default deletes the memory of a finished run: given again, it would write every row a second time.
            delete_checkpoint_on_success=False,
        ),
        "max_errored_blocks": MAX_LOST_BLOCKS,
        "retried_io_errors": [*context.retried_io_errors, *RETRIED_STORAGE_ERRORS],
    }
    before = {name: getattr(context, name) for name in wanted}
    for name, value in wanted.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _warn_of_standstill(steps: list[Step]) -> None:
    reserved, there = sum(s.num_actors * s.num_cpus for s in steps), ray.cluster_resources().get("CPU", 0)
    if reserved > there - 2:  # one for tasks, one for the actor that leaves out what is done
        logger.warning(
            "the actors reserve %g of %g CPUs and leave too few for Ray's own that read, choose and write; unless the "
            "cluster grows, nothing moves: lower the number of actors or their CPUs",
            *(reserved, there),
        )
