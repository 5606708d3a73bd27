"""Kill what can be killed, at random moments, and compare with what an undisturbed run writes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.collect import Collector
from pipeline.download import DownloadConfig, collecting
from pipeline.engine import carry_out
from pipeline.fetch import FetchConfig
from pipeline.labelling import Labeller
from pipeline.ledger import PENDING, Ledger
from pipeline.pseudo_label import LabelPlan, PseudoLabelConfig, pseudo_label
from pipeline.shards import MANIFEST_NAME, open_rows, read_manifest
from pipeline.storage import Place
from pipeline.teachers import teacher_identity
from tests.pipeline.engine_driver import write_call
from tests.pipeline.engine_steps import Dangers, Square, squares, write_list
from tests.pipeline.test_download import jpeg, reaching, write_pairs

pytestmark = pytest.mark.ray

COUNT, ROWS_PER_BLOCK = 60, 5
LIMIT_S = 240
"""Longest wait for anything: the machine may be busy."""
TASKS = ("ray::ListFiles", "ray::ReadFiles", "ray::StreamingRepartition", "ray::Write")
ACTORS = ("ray::MapWorker(MapBatches(_Worker))",)

Row = tuple[int, str, str, str | None]


def essence(rows: list[dict[str, Any]]) -> Counter[Row]:
    """Reduce rows to what must not change: id, boxes, status, reason; counted, as each may be there only once."""
    return Counter((row["key"], repr(row["boxes"]), row["status"], row["reason"]) for row in rows)


def undisturbed() -> Counter[Row]:
    keys = pa.table({"key": pa.array(range(COUNT), pa.int64())})
    return essence(Square(Dangers())(keys).to_pylist())


def written(out: Place) -> Counter[Row]:
    return essence(open_rows(out).to_table().to_pylist())


class Watch:
    """A reader that looks at an output all the time while it is written."""

    def __init__(self, out: Path) -> None:
        self._out, self._over = out, threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self.torn: list[str] = []
        self.late: set[str] = set()
        self.looks = 0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _look_on(self) -> None:
        while not self._over.wait(0.01):
            self._look()

    def _look(self) -> None:
        self.looks += 1
        finished = read_manifest(self._out)  # before the shards: what comes after it comes too late
        for path in self._out.rglob("*.parquet"):
            if finished and path.relative_to(self._out).as_posix() not in {file["path"] for file in finished.files}:
                self.late.add(path.name)
            try:
                pq.read_table(path, partitioning=None)
            except FileNotFoundError:
                continue  # deleted since: what a dead writer had not committed
            except (pa.ArrowInvalid, OSError) as error:
                self.torn.append(f"{path}: {error}")

    def check(self) -> None:
        assert self.looks > 2
        assert self.torn == []
        assert self.late == set()


class Killer:
    """Kills processes of the session's Ray by their title, each at a random moment after so many shards are there."""

    def __init__(self, out: Place, titles: tuple[str, ...], after: list[int], seed: int) -> None:
        self._done, self._titles, self._after = Ledger(out).done, titles, after
        self._random, self._over = random.Random(seed), threading.Event()
        self._thread = threading.Thread(target=self._kill_all, daemon=True)
        self.killed: list[str] = []

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _kill_all(self) -> None:
        for count in self._after:
            while committed(self._done) < count and not self._over.wait(0.01):
                pass
            self._over.wait(self._random.uniform(0, 0.3))
            while not self._kill_one() and not self._over.wait(0.005):
                pass

    def _kill_one(self) -> bool:
        found = [child for child in psutil.Process().children(recursive=True) if title(child).startswith(self._titles)]
        if not found:
            return False
        victim = self._random.choice(sorted(found, key=lambda child: child.pid))
        name = title(victim)
        with suppress(psutil.NoSuchProcess):
            victim.kill()
            self.killed.append(name)
        return True


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _has(done: Place, count: int) -> bool:
    return committed(done) >= count


def committed(done: Place) -> int:
    return sum(not place.name.endswith(PENDING) for place in done.files(".parquet"))


@pytest.fixture
def rows(tmp_path: Path) -> Place:
    return write_list(tmp_path, COUNT)


@pytest.fixture
def out(tmp_path: Path) -> Place:
    return Place.of(tmp_path / "out")


@pytest.mark.parametrize(
    ("titles", "after"), [(TASKS, [0, 1, 4]), (ACTORS, [1, 5])], ids=["read and write tasks", "actors of a step"]
)
def test_killed_workers_cost_nothing(
    ray_session: None, rows: Place, out: Place, titles: tuple[str, ...], after: list[int]
) -> None:
    work = squares(rows, COUNT, Dangers(seconds_per_block=0.2), rows_per_block=ROWS_PER_BLOCK)
    with Watch(out.local) as watch, Killer(out, titles, after, seed=3) as killer:
        manifest = carry_out(work, out)
    assert len(killer.killed) == len(after), killer.killed
    assert written(out) == undisturbed()
    assert manifest.rejects == {"multiple": 20}, "a row was blamed for the death of its process"
    watch.check()


