"""Following a job, with a job server that is only pretended: what is shown, and what comes of interruptions."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum

import pytest
from ray.exceptions import AuthenticationError

from cluster import follow
from cluster.follow import Follower
from pipeline.failure import RunError

ADDRESS = "http://head:8265"


class Status(Enum):
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    def is_terminal(self) -> bool:
        return self is not Status.RUNNING


@dataclass
class Info:
    status: Status
    driver_exit_code: int | None = None
    message: str = ""


@dataclass
class Server:
    """Answers each request for the log with the next of ``logs``, and for the job with the next of ``answers``."""

    logs: list[list[str | BaseException]]
    answers: list[Info]
    stopped: list[str] = field(default_factory=list)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for part in self.logs.pop(0):
            if isinstance(part, BaseException):
                raise part
            yield part

    def get_job_info(self, job: str) -> Info:
        return self.answers.pop(0)

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_S", 0)


def run(server: Server, stop_on_interrupt: bool = False) -> int:
    return Follower(server, ADDRESS, "job").run(stop_on_interrupt)


def test_the_log_is_shown_and_the_exit_code_is_the_drivers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Server([["one\n", "two\n"]], [Info(Status.FAILED, 2)])) == 2
    shown = capsys.readouterr()
    assert shown.out == "one\ntwo\n"
    assert shown.err == "job ended: FAILED, exit code 2\n"


def test_a_connection_that_breaks_is_made_again_and_nothing_is_shown_twice(capsys: pytest.CaptureFixture[str]) -> None:
    logs = [["one\ntw", ConnectionError("gone")], ["one\n", "two\nthr"], ["one\ntwo\n", "three\n"]]
    assert run(Server(logs, [Info(Status.RUNNING), Info(Status.SUCCEEDED, 0)])) == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_a_job_that_never_began_says_why_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Server([[]], [Info(Status.FAILED, None, "runtime_env setup failed:\n  no disk")])) == 1
    assert capsys.readouterr().err == "job ended: FAILED, exit code 1: runtime_env setup failed: no disk\n"


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server([["one\n", KeyboardInterrupt()]], [])
    assert run(server) == 130
    assert server.stopped == []
    said = capsys.readouterr().err
    assert f"python -m cluster.submit --address {ADDRESS} --follow job" in said
    assert f"ray job stop --address {ADDRESS} job" in said


def test_ctrl_c_stops_the_job_when_asked_and_shows_its_last_words(capsys: pytest.CaptureFixture[str]) -> None:
    logs = [["one\n", KeyboardInterrupt()], ["one\n", "closed\n"]]
    server = Server(logs, [Info(Status.STOPPED)])
    assert run(server, stop_on_interrupt=True) == 130
    assert server.stopped == ["job"]
    assert capsys.readouterr().out == "one\nclosed\n"


def test_a_head_that_is_gone_when_the_job_is_to_stop_is_told_in_a_line() -> None:
    class Gone(Server):
        def stop_job(self, job: str) -> None:
            raise ConnectionError("refused")

    with pytest.raises(RunError, match=r"job was not stopped \(refused\); stop it: ray job stop"):
        run(Gone([[KeyboardInterrupt()]], []), stop_on_interrupt=True)


def test_a_head_that_wants_another_token_meanwhile_is_told_in_a_line() -> None:
    with pytest.raises(RunError, match="refuses the token"):
        run(Server([[AuthenticationError("authentication failed")]], []))


def test_a_second_ctrl_c_does_not_wait_for_the_job_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server([[KeyboardInterrupt()], [KeyboardInterrupt()]], [])
    assert run(server, stop_on_interrupt=True) == 130
    assert "job goes on" in capsys.readouterr().err


def test_a_head_that_stays_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "PATIENCE_S", 0)
    with pytest.raises(RunError, match=r"no word from http://head:8265 for 0 s; follow it: .* --follow job$"):
        run(Server([[ConnectionError("gone")]], []))
