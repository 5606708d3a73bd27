"""Manifests of KubeRay, as data: a cluster that stays, and a job that brings its own. KubeRay 1.5.1 or later."""

import shlex
from typing import Any

import yaml

from cluster.launcher import Part
from cluster.node_types import HEAD, RAY, WORKERS, NodeType
from cluster.site import Site
from pipeline.session import ENVIRONMENT

SPOT = {
    "gcp": ("cloud.google.com/gke-spot", "true"),
    "aws": ("eks.amazonaws.com/capacityType", "SPOT"),
}
"""How a Kubernetes marks its spot machines."""
SHM_PART = 0.3
"""Of a pod's memory for /dev/shm, where Ray's object store lies: what Ray takes by default."""
LEAVING_S = 60
"""Seconds a pod is given to leave; a spot machine has 30 to 120."""


def cluster(site: Site) -> list[Part]:
    """Make a cluster that waits for jobs and grows and shrinks with them."""
    return [
        ("", {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": _metadata("glipv2", site)}),
        ("", {"spec": _cluster_spec(site)}),
    ]


def job(site: Site) -> list[Part]:
    """Make a job that brings its own cluster, which goes when it is done."""
    command = ["python", "-m", "jobs.pseudo_label", "captions-gpu", "--pairs", f"{site.bucket}/pairs.tsv"]
    command += ["--teacher", site.teacher, "--out", f"{site.bucket}/captions"]
    spec = {
        "entrypoint": shlex.join(command),
        "runtimeEnvYAML": yaml.safe_dump({"env_vars": {**ENVIRONMENT, "MLFLOW_TRACKING_URI": site.mlflow}}),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "backoffLimit": 0,
        "rayClusterSpec": _cluster_spec(site),
    }
    return [
        ("", {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": _metadata("glipv2-captions", site)}),
        (
            "The code is that of the image. A second try would build a whole new cluster, so there is none: apply this"
            " again after deleting it, and the job goes on where it stopped.",
            {"spec": spec},
        ),
    ]


def _metadata(name: str, site: Site) -> dict[str, Any]:
    return {"name": name, "namespace": site.namespace}


def _cluster_spec(site: Site) -> dict[str, Any]:
    return {
        "rayVersion": RAY,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "upscalingMode": "Default", "idleTimeoutSeconds": 300},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": str(HEAD.cpus), "dashboard-host": "0.0.0.0"},
            "labels": HEAD.labels,
            "template": _pod(HEAD, site),
        },
        "workerGroupSpecs": [_group(kind, site) for kind in WORKERS],
    }


def _group(kind: NodeType, site: Site) -> dict[str, Any]:
    gpus = {"GPU": str(kind.gpus)} if kind.gpus else {}
    custom = {name: str(amount) for name, amount in kind.resources.items()}
    return {
        "groupName": kind.name,
        "replicas": kind.min_workers,
        "minReplicas": kind.min_workers,
        "maxReplicas": kind.max_workers,
        # Where a task could run on several kinds, the cheaper kind is added.
        "priority": 0 if kind.gpus else 1,
        "resources": {"CPU": str(kind.cpus), **gpus, **custom},
        "labels": kind.labels,
        "rayStartParams": {},
        "template": _pod(kind, site),
    }


def _pod(kind: NodeType, site: Site) -> dict[str, Any]:
    head = kind is HEAD
    return {
        "spec": {
            "serviceAccountName": site.service_account,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": LEAVING_S,
            **_placing(kind, site),
            "containers": [_container(kind, site, "ray-head" if head else "ray-worker")],
            "volumes": [
                {
                    "name": "shm",
                    "emptyDir": {"medium": "Memory", "sizeLimit": f"{int(kind.memory_gib * SHM_PART)}Gi"},
                },
                {"name": "ray", "emptyDir": {"sizeLimit": f"{kind.disk_gib // 2}Gi"}},
            ],
        }
    }


def _container(kind: NodeType, site: Site, name: str) -> dict[str, Any]:
    gpus = {"nvidia.com/gpu": str(kind.gpus)} if kind.gpus else {}
    needs = {"cpu": str(kind.processors - 1), "memory": f"{kind.memory_gib}Gi", **gpus}
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
    return {
        "name": name,
        "image": site.image,
        "env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
        "envFrom": [{"secretRef": {"name": site.pod_secret, "optional": True}}],
        **({"ports": [{"name": n, "containerPort": p} for n, p in ports.items()]} if kind is HEAD else {}),
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", "ray stop"]}}},
        "resources": {"requests": needs, "limits": needs},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "ray", "mountPath": "/tmp/ray"}],
    }


def _placing(kind: NodeType, site: Site) -> dict[str, Any]:
    """Say which machines a pod goes to, and that it minds neither GPUs nor spot."""
    selector, tolerations = {}, []
    if site.kubernetes:
        selector["node.kubernetes.io/instance-type"] = kind.gcp if site.kubernetes == "gcp" else kind.aws
    if kind.gpus:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if kind.spot and site.kubernetes:
        key, value = SPOT[site.kubernetes]
        selector[key] = value
        tolerations.append({"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"})
    return {**({"nodeSelector": selector} if selector else {}), **({"tolerations": tolerations} if tolerations else {})}
