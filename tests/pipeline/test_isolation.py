import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.isolation import Isolated, Limits

FRAGILE = """
import os, time
from pathlib import Path

def make(folder):
    def work(data):
        if data == b"abort":
            os.abort()
        if data == b"exit":
            os._exit(0)
        if data == b"raise":
            raise TypeError("no such luck")
        if data == b"once" and not (Path(folder) / "seen").exists():
            (Path(folder) / "seen").touch()
            os.abort()
        if data == b"hang":
            while True: pass
        if data == b"sleep":
            time.sleep(60)
        if data == b"nap":
            time.sleep(0.3)
        if data == b"bomb":
            return bytes(400 << 20)
        if data == b"modules":
            import sys
            return " ".join(sys.modules).encode()
        return data[::-1] + b" %d" % os.getpid()
    return work

def broken():
    raise ImportError("not installed")
"""


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Isolated]:
    folder = tmp_path_factory.mktemp("isolation")
    (folder / "fragile.py").write_text(FRAGILE)
    sys.path.insert(0, str(folder))
    import fragile  # type: ignore[import-not-found]

    with Isolated(Limits(timeout_s=0.5, memory_bytes=200 << 20), fragile.make, str(folder)) as isolated:
        yield isolated
    sys.path.remove(str(folder))


def ask(isolated: Isolated, data: bytes) -> bytes | str:
    answer = isolated(data)
    return answer.split()[0] if isinstance(answer, bytes) else answer


def pid(isolated: Isolated) -> int:
    answer = isolated(b"pid")
    assert isinstance(answer, bytes)
    return int(answer.split()[1])


@pytest.mark.parametrize("size", [1, 100, 3_000_000])
def test_answers_come_from_one_child_that_stays(isolated: Isolated, size: int) -> None:
    assert ask(isolated, b"ab" * size) == b"ba" * size
    assert pid(isolated) == pid(isolated) != os.getpid()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"abort", "decoder_crash"),
        (b"exit", "decoder_crash"),
        (b"raise", "decoder_crash"),
        (b"hang", "decoder_timeout"),
        (b"sleep", "decoder_timeout"),
        (b"bomb", "out_of_memory"),
    ],
)
def test_what_kills_a_child_costs_one_answer(isolated: Isolated, data: bytes, reason: str) -> None:
    assert isolated(data) == reason
    assert ask(isolated, b"ab") == b"ba"


def test_a_crash_is_tried_again_in_a_fresh_child(isolated: Isolated) -> None:
    before = pid(isolated)
    assert ask(isolated, b"once") == b"ecno"
    assert pid(isolated) != before


def test_the_limit_is_for_each_answer_not_for_a_child(isolated: Isolated) -> None:
    before = pid(isolated)
    assert [ask(isolated, b"nap") for _ in range(3)] == [b"pan"] * 3
    time.sleep(0.6)  # nor for the wait between two
    assert pid(isolated) == before


def test_a_helper_that_was_killed_is_started_again(isolated: Isolated) -> None:
    os.kill(isolated._helper.pid, signal.SIGKILL)
    isolated(b"abort")
    assert ask(isolated, b"ab") == b"ba"


def test_threads_share_the_children() -> None:
    import fragile

    with Isolated(Limits(processes=2, timeout_s=5), fragile.make, "") as isolated:
        pids: list[int] = []
        started = time.monotonic()
        threads = [threading.Thread(target=lambda: (isolated(b"nap"), pids.append(pid(isolated)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(pids)) == 2
        assert time.monotonic() - started < 1.1  # one child alone takes 1.2 s for its naps


def test_children_load_only_what_the_function_needs(isolated: Isolated) -> None:
    answer = isolated(b"modules")
    assert isinstance(answer, bytes)
    assert not {"ray", "torch", "pyarrow", "pytest"} & set(answer.decode().split())


def test_no_process_outlives_its_caller(tmp_path: Path) -> None:
    import subprocess

    script = (
        "import sys, os, time, threading\n"
        "sys.path[:0] = sys.argv[1:]\n"
        "import fragile\n"
        "from pipeline.isolation import Isolated, Limits\n"
        "isolated = Isolated(Limits(timeout_s=1), fragile.make, '')\n"
        "print(isolated._helper.pid, isolated(b'x').split()[1].decode(), flush=True)\n"
        "threading.Thread(target=isolated, args=(b'sleep',), daemon=True).start()\n"
        "time.sleep(60)\n"
    )
    paths = [str(Path(sys.modules["fragile"].__file__ or "").parent), str(Path(__file__).parents[2])]
    with subprocess.Popen([sys.executable, "-c", script, *paths], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pids = [int(text) for text in process.stdout.readline().split()]
        time.sleep(0.2)
        process.kill()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() and not is_zombie(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_zombie(pid: int) -> bool:
    """In a container nobody may be there to reap orphans."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_function_that_cannot_be_made_is_an_error_at_the_start(capfd: pytest.CaptureFixture[str]) -> None:
    import fragile

    with pytest.raises(RuntimeError, match="see stderr"):
        Isolated(Limits(), fragile.broken)
    assert "not installed" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["processes", "timeout_s", "memory_bytes"])
def test_limits_under_which_nothing_works_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})  # type: ignore[arg-type]
