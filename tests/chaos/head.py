"""The head of a Ray cluster, without CPUs: ``python -m tests.chaos.head TEMP [IP]``.

Its address is the first line it says. Each line it is given adds a worker node; it answers with the raylet's process
id. It ends with its input.
"""

import sys

from tests.chaos.machines import HEALTH, NODE_BYTES, NODE_CPUS


def main(temp_dir: str, *ip: str) -> None:
    from ray.cluster_utils import Cluster

    head = {
        "temp_dir": temp_dir,
        "num_cpus": 0,  # no work lies on it, so that what is killed is never the memory of the cluster
        "include_dashboard": False,
        "object_store_memory": NODE_BYTES,
        "_system_config": HEALTH,
        **({"node_ip_address": ip[0]} if ip else {}),
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    say(cluster.address)
    for _ in sys.stdin:
        node = cluster.add_node(
            num_cpus=NODE_CPUS, object_store_memory=NODE_BYTES, **({"node_ip_address": ip[0]} if ip else {})
        )
        say(node.all_processes["raylet"][0].process.pid)
    cluster.shutdown()


def say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
