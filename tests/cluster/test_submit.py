"""The submit helper as far as it goes without a cluster."""

import socket
from datetime import UTC, datetime

import pytest

from cluster import submit
from cluster.follow import exit_code


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_ids_tell_job_recipe_and_time() -> None:
    now = datetime(2026, 11, 28, 21, 5, 9, tzinfo=UTC)
    assert submit.job_id("pseudo_label", "photos", now) == "pseudo_label-photos-20261128T210509Z"
    assert submit.job_id("predict", submit.recipe_of(["/abs/cat.jpg"]), now) == "predict-20261128T210509Z"


def test_flags_before_the_job_are_ours_and_those_after_it_the_jobs() -> None:
    options = submit.parse(
        ["--dirty", "--resource", "label=0.5", "pretrain", "nano", "--dirty", "--address", "x", "--", "y"]
    )
    assert options.dirty
    assert options.resource == [("label", 0.5)]
    assert options.job == "pretrain"
    assert options.arguments == ["nano", "--dirty", "--address", "x", "--", "y"]


def test_the_address_is_that_of_the_environment_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(submit.ADDRESS_VARIABLE, raising=False)
    assert submit.parse(["demo"]).address == "http://127.0.0.1:8265"
    monkeypatch.setenv(submit.ADDRESS_VARIABLE, "http://head:1/")
    assert submit.parse(["demo"]).address == "http://head:1"
    assert submit.parse(["--address", "other:2", "demo"]).address == "http://other:2"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ([], "no job given; allowed: ablate, "),
        (["pseudolabel", "photos"], "unknown job 'pseudolabel'; allowed: ablate, "),
        (["--dirt", "x", "--adress", "demo"], "unknown job 'x'"),
        (["--cpus", "many", "demo"], "argument --cpus: invalid float value: 'many'"),
        (["--resource", "label", "demo"], "argument --resource"),
    ],
)
def test_a_misuse_of_the_helper_is_one_line_and_two(
    capsys: pytest.CaptureFixture[str], given: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        submit.main(given)
    assert stopped.value.code == 2
    line = said(capsys)
    assert complaint in line
    assert line.count("\n") == 1


def test_where_no_head_answers_that_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # taken, but nobody listens
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        assert submit.main(["--address", address, "--follow", "some-job"]) == 1
    line = said(capsys)
    assert line.startswith(f"python -m cluster.submit: no head answers at {address} (")
    assert line.count("\n") == 1


def test_another_kind_of_address_is_a_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["--address", "ray://head:10001", "--follow", "some-job"]) == 2
    assert "give the job server's, http://HOST:8265" in said(capsys)


def test_a_misused_job_is_told_before_anything_is_sent(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["pseudo_label", "photos", "--label.min-scor", "0.3"]
    # Nothing listens at the address: had it been tried, the exit code would be 1.
    assert submit.main(["--dirty", "--address", "http://127.0.0.1:9", *arguments]) == 2
    assert "--label.min-score" in capfd.readouterr().err


def test_help_after_the_job_is_the_jobs_and_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(submit, "run_here", lambda job, arguments: asked.append((job, arguments)) or 0)
    assert submit.main(["pseudo_label", "photos", "--help"]) == 0
    assert asked == [("pseudo_label", ["photos", "--help"])]


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 130, 130),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 130),
    ],
)
def test_the_exit_code_is_what_a_shell_would_have_seen(status: str, driver_exit_code: int | None, code: int) -> None:
    assert exit_code(status, driver_exit_code) == code
