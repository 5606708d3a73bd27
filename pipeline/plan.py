"""What a large run will take, before there is one: machines, hours, bytes, memory, money, each figure with its origin.

Everything is reckoned from `pipeline.rates`. Download and labelling are one stream, so the slower of the two decides
how long both last; pre-training and a sweep come after it. Left out, as nobody measured them: start-up of machines,
work repeated on spot machines that were taken away, slow hosts (``--dry-run`` of ``jobs.pseudo_label`` tells the
busiest one of a list), and what a network or a store cannot carry.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pipeline.lint import LintConfig
from pipeline.lint_report import Expectation
from pipeline.paths import NOT_GIVEN
from pipeline.plan_job import Machine, PlanJob, count
from pipeline.plan_report import Plan, Stage
from pipeline.rates import COMMITTED, Per, Rate, find_rate, read_rates

STORE_SHARE = 0.3
"""Of a machine's memory that Ray gives its object store, unless told otherwise."""
BLOCKS_AT_ONCE = 3
"""Blocks of an actor: two it works on, and one that is written."""
_GIB = 1 << 30


class _Book:
    """The rates at hand, and those that were used."""

    def __init__(self, job: PlanJob) -> None:
        self._rates = [rate for path in (*job.rates, COMMITTED) for rate in read_rates(path)]
        self._given = job.given
        self.used: list[Rate] = []
        self.doubts: list[str] = []

    def speed(self, what: str, machine: Machine, *, model: str = "") -> Rate:
        """Find the rate of work on a machine's GPUs, or on its CPUs.

        Raises:
            ValueError: nobody knows it.
        """
        per: Per = "gpu" if machine.gpus and what != "download" else "cpu"
        if given := getattr(self._given, what):
            return self._use(
                Rate(what=what, value=given, unit=f"{_THINGS[what]}/s", basis="given", where="", per=per, model=model)
            )
        found = find_rate(self._rates, what, per=per, model=model, hardware=machine.gpu)
        if found is None or not found.value:
            known = sorted({f"{r.model} on a {r.per}" for r in self._rates if r.what == what})
            raise ValueError(
                f"nobody measured {what} of {model or 'this'} on a {per}; known: {', '.join(known) or 'none'}. Time it "
                f"and give --given.{what}, or a file with --rates"
            )
        if per == "gpu" and machine.gpu.lower() not in found.hardware.lower():
            self.doubts.append(
                f"{what} is reckoned for a {found.hardware}, but the machine's GPU is {machine.gpu}; time yours: "
                f"--given.{what}"
            )
        return self._use(found)

    def figure(self, what: str, *, per: Per = "") -> Rate | None:
        """Find a figure that is no speed; None where nobody knows it."""
        found = find_rate(self._rates, what, per=per)
        return None if found is None else self._use(found)

    def _use(self, rate: Rate) -> Rate:
        if rate not in self.used:
            self.used.append(rate)
        return rate


_THINGS = {"download": "images", "label": "images", "train": "images", "trial": "trials"}


def plan(job: PlanJob) -> Plan:
    """Reckon a plan.

    Raises:
        ValueError: a rate is not known, or a file is none.
    """
    book, pairs = _Book(job), count(job.pairs, "pairs") if job.pairs else 0
    labelled = pairs if job.stored else round(pairs * _alive(job, book))
    stages = _stream(job, book, pairs, labelled) if pairs else []
    memory = list(_memory(job, book, pairs, stages))
    if pairs:
        stages += _audit(job, book, pairs, stages)
    for what, machine, amount, model in (
        ("train", job.trains, count(job.steps, "steps") * job.batch_size if job.steps else 0, job.model),
        ("trial", job.labels, count(job.trials, "trials") if job.trials else 0, job.model),
    ):
        if amount:
            stages.append(_stage(what, machine, machine.most, amount, book.speed(what, machine, model=model)))
    return Plan(
        title=_title(job, pairs),
        stages=tuple(stages),
        head=job.head.name if job.head.most else "",
        traffic=tuple(_traffic(job, labelled, stages)),
        memory=tuple(memory),
        prices=_prices(job),
        used=tuple(book.used),
        doubts=tuple(book.doubts),
    )


def _title(job: PlanJob, pairs: int) -> str:
    parts = [f"{pairs:,} pairs, teacher {job.teacher}"] if pairs else []
    parts += [f"{count(job.steps, 'steps'):,} steps of model {job.model}"] if job.steps else []
    parts += [f"{count(job.trials, 'trials'):,} trials"] if job.trials else []
    return ", then ".join(parts)


def _alive(job: PlanJob, book: _Book) -> float:
    if job.alive >= 0:
        return job.alive
    found = book.figure("alive")
    return found.value if found else LintConfig.alive


def _stage(what: str, machine: Machine, machines: int, amount: float, rate: Rate) -> Stage:
    """Say how long so many machines take; a GPU's work is done by GPUs alone."""
    engines = machine.gpus if rate.per == "gpu" else machine.cpus
    speed = max(machines, 1) * max(engines, 1) * rate.value
    return Stage(
        name=what,
        machine=machine.name,
        kind=machine.kind,
        spot=machine.spot,
        machines=machines,
        most=machine.most,
        alone_h=amount / speed / 3600,
        because=f"{amount:,.0f} {_THINGS[what]}, {machines} x {engines} {rate.per.upper()} x {rate.number}/s",
    )