class Driver:
    """A driver process on the session's Ray, which outlives it: workers may go on for a moment when it is killed."""

    def __init__(self, folder: Path, call: Callable[[], object], where: str | None = None) -> None:
        import ray

        self._call = write_call(folder / "call.pkl", call)
        self._where = where or ray.get_runtime_context().gcs_address
        self._log = folder / "driver.log"

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        root = Path(__file__).resolve().parent.parent.parent
        command = [sys.executable, "-m", "tests.pipeline.engine_driver", self._where, str(self._call)]
        with self._log.open("ab") as log:
            process = subprocess.Popen(command, cwd=root, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run_killed(self, enough: Callable[[], bool], pause_s: float) -> None:
        """Run it until there is enough and kill it a moment later."""
        with self.running() as process:
            end = time.monotonic() + LIMIT_S
            while not enough():
                assert process.poll() is None, f"it ended by itself: {self.told}"
                assert time.monotonic() < end, f"it never came so far: {self.told}"
                time.sleep(0.01)
            time.sleep(pause_s)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, f"it ended by itself: {self.told}"

    def run(self) -> None:
        with self.running() as process:
            assert process.wait(LIMIT_S) == 0, self.told

    @property
    def told(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


def test_a_driver_killed_again_and_again_is_resumed_and_writes_each_row_once(
    ray_session: None, rows: Place, out: Place, tmp_path: Path
) -> None:
    work = squares(rows, COUNT, Dangers(seconds_per_block=0.4), rows_per_block=ROWS_PER_BLOCK)
    driver, done, chance = Driver(tmp_path, partial(carry_out, work, out)), Ledger(out).done, random.Random(5)
    with Watch(out.local) as watch:
        for _ in range(2):
            driver.run_killed(partial(_has, done, committed(done) + 2), chance.uniform(0, 0.4))
            assert not (out / MANIFEST_NAME).exists()
        driver.run()
    assert written(out) == undisturbed()
    assert read_manifest(out) is not None
    watch.check()


# Slow: it starts a cluster of three nodes of its own, half a minute on a quiet machine with two cores.
@pytest.mark.slow
def test_a_lost_node_costs_nothing(rows: Place, out: Place, tmp_path: Path) -> None:
    temp_dir = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: a unix socket's path allows 100 characters
    work = squares(rows, COUNT, Dangers(seconds_per_block=0.4), rows_per_block=ROWS_PER_BLOCK)
    driver = Driver(tmp_path, partial(carry_out, work, out), where="nodes")
    settings = {"temp_dir": str(temp_dir), "out": str(out), "seed": 7}
    (tmp_path / "call.json").write_text(json.dumps(settings))
    try:
        with Watch(out.local) as watch:
            driver.run()
        assert (temp_dir / "killed").exists()
    finally:
        shutil.rmtree(temp_dir, ignore_errors=True)
    assert written(out) == undisturbed()
    watch.check()


class Web:
    """Pictures, some of them missing or broken, that take a moment each; counts who asks for what."""

    def __init__(self, count: int) -> None:
        self.asked: Counter[str] = Counter()
        self.paths = [f"/{number}.jpg" for number in range(count)]
        self.routes: dict[str, Any] = {path: partial(self._answer, number) for number, path in enumerate(self.paths)}

    def _answer(self, number: int, handler: BaseHTTPRequestHandler) -> None:
        self.asked[handler.path] += 1
        time.sleep(0.02)
        status, body = 200, jpeg(80 + number, 60)
        if number % 5 == 3:
            status, body = 404, b""
        elif number % 5 == 4:
            body = body[:-40]
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


CAPTIONS = ["a red star left of a blue ring", "two small green squares", "a striped yellow circle on a dark background"]


def test_the_real_steps_survive_their_driver_and_fetch_nothing_twice_that_was_written(
    ray_session: None, serve: Callable[[dict[str, Any]], str], eager_model: Path, tmp_path: Path
) -> None:
    count, rows_per_block = 32, 2
    web, label = Web(count), PseudoLabelConfig(batch_size=1, rows_per_block=rows_per_block)
    base = serve(web.routes)
    fetch = FetchConfig(timeout_s=20, max_attempts=1)
    config = reaching(base, DownloadConfig(fetch=fetch, image_size_px=96, max_side_px=200, blocks_per_actor=2))
    pairs = write_captions(tmp_path, [base + path for path in web.paths])
    out = Place.of(tmp_path / "labels")
    plan = LabelPlan(cfg=label, teacher=str(eager_model))
    driver = Driver(tmp_path, partial(pseudo_label, plan, collecting(config, pairs), out))
    done, chance = Ledger(out).done, random.Random(11)
    with Watch(out.local) as watch:
        driver.run_killed(partial(_has, done, 2), chance.uniform(0, 0.3))
        written_so_far, asked = done_keys(done), Counter(web.asked)
        driver.run()
    again = {web.paths[key] for key in written_so_far if web.asked[web.paths[key]] > asked[web.paths[key]]}
    assert written_so_far
    assert again == set()
    assert written(out) == labelled_directly(config, plan, pairs)
    watch.check()


def write_captions(folder: Path, urls: list[str]) -> Place:
    pairs = write_pairs(folder / "pairs.parquet", urls)
    table = pq.read_table(pairs.local)
    captions = pa.array([CAPTIONS[key % len(CAPTIONS)] for key in table["key"].to_pylist()])
    pq.write_table(table.set_column(2, "caption", captions).cast(schema.PAIRS), pairs.local)
    return pairs


def done_keys(done: Place) -> set[int]:
    kept = [place for place in done.files(".parquet") if not place.name.endswith(PENDING)]
    return {key for place in kept for key in pq.read_table(place.local)["key"].to_pylist()}


def labelled_directly(config: DownloadConfig, plan: LabelPlan, pairs: Place) -> Counter[Row]:
    """Call the steps as plain functions, without an engine."""
    name, sha256 = teacher_identity(plan.teacher)
    labeller = Labeller(plan.cfg, plan.teacher, {"teacher": name, "teacher_sha256": sha256, "run_id": ""})
    with Collector(config) as collector:
        return essence(labeller(collector(pq.read_table(pairs.local))).to_pylist())
