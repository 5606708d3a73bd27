"""The kinds of machines of a cluster, told once: AWS, GCP, Kubernetes and the local cluster are all made from them.

A stage asks for the custom resource of its kind (``node_resource`` in its configuration), so that the autoscaler adds
machines of that kind and no other: downloading adds CPU machines, labelling GPU machines.

After a change here or in `cluster.site`: ``python -m cluster.write``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

RAY = version("ray")
"""Ray's version, on the laptop and in the image; ``pyproject.toml`` pins it."""
PYTHON = "3.11"
"""Python of the image, for which ``requirements.lock`` is made."""

DOWNLOAD = "download"
"""Resource of machines that fetch and decode images."""
LABEL = "label"
"""Resource of machines that label, evaluate and try out: work that goes on elsewhere when a machine is taken away."""
TRAIN = "train"
"""Resource of machines that pre-train."""
PLACES = 1000
"""How much of its resource a machine has; a process asks for one, so that CPUs and GPUs are what runs out."""


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of machine, and how many of them there may be."""

    name: str
    """Its name wherever one is asked for."""
    aws: str
    """Machine type of AWS."""
    gcp: str
    """Machine type of GCP; those with GPUs have them built in."""
    processors: int
    """Processors of the machine; a pod asks for one less, which the Kubernetes node needs itself."""
    memory_gib: int
    """Memory of a pod; somewhat less than the smaller of the two machines has."""
    disk_gib: int
    """Disk: image, weights, what Ray spills."""
    cpus: int
    """CPUs that Ray gives to work; 0 keeps all work away."""
    gpus: int = 0
    """GPUs that Ray gives to work."""
    resources: Mapping[str, int] = field(default_factory=dict)
    """Custom resources of one machine."""
    min_workers: int = 0
    """Machines that are always there."""
    max_workers: int = 0
    """Machines at most."""
    spot: bool = False
    """Whether the cloud may take it away at any moment, for a lower price."""

    def __post_init__(self) -> None:
        """Refuse what Ray accepts and then never starts."""
        if not 0 <= self.min_workers <= self.max_workers:
            raise ValueError(
                f"{self.name} has min_workers {self.min_workers} and max_workers {self.max_workers}; "
                f"give 0 <= min <= max"
            )

    @property
    def labels(self) -> dict[str, str]:
        """Labels of its machines, which tasks can select by and the dashboard shows."""
        return {"node-type": self.name, "market": "spot" if self.spot else "on-demand"}


HEAD = NodeType(name="head", aws="m6i.2xlarge", gcp="n2-standard-8", processors=8, memory_gib=28, disk_gib=200, cpus=0)
"""Where the cluster is steered and jobs' drivers run. On demand and free of work: when it goes, all goes."""

WORKERS = (
    NodeType(
        name="download",
        aws="c6i.4xlarge",
        gcp="n2-standard-16",
        processors=16,
        memory_gib=28,
        disk_gib=100,
        cpus=15,
        resources={DOWNLOAD: PLACES},
        max_workers=4,
    ),
    NodeType(  # one L4 of 24 GB
        name="label",
        aws="g6.2xlarge",
        gcp="g2-standard-8",
        processors=8,
        memory_gib=28,
        disk_gib=200,
        cpus=7,
        gpus=1,
        resources={LABEL: PLACES},
        max_workers=32,
        spot=True,
    ),
    NodeType(  # eight A100 of 40 GB
        name="train",
        aws="p4d.24xlarge",
        gcp="a2-highgpu-8g",
        processors=96,
        memory_gib=640,
        disk_gib=1000,
        cpus=95,
        gpus=8,
        resources={TRAIN: PLACES},
        max_workers=8,
    ),
)

NODE_TYPES = (HEAD, *WORKERS)
MAX_WORKERS = sum(node_type.max_workers for node_type in WORKERS)
"""Machines at most, the head not counted."""


def node_type(name: str) -> NodeType:
    """Find a node type by its name."""
    return {kind.name: kind for kind in NODE_TYPES}[name]
