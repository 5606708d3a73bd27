"""What is done to a running command, and how it is put right again."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.machines import Machines, Network, Node, title
from tests.chaos.servers import Store, Tracking
from tests.chaos.stages import TASKS, Stage

WAIT_S = 60
"""Longest wait for a victim."""
DISK_BYTES = 256 << 20
"""Room for what a stage makes before the fault and after it: a training leaves a checkpoint of 31 MiB at each try."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What can be broken while a command runs."""

    stage: Stage
    command: subprocess.Popen[bytes]
    machines: Machines
    chance: random.Random
    disk: Path
    """Folder of the output."""
    store: Store | None = None
    tracking: Tracking | None = None
    network: Network | None = None


@dataclass(frozen=True)
class Struck:
    """What was done, and how it is put right."""

    what: str
    mend: Callable[[], None] = field(default=lambda: None)
    after_s: float = 0.0
    """Seconds from the blow to the mending; at the latest when the command has ended."""


def kill_worker(scene: Scene) -> Struck:
    return _kill_one(scene, TASKS)


def kill_actor(scene: Scene) -> Struck:
    return _kill_one(scene, scene.stage.actors)


def kill_raylet(scene: Scene) -> Struck:
    machines = scene.machines
    node = scene.chance.choice(_until(lambda: machines.hosting(*scene.stage.actors)))
    machines.lose(node)
    return Struck("a node", machines.join, 1.0)


def kill_driver(scene: Scene) -> Struck:
    os.killpg(scene.command.pid, signal.SIGKILL)  # the command and what it started itself; no process of the nodes
    return Struck("the command")


def stop_store(scene: Scene) -> Struck:
    store = scene.store
    assert store is not None
    store.kill()
    seconds = scene.chance.uniform(2, 5)
    return Struck(f"S3 for {seconds:.1f} s", store.start, seconds)


def pull_cable(scene: Scene) -> Struck:
    """Cut the only node off; a healthy one joins. The cable is plugged in again after Ray gave the node up."""
    network, machines = scene.network, scene.machines
    assert network is not None
    network.cut()
    machines.join()
    seconds = scene.chance.uniform(6, 9)
    return Struck(f"the link for {seconds:.1f} s", network.plug, seconds)


def fill_disk(scene: Scene) -> Struck:
    ballast = scene.disk / ".ballast"
    with ballast.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12):  # up to the last block, whatever the others take meanwhile
            with suppress(OSError):
                while True:
                    stream.write(bytes(size))
    return Struck("no byte left on the disk", ballast.unlink, 30.0)


def stop_mlflow(scene: Scene) -> Struck:
    tracking = scene.tracking
    assert tracking is not None
    tracking.kill()
    seconds = scene.chance.uniform(5, 8)
    return Struck(f"MLflow for {seconds:.1f} s", tracking.start, seconds)


BLOWS: dict[str, Callable[[Scene], Struck]] = {
    "worker": kill_worker,
    "actor": kill_actor,
    "raylet": kill_raylet,
    "driver": kill_driver,
    "store": stop_store,
    "link": pull_cable,
    "disk": fill_disk,
    "mlflow": stop_mlflow,
}


class SmallDisk:
    """A disk of its own for an output, in memory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", str(folder)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def may_mount(folder: Path) -> str:
    """Say why no small disk can be mounted here; empty if it can."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "a small disk needs root and the command mount"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=65536", "chaos", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        return f"mounting is not allowed here ({made.stderr.strip()})"
    subprocess.run(["umount", str(folder)], check=True)
    return ""


def _kill_one(scene: Scene, titles: tuple[str, ...]) -> Struck:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        found = sorted(scene.machines.processes(*titles), key=lambda process: process.pid)
        if found:
            victim = scene.chance.choice(found)
            with suppress(psutil.NoSuchProcess):
                victim.suspend()  # so that what is killed is what it is called: a task may end any moment
                name = title(victim)
                if any(part in name for part in titles):
                    victim.kill()
                    return Struck(name)
                victim.resume()
        assert scene.command.poll() is None, f"the command ended before a process of {titles} was seen"
    raise AssertionError(f"no process of {titles} was seen in {WAIT_S} s")


def _until(find: Callable[[], list[Node]]) -> list[Node]:
    end = time.monotonic() + WAIT_S
    while not (found := find()):
        assert time.monotonic() < end, "nobody to kill was found"
        time.sleep(0.05)
    return found
