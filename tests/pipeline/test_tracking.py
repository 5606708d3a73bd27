import contextlib
import json
from pathlib import Path

import mlflow
import pytest

from pipeline.failure import RunError
from pipeline.mlflow_client import AwayError, shown
from pipeline.tracking import COMMIT, EXPERIMENT, Input, Run, flatten, git_commit, open_run, tracking_uri


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


def test_submitted_code_is_named_by_the_commit_it_was_submitted_with(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMIT, "0123abc-dirty")
    with open_run(home, "demo", "submitted", {}) as run:
        pass
    assert info(run).data.tags["mlflow.source.git.commit"] == git_commit() == "0123abc-dirty"


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


def test_inputs_are_pinned_by_hash_and_not_doubled_when_a_run_is_gone_on_with(home: Path) -> None:
    labels = Input.of(home / "web" / "labels", "ab" * 32, "train")
    for end in (KeyboardInterrupt, None):
        with contextlib.suppress(KeyboardInterrupt), open_run(home, "pretrain", "inputs", {}) as run:
            run.inputs([labels, Input(name="vocab.txt", hash="cd" * 32, role="vocabulary")])
            if end is not None:
                raise end
    found = {given.dataset.name: given for given in info(run).inputs.dataset_inputs}
    assert found.keys() == {"web/labels", "vocab.txt"}
    assert len(info(run).inputs.dataset_inputs) == 2
    assert found["web/labels"].dataset.digest == "ab" * 16
    assert json.loads(found["web/labels"].dataset.source)["uri"] == str(home / "web" / "labels")
    assert found["web/labels"].tags[0].value == "train"


def test_a_run_recorded_afterwards_has_the_time_it_took(home: Path) -> None:
    with open_run(home, "sweep", "late", {}) as run:
        child = run.child("trial", "trial", {}, kind="trial", seconds=50.0)
        child.finish()
    found = info(child).info
    assert 50_000 <= found.end_time - found.start_time < 60_000


def test_runs_of_jobs_are_told_apart_by_their_output_and_their_kind(home: Path) -> None:
    with open_run(home, "sweep", "named", {}) as run:
        child = run.child("Fish", "Fish", {}, kind="trial")
    assert info(run).info.run_name == f"sweep {home.name}"
    assert [info(each).data.tags["glipv2.job"] for each in (run, child)] == ["sweep", "trial"]


def test_what_mlflow_refuses_is_no_outage_and_a_line(home: Path) -> None:
    with open_run(home, "demo", "refused", {}) as run, pytest.raises(RunError, match="not%allowed") as told:
        run.metrics({"not%allowed": 1.0})
    assert not isinstance(told.value, AwayError)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("uri", ["htp://host", "file:///nowhere/mlruns"])
def test_an_address_that_is_no_store_is_told_in_a_line(home: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RunError, match="see MLFLOW_TRACKING_URI"), open_run(home, "demo", "nowhere", {}):
        raise AssertionError("it was opened")


def test_a_quote_in_a_path_is_no_end_of_it(home: Path) -> None:
    with open_run(home / "bob's", "demo", "quoted", {}) as run:
        pass
    assert info(run).info.status == "FINISHED"


def test_a_password_in_an_address_is_never_shown() -> None:
    assert shown("http://me:s3cr3t@host:5000/x") == "http://…@host:5000/x"
    assert "s3cr3t" not in str(AwayError("http://me:s3cr3t@host", "told"))
