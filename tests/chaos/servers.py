"""Servers that a stage needs and that can be taken away: pictures, S3, MLflow."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from cluster.ports import free_port
from tests.chaos.machines import ROOT

BUCKET = "chaos"
START_S = 240


class Pictures:
    """A web server whose pictures take a moment each; some are missing, some are broken."""

    def __init__(self, host: str, seconds: float) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                time.sleep(seconds)
                status, body = picture(int(self.path.strip("/").removesuffix(".jpg")))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Quiet((host, 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.host = f"{host}:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.socket.close()


class _Quiet(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass  # a client that was killed is no news


def picture(number: int) -> tuple[int, bytes]:
    """Draw what the web server answers: status and body."""
    if number % 5 == 3:
        return 404, b""
    image = Image.new("RGB", (80 + number, 60), (number * 7 % 256, 90, 120))
    ImageDraw.Draw(image).rectangle((10, 10, 30 + number, 40), fill=(220, number * 11 % 256, 40))
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    body = stream.getvalue()
    return 200, body[:-40] if number % 5 == 4 else body


class Store:
    """S3 behind a front that dies and comes back; what was stored is kept, as with a real store."""

    def __init__(self, port: int, environment: Mapping[str, str]) -> None:
        import boto3
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self._upstream = self._server.get_host_and_port()
        self._port, self._environment = port, environment
        host, upstream = self._upstream
        named = {name.lower(): environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        self._client: Any = boto3.client(
            "s3", endpoint_url=f"http://{host}:{upstream}", region_name=environment["AWS_DEFAULT_REGION"], **named
        )
        self._client.create_bucket(Bucket=BUCKET)
        self.start()

    def start(self) -> None:
        host, upstream = self._upstream
        command = [sys.executable, "-m", "tests.chaos.front", str(self._port), host, str(upstream)]
        self._front = subprocess.Popen(command, env=dict(self._environment), cwd=ROOT, stdin=subprocess.PIPE)
        _wait_for_port("127.0.0.1", self._port)

    def kill(self) -> None:
        self._front.kill()
        self._front.wait()

    def names(self, prefix: str) -> list[str]:
        """List objects by key, past the front: it may be down."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
        return [key for key in keys if not key.endswith("/")]  # which stand for folders

    def read(self, key: str) -> bytes:
        """Read an object past the front.

        Raises:
            FileNotFoundError: it is gone.
        """
        try:
            body: bytes = self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        except self._client.exceptions.NoSuchKey as error:
            raise FileNotFoundError(key) from error
        return body

    def close(self) -> None:
        self.kill()
        self._server.stop()


class Tracking:
    """An MLflow server on loopback; its runs outlive it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._port = free_port("127.0.0.1")
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Start it, without waiting for it."""
        where = ("--host", "127.0.0.1", "--port", str(self._port), "--workers", "1")
        stored = ("--backend-store-uri", f"sqlite:///{self._folder / 'runs.db'}")
        files = ("--artifacts-destination", str(self._folder / "artifacts"))
        command = [sys.executable, "-m", "mlflow", "server", *where, *stored, *files]
        with (self._folder / "mlflow.log").open("ab") as log:
            given = {
                **self._environment,
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            }  # nothing here needs its workers
            self._process = subprocess.Popen(
                command, env=given, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it answers."""
        end = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                assert self._process.poll() is None, "the MLflow server ended by itself"
                assert time.monotonic() < end, "the MLflow server did not start"
                time.sleep(0.1)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # it has helpers, all in its session
        self._process.wait()

    def close(self) -> None:
        self.kill()


def _wait_for_port(host: str, port: int) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            assert time.monotonic() < end, f"nothing listens on {host}:{port}"
            time.sleep(0.02)
        else:
            return
