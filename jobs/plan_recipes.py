"""Recipes of ``python -m jobs.plan``: what is planned, on which machines. Seconds, on any machine; nothing is started.

The machines are those of `cluster.node_types`. Every figure can be changed by a flag: ``--labels.most 32``,
``--given.label 6`` (captions per second of your teacher on one of your GPUs), ``--rates /abs/rates.yaml``.
"""

from cluster.node_types import NodeType, node_type
from pipeline.plan_job import Machine, PlanJob

GPUS = {"label": "L4", "train": "A100"}
"""GPU of a node type, as its machine types have it."""


def captions() -> PlanJob:
    """Plan the labelling of a caption list on the cluster.

    ``python -m jobs.plan captions --pairs 16M --teacher glip-l``, with ``--within-hours 48`` for the machines that
    takes, and with ``--prices /abs/prices.yaml`` for the money.
    """
    return PlanJob(
        head=_machine("head", most=1),
        downloads=_machine("download"),
        labels=_machine("label"),
        trains=_machine("train"),
    )


def whole() -> PlanJob:
    """Plan the paper's whole way with GLIPv2-T: 16M captions by GLIP-L, 330,000 steps, a sweep of ODinW-13.

    ``python -m jobs.plan whole --given.trial 0.01``: the trials are 13 sets, five numbers of shots, three draws, two
    modes. What a trial takes on a GPU was never measured; the flag says how many one GPU does per second.
    """
    start = captions()
    return PlanJob(
        pairs="16M",
        teacher="glip-l",
        steps="330k",
        model="t",
        trials="390",
        head=start.head,
        downloads=start.downloads,
        labels=start.labels,
        trains=start.trains,
    )


def laptop() -> PlanJob:
    """Plan a labelling on one machine of two cores, by rates that were measured on one.

    ``python -m jobs.plan laptop --pairs 100k --teacher nano``; both stages share the cores, so each is given one.
    """
    core = Machine(name="core", memory_gib=1.7)  # two of them have the store of 1 GiB that a session has here
    return PlanJob(head=Machine(name="laptop", most=0), downloads=core, labels=core, trains=core, rows_per_block=256)


def _machine(name: str, most: int | None = None) -> Machine:
    kind: NodeType = node_type(name)
    return Machine(
        name=kind.name,
        kind=f"{kind.aws} or {kind.gcp}",
        cpus=kind.cpus,
        gpus=kind.gpus,
        gpu=GPUS.get(kind.name, ""),
        memory_gib=kind.memory_gib,
        most=kind.max_workers if most is None else most,
        spot=kind.spot,
    )


PLANS = {"captions": captions, "whole": whole, "laptop": laptop}
