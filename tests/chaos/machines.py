"""Ray nodes that can be broken: each has processes of its own, one of them also a network of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
HEALTH = {
    **{f"health_check_{n}": v for n, v in {"initial_delay_ms": 0, "period_ms": 1000, "failure_threshold": 3}.items()},
    "prestart_worker_first_driver": False,  # a process per CPU and job that nobody asked for
}
NODE_CPUS, NODE_BYTES = 4, 100 << 20
START_S = 240
"""Longest start of a node: the machine may be busy."""


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()  # Ray writes its titles over the old ones, and blanks
    except psutil.Error:
        return ""


class Node:
    """A worker node: a raylet, and all that it started."""

    def __init__(self, find_pid: Callable[[], int]) -> None:
        self._find_pid = find_pid

    @cached_property
    def pid(self) -> int:
        """Wait until it is part of the cluster."""
        return self._find_pid()

    def processes(self, *titles: str) -> list[psutil.Process]:
        """List its processes whose title contains one of these; without any, all of them, the raylet first."""
        with suppress(psutil.NoSuchProcess):
            raylet = psutil.Process(self.pid)
            found = [raylet, *raylet.children(recursive=True)]
            return [one for one in found if not titles or any(part in title(one) for part in titles)]
        return []

    def kill(self) -> None:
        """End it as a power cut does."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


class Machines:
    """A head and worker nodes; commands reach them by ``RAY_ADDRESS``."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *ip: str) -> None:
        self._folder, self._environment = folder, environment
        self._temp = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: a unix socket's path allows 100 characters
        with (folder / "head.log").open("wb") as log:
            self._head = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.head", self._temp, *ip],
                env=dict(environment),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.address = self._told()
        self.nodes: list[Node] = []

    def join(self) -> None:
        """Add a node, which comes up while the caller goes on."""
        assert self._head.stdin is not None
        for node in self.nodes:
            assert node.pid  # answers come in order
        self._head.stdin.write("\n")
        self._head.stdin.flush()
        self.nodes.append(Node(lambda: int(self._told())))

    def join_from(self, network: "Network") -> None:
        """Add a node that lies in a network of its own, with the command a real machine would give."""
        command = [
            *network.inside,
            *(str(Path(sys.executable).with_name("ray")), "start", f"--address={self.address}", "--block"),
            *(f"--node-ip-address={network.far_ip}", f"--num-cpus={NODE_CPUS}", f"--object-store-memory={NODE_BYTES}"),
            *("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"),
        ]
        name = self._folder / f"node-{time.monotonic_ns()}.log"
        with name.open("wb") as log:
            process = subprocess.Popen(command, env=dict(self._environment), cwd=ROOT, stdout=log, stderr=log)

        def find_pid() -> int:
            end = time.monotonic() + START_S
            while b"Ray runtime started" not in (told := name.read_bytes()):
                assert process.poll() is None, told.decode(errors="replace")[-2000:]
                assert time.monotonic() < end, told.decode(errors="replace")[-2000:]
                time.sleep(0.1)
            return process.pid

        self.nodes.append(Node(find_pid))

    def lose(self, node: Node) -> None:
        """Kill a node."""
        self.nodes.remove(node)
        node.kill()

    def processes(self, *titles: str) -> list[psutil.Process]:
        """List processes of all nodes by title."""
        return [process for node in self.nodes for process in node.processes(*titles)]

    def hosting(self, *titles: str) -> list[Node]:
        """List the nodes on which such processes live."""
        return [node for node in self.nodes if node.processes(*titles)]

    def close(self) -> None:
        """End all of it."""
        for node in list(self.nodes):
            self.lose(node)
        assert self._head.stdin is not None
        self._head.stdin.close()
        try:
            self._head.wait(20)
        except subprocess.TimeoutExpired:
            for process in [*psutil.Process(self._head.pid).children(recursive=True), self._head]:
                process.kill()
        shutil.rmtree(self._temp, ignore_errors=True)

    def _told(self) -> str:
        assert self._head.stdout is not None
        line = self._head.stdout.readline().strip()
        assert line, (self._folder / "head.log").read_text(errors="replace")[-2000:]
        return line


def may_make_networks() -> str:
    """Say why a network namespace cannot be made here; empty if it can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and the command ip"
    name = f"probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not allowed here ({made.stderr.strip()})"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


class Network:
    """A network namespace joined to this machine by one cable, which can be pulled out."""

    def __init__(self) -> None:
        number = os.getpid() % 200
        self._name, self._near, self._far = f"chaos-{os.getpid()}", f"cn{os.getpid()}", f"cf{os.getpid()}"
        self.near_ip, self.far_ip = f"10.213.{number}.1", f"10.213.{number}.2"
        _ip("netns", "add", self._name)
        _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self._name)
        _ip("address", "add", f"{self.near_ip}/30", "dev", self._near)
        _ip("link", "set", self._near, "up")
        _ip("-n", self._name, "address", "add", f"{self.far_ip}/30", "dev", self._far)
        _ip("-n", self._name, "link", "set", "lo", "up")
        self.plug()

    @property
    def inside(self) -> list[str]:
        """Words that run a command in it."""
        return ["ip", "netns", "exec", self._name]

    def cut(self) -> None:
        """Take the link down."""
        _ip("-n", self._name, "link", "set", self._far, "down")

    def plug(self) -> None:
        """Take the link up."""
        _ip("-n", self._name, "link", "set", self._far, "up")

    def close(self) -> None:
        """Delete it, and its cable with it."""
        _ip("link", "delete", self._near)
        _ip("netns", "delete", self._name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
