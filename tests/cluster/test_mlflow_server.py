"""A team's MLflow server with a real PostgreSQL and an S3 store: jobs log to it, and outlive its absence."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import mlflow
import pytest

from cluster.mlflow_server import check, command, parse
from glipv2.optim import OptimConfig
from jobs.recipes import nano_training, photos
from pipeline.captions import label_captions
from pipeline.chain import LineageJob, lineage
from pipeline.flow import PretrainJob, SweepJob, pretrain_alone, reaching, sweep_alone
from pipeline.ingest import IngestConfig
from pipeline.miniature.server import serve
from pipeline.miniature.world import World
from pipeline.mlflow_client import AwayError
from pipeline.pretrain import PretrainConfig
from pipeline.shards import read_manifest
from pipeline.sweep import SweepConfig
from pipeline.tracking import EXPERIMENT, Input, Run, open_run
from pipeline.trial import TrialConfig
from tests.cluster.mlflow_team import NAME, PASSWORD, Server, database
from tests.conftest import S3_ENVIRONMENT
from tests.pipeline.trainings import model


@pytest.fixture(scope="module")
def server(s3: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("psycopg")
    store = {"MLFLOW_S3_ENDPOINT_URL": S3_ENVIRONMENT["AWS_ENDPOINT_URL_S3"], **S3_ENVIRONMENT}
    with database() as variables:
        started = Server({**variables, **store}, tmp_path_factory.mktemp("server") / "log")
        yield started
        started.kill()


@pytest.fixture
def job(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Be a job on a worker: it knows the server's address, has no credentials of S3, and gives up within seconds."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for name in S3_ENVIRONMENT:
        monkeypatch.delenv(name)
    yield server
    if server.process.poll() is not None:
        server.start()


def find(server: Server, run: Run) -> Any:
    return mlflow.MlflowClient(tracking_uri=server.uri).get_run(run.run_id)


def test_runs_lie_in_the_database_and_artifacts_in_s3_by_way_of_the_server(job: Server, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("# Report")
    with open_run(tmp_path, "pretrain", "one", {"optim": {"lr": 0.1}}) as run:
        run.inputs([Input(name="labels", hash="ab" * 32, place="s3://bucket/labels", role="train")])
        run.metrics({"loss": 2.0}, 1)
        run.artifact(tmp_path / "report.md")
    found = find(job, run)
    assert (found.data.params, found.data.metrics) == ({"optim.lr": "0.1"}, {"loss": 2.0})
    assert [one.dataset.name for one in found.inputs.dataset_inputs] == ["labels"]
    client = boto3.client(
        "s3", endpoint_url=S3_ENVIRONMENT["AWS_ENDPOINT_URL_S3"], aws_access_key_id="x", aws_secret_access_key="x"
    )
    stored = client.list_objects_v2(Bucket="tests", Prefix="mlflow/")["Contents"]
    assert [one["Key"] for one in stored if one["Key"].endswith(f"{run.run_id}/artifacts/report.md")]
    assert not list(tmp_path.glob("mlflow.db"))


def test_the_password_is_neither_in_the_process_list_nor_in_the_log(job: Server) -> None:
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert any(b"mlflow" in line and str(job.port).encode() in line for line in lines)
    assert not any(PASSWORD.encode() in line for line in lines)
    assert PASSWORD not in job.said()


def test_it_answers_to_its_name_and_its_pages_and_to_no_stranger(job: Server) -> None:
    search = "/api/2.0/mlflow/experiments/search"
    named = f"{NAME}:{job.port}"
    assert job.ask(search, host=named) == 200
    assert job.ask(search, host=named, origin=f"http://{named}") == 200
    assert job.ask(search, host=named, origin="http://evil.test") == 403
    assert job.ask(search, host="evil.test") == 403


def test_a_server_that_goes_and_comes_back_costs_a_training_no_step_and_no_number(
    job: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    steps = range(1, 9)
    with open_run(tmp_path, "pretrain", "outage", {}) as run:
        begun = time.monotonic()
        for step in steps:
            if step == 3:
                job.kill()
            run.metrics({"loss": 1.0 / step}, step)
        assert time.monotonic() - begun < 30, "the steps waited for the server"
        assert run.settle(0.0) > 0
        back = threading.Thread(target=job.start)
        back.start()
        run.tags({"weights_sha256": "abc"})  # a job cannot do without, and so waits
        back.join()
    client = mlflow.MlflowClient(tracking_uri=job.uri)
    assert sorted(point.step for point in client.get_metric_history(run.run_id, "loss")) == list(steps)
    assert find(job, run).data.tags["weights_sha256"] == "abc"
    assert find(job, run).info.status == "FINISHED"


def test_a_job_that_finds_no_server_ends_with_a_line_and_the_same_command_goes_on(job: Server, tmp_path: Path) -> None:
    runs = []

    def work() -> None:
        with open_run(tmp_path, "x", "k", {}) as run:
            runs.append(run)
            (tmp_path / "labels").write_text("made")
            job.kill()
            run.tags({"content_hash.labels": "abc"})

    with pytest.raises(AwayError, match="give the same command again") as ended:
        work()
    assert "\n" not in str(ended.value)
    assert (tmp_path / "labels").read_text() == "made"
    job.start()
    with open_run(tmp_path, "x", "k", {}) as again:
        pass
    assert [again] == runs
    assert find(job, again).info.status == "FINISHED"


def small_training(cfg: PretrainConfig) -> PretrainConfig:
    start = replace(cfg, model=model(), ingest=IngestConfig(batch_size=2), optim=OptimConfig(warmup_steps=0))
    return replace(start, num_steps=4, num_workers=1, log_every=1)


@pytest.mark.ray
def test_a_list_its_labels_a_model_and_a_sweep_are_one_chain_though_the_server_was_away(
    job: Server, ray_session: None, world: World, eager_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    labelling, few = photos(), tmp_path / "few.tsv"
    few.write_text("".join(world.web_pairs.read_text(encoding="utf-8").splitlines(keepends=True)[:9]), encoding="utf-8")
    with serve(world, world.config.port):
        label_captions(
            replace(
                labelling,
                pairs=str(few),
                teacher=str(eager_model),
                out=str(tmp_path / "web"),
                download=reaching(world, replace(labelling.download, image_size_px=64)),
                label=replace(labelling.label, num_teachers=1),
            )
        )
    labels = tmp_path / "web" / "labels"
    out = tmp_path / "trained"
    training = PretrainJob(
        sources=(str(labels),), vocabulary=eager_model / "vocab.txt", out=out, pretrain=small_training(nano_training())
    )
    away = threading.Thread(target=leave_in_the_middle, args=(job,))
    away.start()
    pretrain_alone(training)
    away.join()
    trial = TrialConfig(strict=False)
    cfg = SweepConfig(shots=(1,), seeds=(3,), max_epochs=1, trial=trial)
    given = {"checkpoint": out / "model" / "model", "data": world.odinw, "datasets": ("LoneHearts",)}
    sweep_alone(SweepJob(**given, out=tmp_path / "swept", sweep=cfg))
    told = lineage(LineageJob(run=str(tmp_path / "swept")))
    upward, downward = told.split("what was made of it")
    for link in ("sweep swept", "pretrain trained", "web/labels", "made by pseudo_label", str(few)):
        assert link in upward
    assert "2 runs inside: 2 FINISHED" in downward
    client = mlflow.MlflowClient(tracking_uri=job.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    [trained] = client.search_runs(
        [experiment.experiment_id], "tags.`glipv2.job` = 'pretrain' and params.name = 'model'"
    )
    assert [point.step for point in client.get_metric_history(trained.info.run_id, "loss")] == [1, 2, 3, 4]
    manifest = read_manifest(labels)
    assert manifest is not None
    assert manifest.rows_in == manifest.rows_out + sum(manifest.rejects.values())


def leave_in_the_middle(server: Server) -> None:
    """Kill the server when the first step of a training is told, and bring it back when others had to wait."""
    client = mlflow.MlflowClient(tracking_uri=server.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    deadline = time.monotonic() + 120
    while not client.search_runs([experiment.experiment_id], "params.name = 'model' and metrics.loss > 0"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    server.kill()
    time.sleep(3.0)
    server.start()


def test_artifacts_of_new_experiments_go_by_way_of_the_server(job: Server) -> None:
    experiment = mlflow.MlflowClient(tracking_uri=job.uri).get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    assert experiment.artifact_location.startswith("mlflow-artifacts:")


POSTGRES = {"MLFLOW_BACKEND_STORE_URI": "postgresql://mlflow@db/mlflow"}


@pytest.mark.parametrize(
    ("given", "environ", "said"),
    [
        (["--artifacts", "s3://b/m"], {}, "MLFLOW_BACKEND_STORE_URI is not set"),
        (["--artifacts", "s3://b/m"], {"MLFLOW_BACKEND_STORE_URI": f"mysql://m:{PASSWORD}@db"}, "another database"),
        (["--artifacts", "/tmp/m"], POSTGRES, "give s3://bucket/path"),
        (["--artifacts", "s3://b/m", "--names", "http://mlflow.test"], POSTGRES, "without scheme and port"),
    ],
)
def test_what_a_team_s_server_lacks_is_said_in_a_line(given: list[str], environ: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        check(parse(given), environ)
    assert PASSWORD not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_a_name_mlflow_s_own_rules_hold() -> None:
    assert "--allowed-hosts" not in command(parse(["--artifacts", "s3://b/m"]))
