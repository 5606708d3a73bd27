"""Call a function in child processes, so that input which crashes it, hangs it or eats memory costs one answer.

A helper process makes the function once (imports take seconds) and then forks a child per caller at a time, which takes
milliseconds. Each child answers one question after the other over a pipe, so it is known which input killed it.
Children have a limit of memory and, per question, of time; both are the kernel's, so they hold in native code, and
an orphan ends by itself.
"""

import gc
import os
import pickle
import queue
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

Work = Callable[[bytes], bytes]
"""What is called in isolation."""

_READY, _ANSWER, _NO_MEMORY = b"r", b"a", b"m"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child may use."""

    processes: int = 1
    """Children at once."""
    timeout_s: float = 20.0
    """Longest time for one answer, in seconds."""
    memory_bytes: int = 2 << 30
    """Address space on top of what the function takes when it is made, in bytes."""

    def __post_init__(self) -> None:
        """Refuse limits under which nothing works."""
        for name in ("processes", "timeout_s", "memory_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)} but must be above 0; leave it out for the default")


class Isolated:
    """A function in child processes; any number of threads may call. A context manager."""

    def __init__(self, limits: Limits, make: Callable[..., Work], *args: object) -> None:
        """Start the helper, which calls ``make(*args)``; both are pickled, by name.

        Raises:
            RuntimeError: the function cannot be made; why is on stderr.
        """
        self._limits = limits
        self._recipe = pickle.dumps((limits, make, args))
        self._starting = threading.Lock()
        self._open_helper()
        self._idle: queue.LifoQueue[socket.socket | None] = queue.LifoQueue()
        for _ in range(limits.processes):
            self._idle.put(None)

    def __enter__(self) -> Self:
        """Use it for the length of a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        self.close()

    def close(self) -> None:
        """End the processes; nobody may be calling."""
        for _ in range(self._limits.processes):
            if child := self._idle.get():
                child.close()
        self._control.close()
        self._helper.wait()

    def __call__(self, data: bytes) -> bytes | str:
        """Call the function.

        Returns:
            Its answer, or why there is none: `decoder_crash` (twice: the first time may have been bad luck),
            `decoder_timeout`, `out_of_memory`.
        """
        answer = self._ask(data)
        return self._ask(data) if answer == "decoder_crash" else answer

    def _ask(self, data: bytes) -> bytes | str:
        child = self._idle.get()
        try:
            child = child or self._start_child()
            started = time.monotonic()
            try:
                _send(child, data)
                answer = _receive(child)
            except (EOFError, OSError):
                child.close()
                child = None
                late = time.monotonic() - started >= self._limits.timeout_s
                return "decoder_timeout" if late else "decoder_crash"
        finally:
            self._idle.put(child)
        return answer[1:] if answer[:1] == _ANSWER else "out_of_memory"

    def _start_child(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with self._starting, theirs:
            try:
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            except OSError:  # the helper was killed, which a kernel short of memory may do
                self._control.close()
                self._helper.wait()
                self._open_helper()
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
        return ours

    def _open_helper(self) -> None:
        self._control, theirs = socket.socketpair()
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        # One thread for linear algebra: each would reserve address space, and they would not survive the fork.
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self._helper = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.isolation", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # an interrupt from the keyboard is the caller's to deal with
            )
        with suppress(OSError):  # then it is not ready either
            self._control.sendall(struct.pack("<Q", len(self._recipe)) + self._recipe)
        if self._control.recv(1) != _READY:
            raise RuntimeError(f"the helper process for decoding ended with {self._helper.wait()}; see stderr for why")


def _help(control: socket.socket) -> None:
    """Be the helper: make the function, then fork a child for each connection that comes, until the caller is gone."""
    with control.makefile("rb", buffering=0) as stream:  # unbuffered: what follows carries descriptors
        (size,) = struct.unpack("<Q", stream.read(8))
        recipe = b""
        while len(recipe) < size:
            recipe += stream.read(size - len(recipe))
    limits, make, args = pickle.loads(recipe)
    work = make(*args)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    gc.freeze()  # the collector would copy pages which parent and children share
    control.sendall(_READY)
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        if os.fork() == 0:
            control.close()
            _answer(socket.socket(fileno=descriptors[0]), work, limits)
            return
        os.close(descriptors[0])


def _answer(caller: socket.socket, work: Work, limits: Limits) -> None:
    """Be a child: answer one question after the other, until the caller is gone."""
    sys.stderr = os.fdopen(os.dup(2), "w")  # an exception is told there, not what libraries write past Python
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(EOFError, ConnectionError):
        while True:
            data = _receive(caller)
            signal.setitimer(signal.ITIMER_REAL, limits.timeout_s)  # nobody handles the signal, so it kills
            try:
                answer = _ANSWER + work(data)
            except MemoryError:
                answer = _NO_MEMORY
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(caller, answer)


_LENGTH = struct.Struct("<Q")


def _send(to: socket.socket, data: bytes) -> None:
    """Send a message; `multiprocessing.Connection` would do it too, at twice the time for 100 kB."""
    to.sendall(_LENGTH.pack(len(data)) + data)


def _receive(source: socket.socket) -> bytes:
    """Wait for a message.

    Raises:
        EOFError: the other side is gone.
    """
    return _take(source, _LENGTH.unpack(_take(source, _LENGTH.size))[0])


def _take(source: socket.socket, size: int) -> bytes:
    data = source.recv(size, socket.MSG_WAITALL)
    while len(data) < size:  # a signal came in between, or the other side went
        more = source.recv(size - len(data), socket.MSG_WAITALL)
        if not more:
            raise EOFError
        data += more
    return data


if __name__ == "__main__":
    _help(socket.socket(fileno=int(sys.argv[1])))