def _stream(job: PlanJob, book: _Book, pairs: int, labelled: int) -> list[Stage]:
    """Plan download and labelling, which run side by side: no more of the one than the other can use."""
    label = book.speed("label", job.labels, model=job.teacher)
    one = _stage("label", job.labels, 1, labelled, label)
    wanted = math.ceil(one.alone_h / job.within_hours) if job.within_hours else job.labels.most
    labels = _stage("label", job.labels, max(wanted, 1), labelled, label)
    if job.stored:
        return [labels]
    download = book.speed("download", job.downloads)
    alone = _stage("download", job.downloads, 1, pairs, download).alone_h
    hours = labels.alone_h if not job.within_hours else max(job.within_hours, labels.alone_h)
    enough = max(1, math.ceil(alone / max(hours, 1e-9)))
    machines = enough if job.within_hours else min(enough, max(job.downloads.most, 1))
    return [_stage("download", job.downloads, machines, pairs, download), labels]


def _audit(job: PlanJob, book: _Book, pairs: int, stages: Sequence[Stage]) -> list[Stage]:
    """Plan the last look at every shard, by the CPUs of the machines that are there."""
    rate = book.figure("audit", per="cpu")
    if rate is None:
        return []
    by_name = {machine.name: machine for machine in (job.downloads, job.labels)}
    cpus = sum(stage.machines * by_name[stage.machine].cpus for stage in stages)
    return [
        Stage(
            name="audit",
            machine=stages[-1].machine,
            machines=0,
            alone_h=pairs / max(cpus, 1) / rate.value / 3600,
            because=f"{pairs:,} rows, {cpus} CPUs of the machines above x {rate.number}/s; the network may take longer",
        )
    ]


def _traffic(job: PlanJob, labelled: int, stages: Sequence[Stage]) -> list[Expectation]:
    """Reckon the bytes that come and go."""
    fetched = 0 if job.stored else labelled
    streaming = max((stage.alone_h for stage in stages if stage.name in ("download", "label")), default=0.0)
    found = []
    if fetched:
        amount = fetched * job.source_bytes
        rate = f"; {amount * 8 / max(streaming, 1e-9) / 3600 / 1e6:,.0f} Mbit/s on the average"
        found.append(
            Expectation(
                name="fetched", amount=amount, because=f"{fetched:,} images of {job.source_bytes / 1e3:g} kB{rate}"
            )
        )
    if labelled:
        because = f"{labelled:,} images of {job.image_bytes / 1e3:g} kB at most: rows without a box store none"
        found.append(Expectation(name="stored as labels", amount=labelled * job.image_bytes, because=because))
        because = "every shard is read once before the run is called finished, and again after a kill"
        found.append(Expectation(name="read by the audit", amount=labelled * job.image_bytes, because=because))
    if job.steps:
        seen = count(job.steps, "steps") * job.batch_size
        because = f"{seen:,} images of {job.image_bytes / 1e3:g} kB, read by the training"
        found.append(Expectation(name="read by training", amount=seen * job.image_bytes, because=because))
    return found


def _memory(job: PlanJob, book: _Book, pairs: int, stages: Sequence[Stage]) -> list[Expectation]:
    """Reckon what driver, row checkpoint and object store hold."""
    if not pairs:
        return []
    found = []
    base, row = book.figure("driver-base", per="run"), book.figure("driver", per="row")
    if base and row:
        because = f"{base.value / 1e6:,.0f} MB and {row.value:g} bytes per row, on {job.head.name}"
        found.append(Expectation(name="driver", amount=base.value + pairs * row.value, because=because))
    if ids := book.figure("checkpoint", per="row"):
        because = f"{ids.value:g} bytes per row, once on every machine that chooses rows when a run is gone on with"
        found.append(Expectation(name="row checkpoint", amount=pairs * ids.value, because=because))
    by_name = {machine.name: machine for machine in (job.downloads, job.labels)}
    if share := book.figure("store"):
        found += [_store(job, by_name[stage.machine], share.value, book) for stage in stages]
    return found


def _store(job: PlanJob, machine: Machine, share: float, book: _Book) -> Expectation:
    """Reckon the object store of a machine: what waits for a slower stage fills it as far as Ray allows."""
    store = machine.memory_gib * _GIB * STORE_SHARE
    worked_on = max(machine.gpus, 1) * BLOCKS_AT_ONCE * job.rows_per_block * job.image_bytes
    if worked_on > store * share:
        book.doubts.append(
            f"the blocks that a {machine.name} machine works on take {worked_on / 1e9:,.1f} GB, more than Ray gives "
            f"them; give fewer rows per block, or machines with more memory"
        )
    because = f"of each {machine.name} machine: Ray fills {share:.0%} of a store of {store / 1e9:,.1f} GB; the blocks "
    because += f"being worked on take {worked_on / 1e9:,.2f} GB of it"
    return Expectation(name="object store, peak", amount=store * share, because=because)


def _prices(job: PlanJob) -> Mapping[str, float] | None:
    if job.prices == NOT_GIVEN:
        return None
    try:
        found: Any = yaml.safe_load(job.prices.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(
            f"{job.prices} cannot be read ({' '.join(str(error).split())}); give a file of prices"
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(price, int | float) and price >= 0 for price in found.values()
    ):
        raise ValueError(f"{job.prices} is no table of prices per hour; write 'label: 1.2' and so on, one to a line")
    return {str(name): float(price) for name, price in found.items()}
