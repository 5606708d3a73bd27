"""What only you know: fill it in, then ``python -m cluster.write`` puts it into every cluster file."""

from dataclasses import dataclass

from cluster.node_types import PYTHON, RAY


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where the cluster runs and where its output goes."""

    image: str = f"registry.example.org/glipv2-on-ray:ray{RAY}-py{PYTHON}"
    """Container image of every machine, built from ``cluster/Containerfile``; a registry the machines can reach."""
    aws_region: str = "us-west-2"
    """Region, which must have the machine types of `cluster.node_types`, and your quota for them."""
    aws_zones: str = "us-west-2a,us-west-2b,us-west-2c"
    """Zones to try, in this order."""
    aws_bucket: str = "my-bucket"
    """S3 bucket for output; the machines' role must be allowed to read and write it."""
    gcp_project: str = "my-project"
    """Project id."""
    gcp_region: str = "us-central1"
    """Region, which must have the machine types of `cluster.node_types`, and your quota for them."""
    gcp_zone: str = "us-central1-a"
    """Zone."""
    gcp_bucket: str = "my-bucket"
    """Google Cloud Storage bucket for output, reached over its S3 interface."""
    namespace: str = "default"
    """Namespace of Kubernetes."""


SITE = Site()
