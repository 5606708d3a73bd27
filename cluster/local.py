"""A cluster on this machine that behaves like one: Ray's real autoscaler adds and removes nodes as jobs ask for them.

``make cluster``, or ``python -m cluster.local`` (``--help`` lists the flags). The nodes are those of
`cluster.node_types` but share this machine: their CPUs are logical and few, their GPUs are numbers. Ctrl-C ends all.
"""

import argparse
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cluster.local_head import HOST, ask, last_words, running, token_file, wait_until_ready
from cluster.node_types import DOWNLOAD, LABEL, WORKERS
from pipeline.failure import RunError

PROGRAM = "python -m cluster.local"
SUBMIT = (
    "python -m cluster.submit pseudo_label photos --pairs /abs/pairs.tsv --teacher /abs/model --out /abs/dir "
    f"--download.node-resource {DOWNLOAD} --label.node-resource {LABEL}"
)
LOOK_S = 2.0


def main(given: Sequence[str]) -> int:
    """Run the cluster until Ctrl-C."""
    options = parse(given)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        check_ports(options)
        with running(options) as (process, folder):
            wait_until_ready(process, options, folder)
            print(greeting(options, folder), flush=True)
            watch(process, options, folder)
    except KeyboardInterrupt:
        print("\nthe cluster and its nodes are gone", file=sys.stderr)
        return 0
    except (ValueError, RunError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def parse(given: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("--port", type=int, default=6479, help="of the head's GCS; %(default)s, beside Ray's own default 6379")
    add("--dashboard-port", type=int, default=8265, help="of the dashboard and the job server; %(default)s")
    add("--agent-port", type=int, default=52465, help="of the head's dashboard agent; %(default)s")
    add("--max-nodes", type=int, default=4, help="nodes at most in all, beside the head; %(default)s")
    add("--idle-s", type=float, default=60, help="seconds after which a node without work is removed; %(default)s")
    add("--no-token", action="store_true", help="let in whoever reaches the ports; by default a token is wanted")
    return parser.parse_args(given)


def check_ports(options: argparse.Namespace) -> None:
    """Refuse ports that somebody listens on, and numbers that are none.

    Raises:
        ValueError: one is taken, or cannot be.
    """
    if options.max_nodes < 1 or options.idle_s < 0:
        raise ValueError(
            f"--max-nodes is {options.max_nodes}, --idle-s {options.idle_s:g}; give one node or more, and 0 s or more"
        )
    for name in ("port", "dashboard_port", "agent_port"):
        port = getattr(options, name)
        if not 0 < port < 1 << 16:
            raise ValueError(f"--{name.replace('_', '-')} is {port}; give a port between 1 and 65535")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{flag} {port} is taken ({error.strerror}), perhaps by another cluster; give another"
                ) from error


def greeting(options: argparse.Namespace, folder: Path) -> str:
    """Tell where the cluster is and how to use it."""
    address = f"http://{HOST}:{options.dashboard_port}"
    auth, asks = "RAY_AUTH_MODE=disabled", ""
    if not options.no_token:
        auth = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token_file(folder)}"
        asks = f" (asks once for the token in {token_file(folder)})"
    kinds = ", ".join(f"{kind.name} {kind.min_workers} to {kind.max_workers}" for kind in WORKERS)
    return "\n".join(
        [
            f"dashboard   {address}{asks}",
            f"nodes       {kinds}; {options.max_nodes} at most in all; removed after {options.idle_s:g} s without work",
            f"logs        {folder}/session_latest/logs (monitor.log is the autoscaler's)",
            "in another shell:",
            f"  export RAY_API_SERVER_ADDRESS={address} {auth}",
            f"  {SUBMIT}",
            "Ctrl-C here ends the cluster, its nodes and their jobs.",
        ]
    )


def watch(process: subprocess.Popen[bytes], options: argparse.Namespace, folder: Path) -> None:
    """Tell of every node that comes or goes, until the head ends.

    Raises:
        RunError: it ended by itself.
    """
    before: Counter[str] = Counter()
    while process.poll() is None:
        if (now := nodes(options, folder)) is not None and now != before:
            there = ", ".join(f"{count} {name}" for name, count in sorted(now.items())) or "only the head"
            print(f"{time.strftime('%H:%M:%S')} nodes: {there}", flush=True)
            before = now
        time.sleep(LOOK_S)
    raise RunError(f"the head ended with exit code {process.returncode}: {last_words(folder)}")


def nodes(options: argparse.Namespace, folder: Path) -> Counter[str] | None:
    """Count the living nodes beside the head by type; None if the head does not say."""
    answer = ask(options, folder, "/api/v0/nodes?limit=1000&detail=1")
    if answer is None:
        return None
    rows = answer["data"]["result"]["result"]
    return Counter(
        row["labels"].get("node-type", "?") for row in rows if row["state"] == "ALIVE" and not row["is_head_node"]
    )


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
