"""Files of Ray's cluster launcher (``ray up``) for AWS and GCP, as data."""

from typing import Any

from cluster.node_types import HEAD, MAX_WORKERS, NODE_TYPES, NodeType
from cluster.site import Site

Part = tuple[str, dict[str, Any]]
"""A comment, and the top-level entries below it."""

SECRETS = "/home/ray/secrets"
"""Where the image's user finds the secrets."""
GCS_OVER_S3 = {
    "AWS_ENDPOINT_URL": "https://storage.googleapis.com",
    "AWS_REGION": "auto",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_SHARED_CREDENTIALS_FILE": f"{SECRETS}/aws_credentials",
}
"""Google Cloud Storage by its S3 interface, with an HMAC key: the pipeline speaks S3 alone."""


def aws(site: Site) -> list[Part]:
    """Make the cluster file of AWS."""
    provider = {
        "type": "aws",
        "region": site.aws_region,
        "availability_zone": site.aws_zones,
        "cache_stopped_nodes": False,
    }
    types = {kind.name: _node_type(kind, _aws_machine(kind, site)) for kind in NODE_TYPES}
    return _cluster(site, provider, types, {})


def gcp(site: Site) -> list[Part]:
    """Make the cluster file of GCP."""
    provider = {
        "type": "gcp",
        "region": site.gcp_region,
        "availability_zone": site.gcp_zone,
        "project_id": site.gcp_project,
    }
    types = {kind.name: _node_type(kind, _gcp_machine(kind, site)) for kind in NODE_TYPES}
    return _cluster(site, provider, types, GCS_OVER_S3)


def _cluster(site: Site, provider: dict[str, Any], types: dict[str, Any], environment: dict[str, str]) -> list[Part]:
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{SECRETS}/auth_token",
        "RAY_USAGE_STATS_ENABLED": "0",
        **environment,
    }
    start = "ulimit -n 65536; ray start --object-manager-port=8076"
    return [
        ("", {"cluster_name": "glipv2", "max_workers": MAX_WORKERS, "idle_timeout_minutes": 5}),
        ("Where it runs.", {"provider": provider, "auth": {"ssh_user": "ubuntu"}}),
        (
            "All runs in one image, which has everything: nothing is installed. Ray gives the container its GPUs and a"
            " /dev/shm of the size that its object store needs.",
            {
                "docker": {
                    "image": site.image,
                    "container_name": "ray",
                    "pull_before_run": True,
                    "run_options": [f"--env {name}={value}" for name, value in environment.items()],
                },
                "initialization_commands": [],
                "setup_commands": [],
                "head_setup_commands": [],
                "worker_setup_commands": [],
            },
        ),
        ("A folder of yours with the token; machines get it from the head.", {"file_mounts": {SECRETS: site.secrets}}),
        (
            "The head is on demand and takes no work. Workers come when a stage asks for their resource, and go when"
            " they have been idle.",
            {"head_node_type": HEAD.name, "available_node_types": types},
        ),
        (
            "The dashboard, which takes jobs, is reached through `ray dashboard`; the firewall opens ssh alone.",
            {
                "head_start_ray_commands": [
                    "ray stop",
                    f"{start} --head --port=6379 --dashboard-host=0.0.0.0"
                    " --autoscaling-config=~/ray_bootstrap_config.yaml",
                ],
                "worker_start_ray_commands": ["ray stop", f"{start} --address=$RAY_HEAD_IP:6379"],
            },
        ),
    ]


def _node_type(kind: NodeType, machine: dict[str, Any]) -> dict[str, Any]:
    gpus = {"GPU": kind.gpus} if kind.gpus else {}
    return {
        "min_workers": kind.min_workers,
        "max_workers": kind.max_workers,
        "resources": {"CPU": kind.cpus, **gpus, **kind.resources},
        "labels": kind.labels,
        "node_config": machine,
    }


def _aws_machine(kind: NodeType, site: Site) -> dict[str, Any]:
    machine: dict[str, Any] = {
        "InstanceType": kind.aws,
        "ImageId": site.aws_machine_image,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": kind.disk_gib, "VolumeType": "gp3"}}],
        # A page that the download is led to must not be able to ask the machine for its credentials.
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        "IamInstanceProfile": {"Name": site.aws_head_profile if kind is HEAD else site.aws_worker_profile},
    }
    if kind.spot:
        machine["InstanceMarketOptions"] = {"MarketType": "spot"}
    return machine


def _gcp_machine(kind: NodeType, site: Site) -> dict[str, Any]:
    machine: dict[str, Any] = {
        "machineType": kind.gcp,
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "type": "PERSISTENT",
                "initializeParams": {"diskSizeGb": kind.disk_gib, "sourceImage": site.gcp_machine_image},
            }
        ],
    }
    if kind.spot:
        machine["scheduling"] = {
            "provisioningModel": "SPOT",
            "instanceTerminationAction": "DELETE",
            "onHostMaintenance": "TERMINATE",
            "automaticRestart": False,
        }
    elif kind.gpus:  # machines with GPUs cannot be moved while they run
        machine["scheduling"] = {"onHostMaintenance": "TERMINATE"}
    return machine
