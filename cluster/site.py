"""What only you know: fill it in, then ``python -m cluster.write`` puts it into every cluster file."""

from dataclasses import dataclass
from typing import Literal

from cluster.node_types import PYTHON, RAY


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a cluster runs, and what it may reach. Nothing secret stands here."""

    image: str = f"registry.example.org/glipv2-on-ray:ray{RAY}-py{PYTHON}"
    """Image of every machine, built from ``cluster/Containerfile``, in a registry that the machines can reach."""
    secrets: str = "~/.glipv2-cluster"
    """Folder of yours that every machine of AWS or GCP gets a copy of: ``auth_token``, made by ``ray get-auth-token
    --generate``, and on GCP ``aws_credentials``."""
    aws_region: str = "us-west-2"
    """Region, with the machine types of `cluster.node_types` and your quota for them."""
    aws_zones: str = "us-west-2a,us-west-2b,us-west-2c"
    """Its zones, in the order they are tried."""
    aws_machine_image: str = "ami-00000000000000000"
    """AMI with docker, the NVIDIA container toolkit and a driver from 580 up, such as AWS' Deep Learning Base AMI."""
    aws_head_profile: str = "glipv2-head"
    """Instance profile of the head: it may start and stop machines, hand them the workers' role, and use the bucket."""
    aws_worker_profile: str = "glipv2-worker"
    """Instance profile of the workers: it may read and write the bucket, and nothing else."""
    gcp_project: str = "my-project"
    """Project id."""
    gcp_region: str = "us-central1"
    """Region, with the machine types of `cluster.node_types` and your quota for them."""
    gcp_zone: str = "us-central1-a"
    """Its zone."""
    gcp_machine_image: str = "projects/my-project/global/images/docker-nvidia-580"
    """Image with docker, the NVIDIA container toolkit and a driver from 580 up."""
    kubernetes: Literal["gcp", "aws", ""] = "gcp"
    """Whose Kubernetes it is (GKE or EKS), so that pods find the machine types; empty lets GPUs alone decide."""
    namespace: str = "default"
    """Namespace of Kubernetes."""
    service_account: str = "glipv2"
    """Service account of the pods: it may read and write the bucket."""
    pod_secret: str = "glipv2-environment"
    """Secret of Kubernetes whose entries every pod has as variables: keys that a service account does not spare, such
    as an HMAC key and ``AWS_ENDPOINT_URL`` for Google's storage. It may be absent."""
    bucket: str = "s3://my-bucket"
    """Where the RayJob reads and writes."""
    teacher: str = "IDEA-Research/grounding-dino-tiny"
    """Teacher of the RayJob, by hub id; add ``@revision``, so that it stays the same."""
    mlflow: str = "http://mlflow.example.org:5000"
    """MLflow server of the RayJob; other jobs take that of whoever submits them."""


SITE = Site()
