"""Machines of the local cluster: processes of this one, started and ended by Ray's own autoscaler (v2)."""

import json
import os
from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.ray_constants import LABELS_ENVIRONMENT_VARIABLE, RESOURCES_ENVIRONMENT_VARIABLE
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from cluster.node_types import HEAD, NODE_TYPES, NodeType

OBJECT_STORE_BYTES = 256 << 20
"""Of each node; Ray's default, a third of the machine's memory, would be taken once per node."""
MIN_CPUS = 4
"""Logical CPUs of a node at least: with fewer, actors would leave none to the tasks that read and write."""
PROVIDER = "cluster.local_nodes.LocalNodeProvider"
HEAD_ID = FAKE_HEAD_NODE_ID


class LocalNodeProvider(FakeMultiNodeProvider):
    """Ray's provider of pretended machines, whose head is of the type the configuration calls so."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        """As Ray's, which calls every head ``ray.head.default``."""
        super().__init__(provider_config, cluster_name)
        self._nodes[self._head_node_id]["tags"][TAG_RAY_USER_NODE_TYPE] = HEAD.name

    def _create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        """Start a node as Ray's provider does, but with a folder of its own for the code of jobs.

        Ray's nodes of one session share that folder, and each that is given a job's code deletes what lies there and
        unpacks it anew: under the feet of the job's driver, which then fails with "No such file or directory".
        """
        left = dict(resources)
        with self.lock:
            node_id = self._next_hex_node_id()
            parameters = RayParams(
                min_worker_port=0,
                max_worker_port=0,
                dashboard_port=None,
                dashboard_agent_listen_port=0,
                num_cpus=int(left.pop("CPU", 0)),
                num_gpus=int(left.pop("GPU", 0)),
                object_store_memory=left.pop("object_store_memory", None),
                resources=left,
                labels=labels,
                redis_address=self._gcs_address,
                gcs_address=self._gcs_address,
                runtime_env_dir_name=f"runtime_resources_{node_id[-5:]}",
                env_vars={
                    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id,
                    "RAY_CLOUD_INSTANCE_ID": node_id,
                    "RAY_NODE_TYPE_NAME": tags[TAG_RAY_USER_NODE_TYPE],
                    RESOURCES_ENVIRONMENT_VARIABLE: json.dumps(left),
                    LABELS_ENVIRONMENT_VARIABLE: json.dumps(labels),
                },
            )
            node = Node(parameters, head=False, shutdown_at_exit=False, spawn_reaper=False)
            fixed = {
                TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
                TAG_RAY_NODE_NAME: node_id,
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
            }
            entry: Any = {"tags": {**fixed, **tags}, "node": node}
            self._nodes[node_id] = entry


def autoscaling_config(gcs_address: str, max_nodes: int, idle_s: float) -> dict[str, Any]:
    """Describe the cluster to the autoscaler: the node types of the clouds, at this machine's size.

    ``type: external`` fills in no defaults, so that every key is here.
    """
    empty_lists = (
        "cluster_synced_files",
        "rsync_exclude",
        "rsync_filter",
        "initialization_commands",
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    )
    return {
        "cluster_name": "local",
        "max_workers": max_nodes,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": gcs_address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
        },
        "head_node_type": HEAD.name,
        "available_node_types": {kind.name: _node_type(kind) for kind in NODE_TYPES},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{key: [] for key in empty_lists},
    }


def _node_type(kind: NodeType) -> dict[str, Any]:
    store = {"object_store_memory": OBJECT_STORE_BYTES}
    return {
        "resources": {**logical_sizes(kind), **kind.resources, **(store if kind is not HEAD else {})},
        "labels": kind.labels,
        "min_workers": kind.min_workers,
        "max_workers": kind.max_workers,
        "node_config": {},
    }


def logical_sizes(kind: NodeType) -> dict[str, float]:
    """Scale a machine down to a part of this one; its GPU is a number that only the autoscaler believes in."""
    sizes = {"CPU": float(min(kind.cpus, max(MIN_CPUS, os.cpu_count() or 1)))}
    return sizes | ({"GPU": 1.0} if kind.gpus else {})
