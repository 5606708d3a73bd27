"""On which machines of a cluster a stage's processes may run.

A stage names a custom resource of the machines it is for; a machine has so many of it (`cluster.node_types`), and a
process asks for one, that CPUs and GPUs are what runs out. No resource, the default, runs anywhere.
"""

import logging
import time
from collections.abc import Iterable, Mapping

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled: mypy sees no names
from ray.core.generated.autoscaler_pb2 import (  # type: ignore[attr-defined]  # made at run time by protobuf
    GetClusterStatusReply,
    ResourceRequest,
)

logger = logging.getLogger(__name__)

FIELD = "node_resource"
"""Name of the setting in every configuration that has one."""
ANSWER_S = 60.0
"""Seconds an autoscaler is given to say whether it can add a machine; it looks every few seconds."""


def ask(resource: str) -> dict[str, float]:
    """Give what a process asks for beside CPUs and GPUs.

    A whole one, not a small part: an elastic training adds up what its workers ask for, divides that by what one asks
    for, and rounds down to learn how many there may be; its code warns of fractions.
    """
    return {resource: 1} if resource else {}


def unplaced(config: Mapping[str, object]) -> dict[str, object]:
    """Leave out of a configuration on which machines it runs: it may be gone on with on others."""
    return {
        name: unplaced(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name != FIELD
    }


def require(resource: str, num_gpus: float = 0.0) -> None:
    """Make sure that there is, or can be, a machine with a resource: Ray waits for ever for one that never comes.

    Args:
        resource: custom resource; '' for none.
        num_gpus: GPUs that a process asks for; only whether there are any is looked at.

    Raises:
        ValueError: there is none, and no autoscaler that could add one.
    """
    if num_gpus and "GPU" not in ray.cluster_resources() and not _status().autoscaling_state.autoscaler_state_version:
        raise ValueError(
            f"{_lacks('GPU')}, but {num_gpus:g} GPUs are asked for; ask for 0, or start a cluster with some"
        )
    if not resource or resource in ray.cluster_resources():
        return
    if not _status().autoscaling_state.autoscaler_state_version:
        raise ValueError(f"{_lacks(resource)}, and no autoscaler of version 2 that could add one; {_NEXT}")
    asking = ray.remote(num_cpus=0, resources=ask(resource))(_nothing).remote()
    try:
        if not _can_be_added(resource):
            raise ValueError(f"{_lacks(resource)}, and its autoscaler knows of none to add; {_NEXT}")
    finally:
        ray.cancel(asking, force=True)


_NEXT = (
    "give the resource of machines that are there, '' for any machine, or start a cluster that has them "
    "(cluster/README.md)"
)


def _can_be_added(resource: str) -> bool:
    """Wait until the autoscaler has seen what is asked for, and has found a kind of machine for it or none."""
    end, asked_at = time.monotonic() + ANSWER_S, None
    while resource not in ray.cluster_resources():
        status = _status()
        if asked_at is None and _has(
            resource, [r.request for r in status.cluster_resource_state.pending_resource_requests]
        ):
            asked_at = status.cluster_resource_state.cluster_resource_state_version
        if asked_at is not None and status.autoscaling_state.last_seen_cluster_resource_state_version > asked_at:
            return not _has(resource, status.autoscaling_state.infeasible_resource_requests)
        if time.monotonic() > end:
            logger.warning(
                "the autoscaler has not said in %.0f s whether it can add %s; waiting on", ANSWER_S, resource
            )
            return True
        time.sleep(0.2)
    return True


def _has(resource: str, requests: Iterable[ResourceRequest]) -> bool:
    return any(resource in request.resources_bundle for request in requests)


def _lacks(resource: str) -> str:
    there = sorted(name for name in ray.cluster_resources() if ":" not in name and "memory" not in name)
    return f"this cluster has no machine with the resource {resource!r} (there is {', '.join(there) or 'none'})"


def _status() -> GetClusterStatusReply:
    # `ray status` asks in the same way; there is no public function for it.
    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status())
    return reply


def _nothing() -> None:
    """Run where the resource is: what asks for a machine."""
