from pathlib import Path

import mlflow
import pytest

from pipeline.tracking import EXPERIMENT, Run, flatten, open_run, tracking_uri


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def info(run: Run) -> mlflow.entities.Run:
    return mlflow.MlflowClient(tracking_uri=run.uri).get_run(run.run_id)


def test_the_environment_names_the_store(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri(home) == f"sqlite:///{home / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(home) == "http://127.0.0.1:5000"


def test_a_run_records_its_configuration_and_ends_finished(home: Path) -> None:
    with open_run(home, "demo", "plain", {"optim": {"lr": 0.1}, "shots": (1, 3)}) as run:
        run.metrics({"loss": 2.0}, 1)
    found = info(run)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"optim.lr": "0.1", "shots": "[1, 3]"}
    assert found.data.metrics == {"loss": 2.0}


def test_a_failed_job_leaves_a_failed_run(home: Path) -> None:
    with pytest.raises(RuntimeError), open_run(home, "demo", "fails", {}) as run:
        raise RuntimeError("no")
    assert info(run).info.status == "FAILED"


def test_an_interrupted_job_continues_its_own_run(home: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(home, "demo", "again", {"a": 1}) as first:
        raise KeyboardInterrupt
    assert info(first).info.status == "KILLED"
    with open_run(home, "demo", "again", {"a": 1}) as second:
        pass
    assert second.run_id == first.run_id
    assert info(second).info.status == "FINISHED"


def test_a_finished_job_given_again_is_a_new_run(home: Path) -> None:
    with open_run(home, "demo", "twice", {}) as first:
        pass
    with open_run(home, "demo", "twice", {}) as second:
        pass
    assert first.run_id != second.run_id


def test_children_are_nested_and_found_again_by_key(home: Path) -> None:
    with open_run(home, "demo", "parent", {}) as run:
        child = run.child("teacher", "teacher", {"steps": 3})
        assert run.child("teacher", "teacher", {"steps": 3}).run_id == child.run_id
    assert info(child).data.tags["mlflow.parentRunId"] == run.run_id


def test_history_has_one_row_per_step_and_the_later_value_counts(home: Path) -> None:
    with open_run(home, "demo", "history", {}) as run:
        run.metrics({"loss": 3.0, "lr": 0.1}, 1)
        run.metrics({"loss": 2.0}, 2)
        run.metrics({"loss": 2.5}, 2)  # a resumed job repeats the steps after its checkpoint
    assert run.history(("loss", "lr")) == [
        {"step": 1.0, "loss": 3.0, "lr": 0.1},
        {"step": 2.0, "loss": 2.5},
    ]


def test_artifacts_lie_beside_the_store(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.md").write_text("hello")
    with open_run(home, "demo", "artifacts", {}) as run:
        run.artifact(tmp_path / "report.md")
    assert list(home.rglob("report.md"))
    assert not (tmp_path / "mlruns").exists()
    assert mlflow.MlflowClient(tracking_uri=run.uri).get_experiment_by_name(EXPERIMENT) is not None


def test_nested_names_are_joined_by_dots() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": []}) == {"a.b.c": 1, "d": "[]"}
