"""The whole way as a person walks it: the command, the same command again, and a kill in the middle."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from pipeline.pretrain import read_record
from pipeline.shards import read_manifest
from pipeline.sweep import read_trials

pytestmark = [pytest.mark.flow, pytest.mark.ray, pytest.mark.timeout(900)]


def command(out: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "jobs.demo", "smoke", "--out", str(out), "--world.port", str(port)]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, free_port: int) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("flow") / "out"
    ended = subprocess.run(command(out, free_port), capture_output=True, text=True, check=False, env=environment())
    return out, ended


def test_the_whole_way_ends_well_and_says_where_the_results_are(
    walked: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, ended = walked
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert str(out / "report" / "report.html") in ended.stdout
    assert f"mlflow ui --backend-store-uri sqlite:///{out / 'mlflow.db'}" in ended.stdout


def test_every_stage_accounts_for_its_rows(walked: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = walked
    manifests = {name: read_manifest(out / name) for name in ("objects365", "gold", "images", "labels")}
    for manifest in manifests.values():
        assert manifest is not None
        assert manifest.rows_in == manifest.rows_out + sum(manifest.rejects.values())
    pairs = (out / "world" / "web" / "pairs.tsv").read_text(encoding="utf-8").splitlines()
    assert manifests["images"].rows_in == manifests["labels"].rows_in == len(pairs) - 1  # type: ignore[union-attr]


def test_mlflow_holds_one_parent_and_a_run_per_training_and_trial(
    walked: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, _ = walked
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert [run.info.run_name for run in parents] == ["demo"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    trials = {name: run for name, run in children.items() if name not in ("teacher", "student")}
    assert len(trials) == len(read_trials(out / "sweep")) == 2
    assert all({"ap", "ap50", "seconds"} <= run.data.metrics.keys() for run in trials.values())
    assert {"loss", "images_per_s"} <= children["teacher"].data.metrics.keys()


def test_the_report_is_one_file_with_the_numbers_of_the_run(
    walked: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, _ = walked
    page = (out / "report" / "report.html").read_text(encoding="utf-8")
    assert "http_404" in page
    assert "teacher" in page
    assert "student" in page
    assert 'src="http' not in page


def test_the_same_command_again_does_nothing_twice(
    walked: tuple[Path, subprocess.CompletedProcess[str]], free_port: int
) -> None:
    out, _ = walked
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    ended = subprocess.run(command(out, free_port), capture_output=True, text=True, check=False, env=environment())
    assert ended.returncode == 0, ended.stderr[-3000:]
    pairs = out / "pairs.parquet"
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert {p: t for p, t in before.items() if p != pairs} == {p: t for p, t in after.items() if p != pairs}


def test_a_killed_demo_given_again_ends_with_the_same_teacher(
    walked: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, free_port: int
) -> None:
    whole = read_record(walked[0] / "teacher")
    assert whole is not None
    out = tmp_path / "out"
    with killed_when(out / "teacher" / "train", command(out, free_port)):
        pass
    assert read_record(out / "teacher") is None
    ended = subprocess.run(command(out, free_port), capture_output=True, text=True, check=False, env=environment())
    assert ended.returncode == 0, ended.stderr[-3000:]
    again = read_record(out / "teacher")
    assert again is not None
    assert again.final == pytest.approx(whole.final, rel=1e-6)


class killed_when:  # noqa: N801 - reads as a sentence where it is used
    """Run a command and SIGKILL it, with all its children, once a checkpoint lies under a folder."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.folder, self.arguments = folder, arguments

    def __enter__(self) -> None:
        process = subprocess.Popen(self.arguments, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 300
        while not list(self.folder.glob("checkpoint_*/model.safetensors")):
            assert process.poll() is None, "the demo ended before it could be killed"
            assert time.monotonic() < deadline, "no checkpoint within five minutes"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def __exit__(self, *_: object) -> None:
        """Nothing is left to do."""


def test_a_taken_port_is_one_line_and_loses_nothing(
    walked: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            command(tmp_path / "out", port), capture_output=True, text=True, check=False, env=environment()
        )
    assert ended.returncode in (1, 2)
    assert str(port) in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
