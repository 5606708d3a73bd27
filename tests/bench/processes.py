"""Run a command and watch its whole process tree: wall seconds, CPU seconds, and memory with shared pages once.

The kernel's own account misses what no parent waits for, as Ray's workers and the decoders that are forked for them. So
every process is looked at a few times per second, and what it last showed is what counts.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CPU_EVERY_S, MEMORY_EVERY_S, TELL_EVERY_S = 0.2, 0.4, 20.0

Process = tuple[int, int]
"""Process id and the tick it was started at: ids are given out again."""


@dataclass
class Spent:
    """What a command took."""

    wall_s: float = 0.0
    started: float = 0.0
    """By `time.time`."""
    cpu_s: dict[Process, float] = field(default_factory=dict)
    """Of every process of the tree, as last seen."""
    peak_bytes: int = 0
    """Most memory of the whole tree at once, what several share counted once; 0 if it was not watched."""
    memory: list[tuple[float, int]] = field(default_factory=list)
    """Moments by `time.time`, and the memory of the whole tree then."""
    kinds: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    """Moments, and the memory of each kind of process then: ``driver``, Ray's own by name, workers by their work."""
    peak_root_bytes: int = 0
    """The same of the command's first process alone."""
    answer: dict[str, Any] = field(default_factory=dict)
    """What the command wrote to its answer file."""

    @property
    def cpu(self) -> float:
        return sum(self.cpu_s.values())


def run_ours(
    name: str,
    given: Mapping[str, Any],
    timeout_s: float,
    *,
    environment: Mapping[str, str] | None = None,
    memory: bool = False,
) -> Spent:
    """Run a function, named ``module.function`` of this folder, in a process of its own and wait for what it gives.

    Its module ends in `answer`, its arguments and what it gives are JSON.
    """
    module, _, function = name.partition(".")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "answer.json"
        command = [sys.executable, "-m", f"tests.bench.{module}", function, json.dumps(given), str(path)]
        spent = run(command, environment or {}, timeout_s, memory=memory)
        spent.answer = json.loads(path.read_text(encoding="utf-8"))
    return spent


def answer(*functions: Callable[..., Mapping[str, Any]]) -> None:
    """Be the process that `run_ours` starts."""
    name, given, path = sys.argv[1:]
    found = next(function for function in functions if function.__name__ == name)(**json.loads(given))
    Path(path).write_text(json.dumps(found), encoding="utf-8")


def run(command: Sequence[str], environment: Mapping[str, str], timeout_s: float, *, memory: bool = False) -> Spent:
    """Run a command to its end and watch it.

    Raises:
        TimeoutError: it took too long; all its processes are ended.
        RuntimeError: it failed; the end of what it said is in the message.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    given = {**os.environ, "PYTHONPATH": path, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", **environment}
    spent, looked, told = Spent(started=time.time()), 0.0, time.time()
    with tempfile.NamedTemporaryFile("w") as file:
        said = Path(file.name)  # read by another descriptor: the position of this one is the children's
        process = subprocess.Popen(command, env=given, stdout=file, stderr=file, start_new_session=True, cwd=ROOT)
        try:
            while (code := process.poll()) is None:
                tree = _look(process.pid, spent)
                if memory and time.time() - looked >= MEMORY_EVERY_S:
                    looked = time.time()
                    _weigh(process.pid, tree, spent)
                if time.time() - told >= TELL_EVERY_S:
                    told = time.time()
                    last = (_last(said).strip().splitlines() or [""])[-1].strip()
                    print(f"      {told - spent.started:.0f} s: {last[-100:]}", flush=True)
                if time.time() - spent.started > timeout_s:
                    raise TimeoutError(f"{_line(command)} took longer than {timeout_s:.0f} s:\n{_last(said)}")
                time.sleep(CPU_EVERY_S)
        finally:
            spent.wall_s = time.time() - spent.started
            _end(process, spent)
        if code:
            raise RuntimeError(f"{_line(command)} ended with {code}:\n{_last(said)}")
    return spent


def _line(command: Sequence[str]) -> str:
    return " ".join(command)[:300]


def _last(said: Path) -> str:
    return said.read_text(encoding="utf-8", errors="replace")[-3000:]


def _look(root: int, spent: Spent) -> set[int]:
    """Note the CPU seconds of every process of the tree, also of those whose parents are gone; give their ids."""
    table = dict(_processes())
    tree = {root, *(pid for pid, (_, start, _) in table.items() if (pid, start) in spent.cpu_s)}
    children = {pid for pid, (parent, _, _) in table.items() if parent in tree} - tree
    while children:
        tree |= children
        children = {pid for pid, (parent, _, _) in table.items() if parent in tree} - tree
    for pid in tree & table.keys():
        _, start, seconds = table[pid]
        spent.cpu_s[pid, start] = seconds
    return tree


def _processes() -> Iterator[tuple[int, tuple[int, int, float]]]:
    """Read of every process its id, its parent, its start and its CPU seconds."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                text = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
                values = text.rpartition(")")[2].split()
                parent, user, system, start = (int(values[i]) for i in (1, 11, 12, 19))
                yield int(entry.name), (parent, start, (user + system) / TICKS_PER_S)


def _weigh(root: int, tree: set[int], spent: Spent) -> None:
    sizes = {pid: proportional_bytes(pid) for pid in tree}
    kinds: dict[str, int] = {}
    for pid, size in sizes.items():
        kind = "driver" if pid == root else _kind(pid)
        kinds[kind] = kinds.get(kind, 0) + size
    spent.kinds.append((time.time(), kinds))
    spent.memory.append((time.time(), sum(sizes.values())))
    spent.peak_bytes = max(spent.peak_bytes, sum(sizes.values()))
    spent.peak_root_bytes = max(spent.peak_root_bytes, sizes[root])


def _kind(pid: int) -> str:
    """Name a process by its command; Ray's workers tell in it what they are doing."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
        named = next((word for word in words if word.endswith(".py")), words[0] if words else "")
        return named if named.startswith("ray::") else named.rpartition("/")[2]
    return ""


def proportional_bytes(pid: int) -> int:
    """Tell the memory of a process; of a page that n processes share it has one n-th (PSS)."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _end(process: "subprocess.Popen[bytes]", spent: Spent) -> None:
    """End what is left of a tree: Ray's daemons outlive a driver that was killed."""
    _look(process.pid, spent)
    here = {(pid, start) for pid, (_, start, _) in _processes()}
    for pid, _ in spent.cpu_s.keys() & here:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@contextmanager
def scratch(root: Path) -> Iterator[Path]:
    """Lend an empty folder for the length of a block."""
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
