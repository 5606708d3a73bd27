"""The caption engine as a submitted job: ``ray job submit --working-dir . -- python -m jobs.pseudo_label …``."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from cluster.ports import free_port
from pipeline.shards import read_manifest
from tests.conftest import RAY_ENVIRONMENT, ROOT

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(400)]

BIN = Path(sys.executable).parent
NUM_IMAGES = 12


@dataclass(frozen=True)
class Head:
    """A head node of its own, as a cluster's; its jobs run the code that is submitted with them."""

    dashboard: str
    environment: dict[str, str]

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "ray"), "job", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment, cwd=ROOT)

    def submit(self, job: str, *entry: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        given = ["--address", self.dashboard, "--submission-id", job, "--working-dir", ".", *options]
        return self.ray("submit", *given, "--", "python", "-m", "jobs.pseudo_label", *entry)

    def about(self, job: str) -> dict[str, object]:
        with urllib.request.urlopen(f"{self.dashboard}/api/jobs/{job}") as answer:
            found: dict[str, object] = json.load(answer)
        return found


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    port, dashboard, agent, client = (free_port() for _ in range(4))
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **RAY_ENVIRONMENT, "PATH": path, "RAY_JOB_STOP_WAIT_TIME_S": "20"}
    environment.pop("RAY_ADDRESS", None)
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=6", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", "--dashboard-host=127.0.0.1"]
    command += [
        f"--ray-client-server-port={client}",
        f"--temp-dir={folder}",
        f"--object-store-memory={200 << 20}",
        "--node-ip-address=127.0.0.1",
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(f"{address}/api/jobs/", process)
        yield Head(address, environment)
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "the head ended by itself"
        try:
            urllib.request.urlopen(address).close()
        except OSError:
            assert time.monotonic() < deadline, "the head's job server never answered"
            time.sleep(0.2)
        else:
            return


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        Image.new("RGB", (96, 64), (20 * number, 90, 60)).save(folder / f"{number:03d}.jpg")
        (folder / f"{number:03d}.txt").write_text(f"a red ring and a blue star number {number}", encoding="utf-8")
    return folder


def flags(images: Path, teacher: Path, out: Path) -> list[str]:
    given = {"--images": images, "--teacher": teacher, "--out": out, "--label.num-teachers": 1}
    return ["photos", *(str(word) for pair in given.items() for word in pair)]


def test_a_misused_job_says_so_in_its_log_and_exit_code(head: Head, tmp_path: Path) -> None:
    ended = head.submit("misused", "photos", "--out", str(tmp_path), "--label.min-scor", "0.3")
    assert ended.returncode == 1  # all that `ray job submit` tells
    assert "--label.min-score" in ended.stdout
    assert head.about("misused")["driver_exit_code"] == 2


def test_a_stopped_job_is_gone_on_with_by_the_next_which_ends_with_zero(
    head: Head, images: Path, eager_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    entry = flags(images, eager_model, out)
    head.submit("stopped", *entry, options=("--no-wait",))
    deadline = time.monotonic() + 120
    while not (out / "labels.ledger" / "writer.json").exists():
        assert time.monotonic() < deadline, "the job never began to write"
        time.sleep(0.05)
    head.ray("stop", "--address", head.dashboard, "stopped")
    assert head.about("stopped")["status"] == "STOPPED"
    assert read_manifest(out / "labels") is None
    ended = head.submit("again", *entry)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert str(out / "report" / "report.html") in ended.stdout
    manifest = read_manifest(out / "labels")
    assert manifest is not None
    assert manifest.rows_in == NUM_IMAGES
