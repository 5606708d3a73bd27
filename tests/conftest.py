"""What tests share: one small Ray for the whole session, a loopback web server, and where outside data lie."""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # loopback only, and no token file in the home directory
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",  # the default starts 32 processes to read a few footers
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    # The variables are read when Ray is imported, and its workers inherit them.
    os.environ.update(RAY_ENVIRONMENT)
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: a unix socket's path allows some 100 characters
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=300 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)  # a worker on its way out may still be writing its log


Route = bytes | tuple[int, dict[str, str], bytes] | Callable[[BaseHTTPRequestHandler], None]
"""What a path of the test server answers: a body; status, further headers and body; or a function doing all of it."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # with the default of 5, Linux drops what a pooled client opens at once

    def handle_error(self, *_: object) -> None:
        pass  # a client that hangs up is no news


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[dict[str, Route]], str]]:
    """Start a loopback web server with these paths and give its address."""
    servers = []

    def start(routes: dict[str, Route]) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # headers and body are two writes; the second would wait 40 ms

            def do_GET(self) -> None:
                route = routes.get(self.path, (404, {}, b"not here"))
                if callable(route):
                    return route(self)
                status, headers, body = (200, {}, route) if isinstance(route, bytes) else route
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.socket.close()  # not server_close(), which would wait for the slow answers too


@pytest.fixture(scope="session")
def test_data() -> Path:
    return _outside("GLIPV2_TEST_DATA", "data")


@pytest.fixture(scope="session")
def goldens() -> Path:
    return _outside("GLIPV2_GOLDENS", "goldens")


def _outside(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set {variable} to the folder with the {name}")
    return folder
