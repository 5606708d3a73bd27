"""The head of the local cluster as a child process: its command, its environment, and its end with all it started."""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from cluster.local_nodes import HEAD_ID, OBJECT_STORE_BYTES, autoscaling_config
from cluster.ports import free_port
from pipeline.failure import RunError
from pipeline.session import ENVIRONMENT

HOST = "127.0.0.1"
MARK = "GLIPV2_LOCAL_CLUSTER"
"""Variable that every process of the cluster inherits; its value is the cluster's folder."""
START_S = 180
STOP_S = 30


@contextlib.contextmanager
def running(options: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start a head in a folder of its own, and leave nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="glip-", dir="/tmp"))  # short: a socket's path has some 100 characters
    try:
        config = folder / "autoscaler.json"
        config.write_text(json.dumps(autoscaling_config(f"{HOST}:{options.port}", options.max_nodes, options.idle_s)))
        if not options.no_token:
            token_file(folder).touch(mode=0o600)
            token_file(folder).write_text(secrets.token_hex(32))
        with (folder / "head.log").open("wb") as log:
            process = subprocess.Popen(
                head_command(options, folder, config),
                env=head_environment(options, folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours: the head's parts must not go down in any order
            )
        try:
            yield process, folder
        finally:
            take_down(process, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def head_command(options: argparse.Namespace, folder: Path, config: Path) -> list[str]:
    """Tell how the head is started: without CPUs, as every head of ours."""
    return [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0"),
        *(f"--autoscaling-config={config}", f"--temp-dir={folder}", f"--node-ip-address={HOST}"),
        *(f"--port={options.port}", f"--dashboard-port={options.dashboard_port}", f"--dashboard-host={HOST}"),
        *(f"--dashboard-agent-listen-port={options.agent_port}", "--min-worker-port=0", "--max-worker-port=0"),
        *(
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--ray-client-server-port={free_port(HOST)}",  # which nobody here uses and which cannot be left out
            "--disable-usage-stats",
        ),
    ]


def head_environment(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Give the variables of the head, which its nodes, workers and jobs inherit: also your credentials, if set here."""
    # A token given there counts more for Ray than the file of ours.
    others = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN")
    inherited = {name: value for name, value in os.environ.items() if name not in others}
    auth = {"RAY_AUTH_MODE": "disabled"}
    if not options.no_token:
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file(folder))}
    return {
        **inherited,
        **ENVIRONMENT,
        **auth,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # jobs run `python`
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",  # a stopped job closes its runs; the default kills it after 3 s
        MARK: str(folder),
    }


def token_file(folder: Path) -> Path:
    """Name the file of the cluster's token."""
    return folder / "token"


def ask(options: argparse.Namespace, folder: Path, path: str) -> Any:
    """Ask the dashboard something; None while it does not answer."""
    request = urllib.request.Request(f"http://{HOST}:{options.dashboard_port}{path}")
    if not options.no_token:
        request.add_header("Authorization", f"Bearer {token_file(folder).read_text()}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def wait_until_ready(process: subprocess.Popen[bytes], options: argparse.Namespace, folder: Path) -> None:
    """Wait until jobs can be submitted.

    Raises:
        RunError: the head ended, or does not answer.
    """
    deadline = time.monotonic() + START_S
    while ask(options, folder, "/api/jobs/") is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RunError(f"the head did not start: {last_words(folder)}")
        time.sleep(0.3)


def last_words(folder: Path) -> str:
    """Give the end of what the head said; on its end it names the part of it that died first."""
    lines = (folder / "head.log").read_text(errors="replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-6:] if line.strip()) or "it said nothing"


def take_down(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End the head, then the nodes it leaves behind; only processes that carry this cluster's mark."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave half of them
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    left = own_processes(folder)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.terminate()
    _, left = psutil.wait_procs(left, timeout=5)
    for one in [*left, *own_processes(folder)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(left, timeout=5)
    process.wait()


def own_processes(folder: Path) -> list[psutil.Process]:
    """Find the processes that were started by the cluster of this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(MARK) == str(folder) or any(f"{folder}/" in a for a in process.cmdline())
        except psutil.Error:
            continue
        if marked:
            found.append(process)
    return found
