"""What the local cluster tells Ray's autoscaler, and what its nodes are started with; nothing is started here."""

import json
from typing import Any

import pytest
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

from cluster import local_nodes
from cluster.local_nodes import HEAD_ID, LocalNodeProvider, autoscaling_config
from cluster.node_types import HEAD, NODE_TYPES, WORKERS

CONFIG = autoscaling_config("127.0.0.1:6479", max_nodes=3, idle_s=90)


def test_the_autoscaler_is_given_the_node_types_of_the_clouds() -> None:
    read = AutoscalingConfig(json.loads(json.dumps(CONFIG)))
    kinds = read.get_node_type_configs()
    assert read.get_head_node_type() == HEAD.name
    assert set(kinds) == {kind.name for kind in NODE_TYPES}
    for kind in WORKERS:
        there = kinds[kind.name]
        assert (there.min_worker_nodes, there.max_worker_nodes) == (kind.min_workers, kind.max_workers)
        assert {name: there.resources[name] for name in kind.resources} == kind.resources
        assert ("GPU" in there.resources) == (kind.gpus > 0)
        assert there.labels == kind.labels
    assert kinds[HEAD.name].resources == {"CPU": 0}
    assert read.get_max_num_worker_nodes() == 3
    assert read.get_idle_timeout_s() == 90


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the parameters of nodes instead of starting them."""
    found: list[Any] = []
    monkeypatch.setenv("RAY_FAKE_CLUSTER", "1")
    monkeypatch.setattr(local_nodes, "Node", lambda parameters, **_: found.append(parameters))
    return found


def test_nodes_do_not_share_the_folder_in_which_ray_unpacks_the_code_of_jobs(started: list[Any]) -> None:
    provider = LocalNodeProvider(CONFIG["provider"], "local")
    kind = CONFIG["available_node_types"]["label"]
    provider.create_node_with_resources_and_labels(
        {}, {"ray-user-node-type": "label", "ray-node-kind": "worker"}, 2, kind["resources"], kind["labels"]
    )
    first, second = started
    assert first.runtime_env_dir_name != second.runtime_env_dir_name
    assert first.runtime_env_dir_name != local_nodes.RayParams().runtime_env_dir_name  # the head's
    assert first.env_vars["RAY_CLOUD_INSTANCE_ID"] != second.env_vars["RAY_CLOUD_INSTANCE_ID"]
    assert (first.num_cpus, first.num_gpus) == (kind["resources"]["CPU"], 1)
    assert first.resources == {"label": kind["resources"]["label"]}
    assert first.labels == kind["labels"]
    assert first.object_store_memory == local_nodes.OBJECT_STORE_BYTES
    types = {provider.node_tags(node)["ray-user-node-type"] for node in provider.non_terminated_nodes({})}
    assert types == {HEAD.name, "label"}
    assert provider.node_tags(HEAD_ID)["ray-user-node-type"] == HEAD.name
