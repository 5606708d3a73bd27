"""What tests share: one small Ray for the whole session, a loopback web server, and where outside data lie."""

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from cluster.ports import free_port
from glipv2 import checkpoint
from glipv2.config import nano
from glipv2.model.glipv2 import GLIPv2
from glipv2.text.tokenizer import WordPiece, make_vocabulary
from pipeline.miniature import config
from pipeline.miniature.grammar import vocabulary
from pipeline.miniature.world import World, build_world

if TYPE_CHECKING:
    from tests.pipeline.fault_proxy import FaultProxy

ROOT = Path(__file__).resolve().parent.parent

# A shell's background job ignores Ctrl-C, and so would every process that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

S3_PORT = free_port()  # test sessions side by side do not meet
S3_ENVIRONMENT = {
    "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{S3_PORT}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # loopback only, and no token file in the home directory
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",  # the default starts 32 processes to read a few footers
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    **S3_ENVIRONMENT,  # nothing listens there before a test asks for `s3`
}


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    # The variables are read when Ray is imported, and its workers inherit them.
    os.environ.update(RAY_ENVIRONMENT)
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: a unix socket's path allows some 100 characters
    ray.init(
        address="local",
        num_cpus=4,  # logical: an actor pool must leave room for the tasks that read and write
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


@pytest.fixture(scope="module", name="free_port")
def _free_port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(replace(config.test_size(), port=free_port()), tmp_path_factory.mktemp("miniature"))


@pytest.fixture(scope="session")
def s3() -> Iterator["FaultProxy"]:
    """Start an S3 server, behind a proxy that can be told to fail; it has the bucket ``tests``."""
    import boto3
    from moto.server import ThreadedMotoServer

    from pipeline import storage
    from tests.pipeline.fault_proxy import FaultProxy

    os.environ.update(S3_ENVIRONMENT)
    storage._s3.cache_clear()  # a client made before knows another address
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    proxy = FaultProxy(S3_PORT, server.get_host_and_port())
    boto3.client("s3").create_bucket(Bucket="tests")
    yield proxy
    proxy.close()
    server.stop()


@pytest.fixture(scope="session")
def eager_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an untrained nano model that finds something everywhere: its bias says "perhaps" instead of "hardly"."""
    torch.manual_seed(0)
    words = make_vocabulary(vocabulary())
    model = GLIPv2(nano(len(words)))
    torch.nn.init.zeros_(model.head.bias)
    folder = tmp_path_factory.mktemp("eager") / "model"
    checkpoint.save(model, WordPiece(words, model.cfg.max_tokens), folder)
    return folder


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
