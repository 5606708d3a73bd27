"""The manifests are what KubeRay's own definitions allow, and mean the node types: checked without a Kubernetes."""

import copy
import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from cluster.node_types import HEAD, NODE_TYPES, RAY, WORKERS
from cluster.package import ROOT
from cluster.site import SITE

MANIFESTS = {"cluster/kuberay/raycluster.yaml": "rayclusters", "cluster/kuberay/rayjob.yaml": "rayjobs"}
Node = dict[str, Any]


def read(name: str) -> Node:
    manifest: Node = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return manifest


def cluster_spec(manifest: Node) -> Node:
    spec: Node = manifest["spec"]
    return spec if manifest["kind"] == "RayCluster" else spec["rayClusterSpec"]


@pytest.fixture(scope="module")
def definitions() -> dict[str, jsonschema.Draft202012Validator]:
    folder = Path(os.environ.get("GLIPV2_KUBERAY_CRDS", ROOT.parent / "shared" / "reference" / "kuberay"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set GLIPV2_KUBERAY_CRDS to the folder with KubeRay's definitions")
    return {name: validator(folder / f"ray.io_{name}.yaml.gz") for name in MANIFESTS.values()}


def validator(path: Path) -> jsonschema.Draft202012Validator:
    with gzip.open(path) as stream:
        versions = yaml.load(stream, Loader=yaml.CSafeLoader)["spec"]["versions"]
    [schema] = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
    return jsonschema.Draft202012Validator(strict(schema))


def strict(node: Any) -> Any:
    """Refuse fields that are not named; Kubernetes itself would drop them and say nothing."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {name: strict(value) for name, value in node.items()}
    if node.get("x-kubernetes-int-or-string") is True:
        return {"type": ["integer", "string"]}
    if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_knows_every_field(name: str, definitions: dict[str, jsonschema.Draft202012Validator]) -> None:
    assert list(definitions[MANIFESTS[name]].iter_errors(read(name))) == []


def put(*path: str | int, value: object) -> Callable[[Node], None]:
    """Make a change of a cluster's specification."""

    def change(spec: Node) -> None:
        *parents, last = path
        place: Any = spec
        for name in parents:
            place = place[name]
        place[last] = value

    return change


CONTAINER = ("workerGroupSpecs", 0, "template", "spec", "containers", 0)
MISTAKES = {
    "unknown key": put("autoscalerOption", value={}),
    "unknown key of a group": put("workerGroupSpecs", 0, "minReplica", value=0),
    "unknown key deep in a pod": put(*CONTAINER, "resources", "limit", value={"cpu": "1"}),
    "wrong type": put("workerGroupSpecs", 0, "maxReplicas", value="4"),
    "wrong kind of start parameter": put("headGroupSpec", "rayStartParams", "num-cpus", value=0),
    "no such autoscaler": put("autoscalerOptions", "version", value="v3"),
    "no such authentication": put("authOptions", "mode", value="tokens"),
    "no name": put("workerGroupSpecs", 0, value={"minReplicas": 0, "maxReplicas": 1, "template": {}}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_mistake_in_a_manifest_is_found(
    name: str, mistake: str, definitions: dict[str, jsonschema.Draft202012Validator]
) -> None:
    manifest = copy.deepcopy(read(name))
    MISTAKES[mistake](cluster_spec(manifest))
    with pytest.raises(jsonschema.ValidationError):
        definitions[MANIFESTS[name]].validate(manifest)


@pytest.mark.parametrize("name", MANIFESTS)
def test_rays_autoscaler_reads_the_node_types_out_of_a_manifest(name: str) -> None:
    found = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "glipv2", "namespace": "default"}, "spec": cluster_spec(read(name))}
    )["available_node_types"]
    head = found.pop("headgroup")
    assert head["resources"]["CPU"] == HEAD.cpus == 0
    assert found.keys() == {kind.name for kind in WORKERS}
    for kind in WORKERS:
        group = found[kind.name]
        wanted = {"CPU": kind.cpus, **({"GPU": kind.gpus} if kind.gpus else {}), **kind.resources}
        assert {n: v for n, v in group["resources"].items() if n != "memory"} == wanted
        assert (group["min_workers"], group["max_workers"]) == (kind.min_workers, kind.max_workers)
        assert group["labels"] == kind.labels


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_get_what_they_ask_for_and_an_object_store_in_memory(name: str) -> None:
    spec = cluster_spec(read(name))
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for kind, group in zip(NODE_TYPES, groups, strict=True):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["resources"]["limits"].get("nvidia.com/gpu") == (str(kind.gpus) if kind.gpus else None)
        assert int(container["resources"]["limits"]["cpu"]) >= kind.cpus
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        [shm] = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
        assert shm["medium"] == "Memory"
        assert int(shm["sizeLimit"].removesuffix("Gi")) < kind.memory_gib / 2, "it counts as the pod's memory"
        assert container["image"] == SITE.image
        assert container["envFrom"] == [{"secretRef": {"name": SITE.pod_secret, "optional": True}}]
        assert pod["restartPolicy"] == "Never", "the autoscaler replaces a pod; restarted it would be another node"


@pytest.mark.parametrize("name", MANIFESTS)
def test_only_labelling_tolerates_spot_and_the_cluster_grows_by_its_own(name: str) -> None:
    spec = cluster_spec(read(name))
    tolerant = {
        group["groupName"]
        for group in spec["workerGroupSpecs"]
        if any("spot" in toleration["key"] for toleration in group["template"]["spec"].get("tolerations", []))
    }
    assert tolerant == {"label"}
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == RAY


def test_a_failed_job_is_not_given_a_second_cluster_and_a_done_one_leaves_none() -> None:
    job = read("cluster/kuberay/rayjob.yaml")["spec"]
    assert job["backoffLimit"] == 0
    assert job["shutdownAfterJobFinishes"]
    assert job["ttlSecondsAfterFinished"] > 0


def test_the_jobs_command_line_is_one_that_the_job_understands() -> None:
    from jobs.cli import parse
    from jobs.recipes import CAPTIONS

    program, *arguments = read("cluster/kuberay/rayjob.yaml")["spec"]["entrypoint"].split()[2:]
    assert program == "jobs.pseudo_label"
    cfg: Any = parse(CAPTIONS, arguments)
    cfg.check()
    assert cfg.label.node_resource == "label"
