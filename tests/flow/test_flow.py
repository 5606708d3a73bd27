"""The whole way as a person walks it: killed in the middle, given again, and given once more when all is done."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from jobs.recipes import smoke
from pipeline.flow import TEACHER
from pipeline.pretrain import TrainingInputs, pretrain, read_record
from pipeline.row_index import SourceConfig
from pipeline.shards import read_manifest
from pipeline.tracking import open_run

pytestmark = [pytest.mark.flow, pytest.mark.ray, pytest.mark.timeout(900)]

Walk = tuple[Path, subprocess.CompletedProcess[str]]


def command(out: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "jobs.demo", "smoke", "--out", str(out), "--world.port", str(port)]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}


def walk(out: Path, port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, port), capture_output=True, text=True, check=False, env=environment())


def kill_at_the_first_checkpoint(out: Path, port: int) -> None:
    process = subprocess.Popen(command(out, port), env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 450
    while not list((out / TEACHER / "train").glob("checkpoint_*/model.safetensors")):
        assert process.poll() is None, "the demo ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint within seven minutes"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, free_port: int) -> Walk:
    """Kill the demo while its teacher trains, and give the same command again."""
    out = tmp_path_factory.mktemp("flow") / "out"
    kill_at_the_first_checkpoint(out, free_port)
    assert read_record(out / TEACHER) is None
    return out, walk(out, free_port)


def test_a_killed_demo_given_again_ends_well_and_says_where_the_results_are(walked: Walk) -> None:
    out, ended = walked
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert str(out / "report" / "report.html") in ended.stdout
    assert f"mlflow ui --backend-store-uri sqlite:///{out / 'mlflow.db'}" in ended.stdout


def test_a_resumed_teacher_is_the_one_an_unbroken_training_gives(
    walked: Walk, ray_session: None, tmp_path: Path
) -> None:
    out, _ = walked
    sources = tuple(SourceConfig(path=out / name) for name in ("objects365", "gold"))
    inputs = TrainingInputs(name=TEACHER, sources=sources, vocabulary=out / "vocab.txt")
    with open_run(tmp_path, "pretrain", "unbroken", {}) as run:
        unbroken = pretrain(smoke().teacher, inputs, tmp_path / TEACHER, run)
    resumed = read_record(out / TEACHER)
    assert resumed is not None
    assert resumed.final == pytest.approx(unbroken.final, rel=1e-6)


def test_every_stage_accounts_for_its_rows(walked: Walk) -> None:
    out, _ = walked
    manifests = {name: read_manifest(out / name) for name in ("objects365", "gold", "images", "labels")}
    for manifest in manifests.values():
        assert manifest is not None
        assert manifest.rows_in == manifest.rows_out + sum(manifest.rejects.values())
    pairs = (out / "world" / "web" / "pairs.tsv").read_text(encoding="utf-8").splitlines()
    assert manifests["images"].rows_in == manifests["labels"].rows_in == len(pairs) - 1  # type: ignore[union-attr]


def test_mlflow_holds_one_parent_and_a_run_per_training_and_trial(walked: Walk) -> None:
    out, _ = walked
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert [run.data.tags["glipv2.job"] for run in parents] == ["demo"]
    assert len(children) == len(runs) - 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    trials = {name: run for name, run in children.items() if name not in ("teacher", "student")}
    assert len(trials) == len(list((out / "trials").glob("*.json"))) == 2
    assert all({"ap", "ap50", "seconds"} <= run.data.metrics.keys() for run in trials.values())
    assert {"loss", "images_per_s"} <= children[TEACHER].data.metrics.keys()


def test_the_report_is_one_file_with_the_numbers_of_the_run(walked: Walk) -> None:
    page = (walked[0] / "report" / "report.html").read_text(encoding="utf-8")
    assert all(word in page for word in ("http_404", "teacher", "student", "LoneHearts"))
    assert 'src="http' not in page


def test_the_same_command_again_does_nothing_twice(walked: Walk, free_port: int) -> None:
    out, _ = walked

    def written() -> dict[Path, int]:
        # The list of pairs is read anew each time: it is what the download is compared by.
        return {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet") if p.name != "pairs.parquet"}

    before = written()
    ended = walk(out, free_port)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert written() == before


def test_a_taken_port_is_one_line_and_loses_nothing(walked: Walk, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = walk(tmp_path / "out", port)
    assert ended.returncode in (1, 2)
    assert str(port) in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
