"""A PostgreSQL and a team's MLflow server of the tests' own, on loopback."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.ports import free_port
from tests.conftest import ROOT

PASSWORD = "s3cr3t-of-the-database"
NAME = "mlflow.test"
"""What the server is called by, beside localhost."""


def programs() -> Path:
    """Find PostgreSQL's server programs, which distributions keep off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and not shutil.which("initdb"):
        pytest.skip("PostgreSQL's server is not installed (Debian: postgresql)")
    return found[-1].parent if found else Path(str(shutil.which("initdb"))).parent


@contextmanager
def database() -> Iterator[dict[str, str]]:
    """Start a PostgreSQL, as another user for root; give the variables by which the server finds it."""
    user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
    who: dict[str, Any] = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    tools, port = programs(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    (folder / "password").write_text(PASSWORD)
    if user is not None:
        for path in (folder, folder / "password"):
            os.chown(path, user.pw_uid, user.pw_gid)
    data = str(folder / "data")
    asked = ["-U", "mlflow", "-A", "scram-sha-256", "--pwfile", str(folder / "password"), "--no-sync"]
    subprocess.run([str(tools / "initdb"), "-D", data, *asked], check=True, capture_output=True, cwd="/", **who)
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": folder, "fsync": "off"}
    flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    server = subprocess.Popen([str(tools / "postgres"), "-D", data, *flags], cwd="/", stderr=subprocess.DEVNULL, **who)
    address = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "mlflow", "PGPASSWORD": PASSWORD}
    make = [str(tools / "createdb"), "mlflow"]
    deadline = time.monotonic() + 60
    while subprocess.run(make, env={**os.environ, **address}, capture_output=True, check=False).returncode:
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield {"MLFLOW_BACKEND_STORE_URI": f"postgresql://mlflow@127.0.0.1:{port}/mlflow", "PGPASSWORD": PASSWORD}
    server.send_signal(signal.SIGINT)  # a fast shutdown
    server.wait(30)
    shutil.rmtree(folder, ignore_errors=True)


class Server:
    """The server as a team starts it; can be killed and started again."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.port, self._log = free_port(), log
        self.uri = f"http://127.0.0.1:{self.port}"
        self._environment = environment
        self.start()

    def start(self) -> None:
        flags = ["--artifacts", "s3://tests/mlflow", "--names", NAME, "--port", str(self.port), "--workers", "1"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cluster.mlflow_server", *flags],
                env={**os.environ, **self._environment},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 180
        while not self._answers():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.2)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def ask(self, path: str, **headers: str) -> int:
        """Post a search, as the pages do, and give the answer's status."""
        body = json.dumps({"max_results": 1}).encode()
        sent = {"Content-Type": "application/json", **{name.capitalize(): value for name, value in headers.items()}}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.uri + path, body, sent), timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
