"""The local cluster and the submit helper, used as a person uses them: two shells, a token, Ctrl-C.

One head serves all tests of this file; they run in the order in which they stand.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import pytest
from PIL import Image

from cluster import local, local_head
from cluster.local_head import own_processes
from cluster.package import commit_of
from cluster.ports import free_port
from pipeline.shards import read_manifest
from tests.conftest import RAY_ENVIRONMENT, ROOT, Route

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(420)]

NUM_IMAGES, NUM_DEAD = 10, 2
SECRET = "not-for-the-job-server"


@dataclass(frozen=True)
class Cluster:
    """``make cluster`` in a shell of its own, and what another shell needs to use it."""

    process: subprocess.Popen[str]
    environment: dict[str, str]
    lines: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.environment["RAY_API_SERVER_ADDRESS"]

    @property
    def folder(self) -> Path:
        return Path(self.environment["RAY_AUTH_TOKEN_PATH"]).parent

    def wait_for_line(self, pattern: str, seconds: float = 180) -> str:
        def look() -> str | None:
            assert self.process.poll() is None, f"the cluster ended: {self.lines}"
            return next((line for line in self.lines if re.search(pattern, line)), None)

        return wait_for(look, seconds, f"{pattern} in {self.lines}")

    def ask(self, path: str, body: object = None) -> Any:
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8")
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def helper(self, *given: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cluster.submit", *given]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env={**self.environment, **environment}, cwd="/", **pipes)


def wait_for(look: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    port, dashboard, agent = (str(free_port()) for _ in range(3))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    environment = {**inherited, **{k: v for k, v in RAY_ENVIRONMENT.items() if k != "RAY_AUTH_MODE"}}
    command = [sys.executable, "-m", "cluster.local", "--port", port, "--dashboard-port", dashboard]
    command += ["--agent-port", agent, "--idle-s", "10", "--max-nodes", "2"]
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    shell = Cluster(process, environment)
    threading.Thread(target=lambda: shell.lines.extend(iter(process.stdout.readline, "")), daemon=True).start()
    try:
        shell.wait_for_line("^Ctrl-C here ends the cluster")
        exported = shell.wait_for_line("^  export ").split()[1:]
        environment.update(variable.split("=", 1) for variable in exported)
        yield shell
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(90)


@pytest.fixture(scope="module")
def pairs(serve: Callable[[dict[str, Route]], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """List some pictures of a loopback server, and some that are not there."""
    folder = tmp_path_factory.mktemp("web")
    routes: dict[str, Route] = {}
    for number in range(NUM_IMAGES):
        file = folder / f"{number}.jpg"
        Image.new("RGB", (96, 64), (20 * number, 90, 60)).save(file)
        routes[f"/{number}.jpg"] = file.read_bytes()
    base = serve(routes)
    rows = [f"{base}/{number}.jpg\ta red ring and a blue star {number}" for number in range(NUM_IMAGES + NUM_DEAD)]
    (folder / "pairs.tsv").write_text("\n".join(["url\tcaption", *rows]) + "\n", encoding="utf-8")
    return folder / "pairs.tsv"


def labelling(pairs: Path, teacher: Path, out: Path) -> list[str]:
    host = pairs.read_text(encoding="utf-8").split("//")[1].split("/")[0]
    given = {"--pairs": pairs, "--teacher": teacher, "--out": out, "--label.num-teachers": 1}
    given |= {"--download.node-resource": "download", "--label.node-resource": "label"}
    return ["pseudo_label", "photos", *(str(word) for pair in given.items() for word in pair), *hosts(host)]


def hosts(host: str) -> list[str]:
    return ["--download.fetch.allow-hosts", host]


def test_taken_ports_are_refused_in_a_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(ValueError, match=rf"^--dashboard-port {port} is taken .*; give another$"):
            local.check_ports(local.parse(["--dashboard-port", port]))


@pytest.mark.parametrize("flags", [("--port", "99999"), ("--max-nodes", "0"), ("--idle-s", "-1")])
def test_numbers_that_cannot_be_are_refused_in_a_line(flags: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=rf"{flags[0]}( is)? {flags[1]}; give|{flags[0]} is {flags[1]}"):
        local.check_ports(local.parse(flags))


def test_a_token_of_the_shell_does_not_replace_the_clusters_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    given = local_head.head_environment(local.parse([]), tmp_path)
    assert "RAY_AUTH_TOKEN" not in given
    assert given["RAY_AUTH_TOKEN_PATH"] == str(local_head.token_file(tmp_path))


@pytest.mark.parametrize(
    ("token", "complaint"),
    [("", "wants a token, and none was sent (RAY_AUTH_MODE is disabled"), ("wrong" * 8, "refuses the token of ")],
)
def test_without_the_right_token_one_is_told_so_in_a_line(
    cluster: Cluster, tmp_path: Path, token: str, complaint: str
) -> None:
    (tmp_path / "token").write_text(token, encoding="utf-8")
    auth = {"RAY_AUTH_MODE": "token" if token else "disabled", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    helper = cluster.helper("--follow", "any", **auth)
    _, said = helper.communicate()
    assert helper.returncode == 1
    assert complaint in said
    assert said.count("\n") == 1
    assert token not in said or not token


def test_an_unknown_job_cannot_be_followed(cluster: Cluster) -> None:
    helper = cluster.helper("--follow", "no-such-job")
    _, said = helper.communicate()
    assert helper.returncode == 1
    assert "knows no job no-such-job" in said


def test_ctrl_c_leaves_the_job_running_and_stops_it_only_when_asked(cluster: Cluster) -> None:
    counting = "import time\nfor n in range(600): print('number', n, flush=True); time.sleep(0.2)"
    cluster.ask("/api/jobs/", {"entrypoint": f'python -c "{counting}"', "submission_id": "counting"})
    first = cluster.helper("--follow", "counting")
    for line in first.stdout:
        if line.startswith("number 5"):
            break
    first.send_signal(signal.SIGINT)
    _, said = first.communicate()
    assert first.returncode == 130
    assert f"stop it: ray job stop --address {cluster.address} counting" in said
    assert cluster.ask("/api/jobs/counting")["status"] == "RUNNING"

    second = cluster.helper("--stop-on-interrupt", "--follow", "counting")
    assert any(line.startswith("number 0") for line in second.stdout)
    second.send_signal(signal.SIGINT)
    _, said = second.communicate()
    assert second.returncode == 130
    assert "counting ended: STOPPED" in said
    assert cluster.ask("/api/jobs/counting")["status"] == "STOPPED"


def test_nodes_come_for_a_labelling_job_and_go_when_it_is_done(
    cluster: Cluster, pairs: Path, eager_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = labelling(pairs, eager_model, out)
    helper = cluster.helper("--dirty", "--id", "labelling", *job, AWS_SECRET_ACCESS_KEY=SECRET)
    printed, said = helper.communicate()
    assert helper.returncode == 0, printed[-3000:] + said[-3000:]
    assert any("nodes: 1 download, 1 label" in line for line in cluster.lines), cluster.lines

    manifest = read_manifest(out / "labels")
    assert manifest is not None
    assert manifest.rows_in == NUM_IMAGES + NUM_DEAD == manifest.rows_out + sum(manifest.rejects.values())
    assert sum(n for reason, n in manifest.rejects.items() if "failed_to_download" in reason) == NUM_DEAD
    run = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}").get_run(manifest.run_id)
    commit = commit_of(ROOT, allow_dirty=True)
    assert run.data.tags["mlflow.source.git.commit"] == commit

    about = cluster.ask("/api/jobs/labelling")
    named = {"job": "pseudo_label", "recipe": "photos", "git_commit": commit}
    assert {name: about["metadata"].get(name) for name in named} == named
    assert re.search("not sent, as whoever reaches the job server could read them: .*AWS_SECRET_ACCESS_KEY", said)
    logs = [file for file in cluster.folder.rglob("*") if file.is_file() and file.suffix in (".log", ".out", ".err")]
    assert SECRET not in json.dumps(about) + printed + said
    assert not [file for file in logs if SECRET.encode() in file.read_bytes()]

    # The same output, begun with another threshold: a misuse that only the cluster can see. Its exit code comes back.
    helper = cluster.helper("--dirty", *job, "--label.min-score", "0.9")
    _, said = helper.communicate()
    assert helper.returncode == 2, said[-3000:]
    wait_for(lambda: cluster.lines[-1].endswith("nodes: only the head\n"), 120, "the nodes never went")


def test_ctrl_c_takes_the_cluster_down_with_everything_it_started(cluster: Cluster) -> None:
    assert own_processes(cluster.folder)
    cluster.process.send_signal(signal.SIGINT)
    assert cluster.process.wait(90) == 0
    assert not own_processes(cluster.folder)
    assert not cluster.folder.exists()
    wait_for(lambda: cluster.lines[-1] == "the cluster and its nodes are gone\n", 10, "its last word")
