"""A web of its own on the loopback: serves a folder, and answers the world's hazards as badly as they promise."""

import contextlib
import functools
import http.server
import logging
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

from pipeline.miniature.hazards import FOLDER
from pipeline.miniature.world import HOST, World, open_world

logger = logging.getLogger(__name__)

SLOW_S = 2.5
"""How long the slow host waits, and how long the trickle takes."""
_LANDED = "?landed"
"""What a good redirect adds to the address."""


@contextlib.contextmanager
def serve(world: World | Path, port: int) -> Iterator[str]:
    """Serve the web of a world, hazards included, while the context lasts.

    Args:
        world: the world or its root folder.
        port: the one of the world's configuration, so that the list's addresses fit; 0 for any free one.

    Yields:
        The base address, as in ``http://127.0.0.1:18765``.

    Raises:
        OSError: the port is taken.
        ValueError: the folder holds no finished world.
    """
    root = (world if isinstance(world, World) else open_world(world)).web_root
    with _listen(_HazardHandler, root, port) as base:
        yield base


@contextlib.contextmanager
def serve_folder(root: Path, port: int = 0) -> Iterator[str]:
    """Serve the files of any folder while the context lasts; port 0 takes a free one.

    Yields:
        The base address, as in ``http://127.0.0.1:40404``.

    Raises:
        OSError: the port is taken.
    """
    with _listen(_FileHandler, root, port) as base:
        yield base


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256

    def __init__(self, port: int, handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> None:
        self.stopping = threading.Event()
        super().__init__((HOST, port), handler)

    def handle_error(self, request: object, client_address: object) -> None:
        if isinstance(error := sys.exception(), ConnectionError | TimeoutError):
            logger.debug("client %s went away: %s", client_address, error)
        else:
            logger.exception("request of %s failed", client_address)


class _FileHandler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each small body waits 40 ms for an acknowledgement
    timeout = 15  # seconds an idle connection is kept

    def list_directory(self, path: object) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)


class _HazardHandler(_FileHandler):
    server: _Server

    def do_GET(self) -> None:
        folder, _, rest = self.path.lstrip("/").partition("/")
        answer = ANSWERS.get(rest.partition("/")[0]) if folder == FOLDER else None
        if answer is None:
            super().do_GET()
        else:
            answer(self)

    def body(self) -> bytes:
        return Path(self.translate_path(self.path)).read_bytes()

    def begin(self, length: int, **headers: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def redirect(self, target: str) -> None:
        self.send_response(HTTPStatus.FOUND)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _redirect(handler: _HazardHandler) -> None:
    if handler.path.endswith(_LANDED):
        http.server.SimpleHTTPRequestHandler.do_GET(handler)
    else:
        handler.redirect(handler.path + _LANDED)


def _wait(handler: _HazardHandler) -> None:
    handler.server.stopping.wait(SLOW_S)
    http.server.SimpleHTTPRequestHandler.do_GET(handler)


def _trickle(handler: _HazardHandler) -> None:
    body, steps = handler.body(), 25
    size = -(-len(body) // steps)
    handler.begin(len(body))
    for first in range(0, len(body), size):
        handler.server.stopping.wait(SLOW_S / steps)
        handler.wfile.write(body[first : first + size])


def _reset(handler: _HazardHandler) -> None:
    connection = handler.connection
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.close(connection.detach())  # without lingering: the client gets a reset, not an end
    handler.close_connection = True


def _stop_half_way(handler: _HazardHandler) -> None:
    body = handler.body()
    handler.begin(len(body))
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def _opt_out(handler: _HazardHandler) -> None:
    body = handler.body()
    handler.begin(len(body), X_Robots_Tag="noai")
    handler.wfile.write(body)


ANSWERS: dict[str, Callable[[_HazardHandler], None]] = {
    "not_found": lambda handler: handler.send_error(HTTPStatus.NOT_FOUND),
    "gone": lambda handler: handler.send_error(HTTPStatus.GONE),
    "server_error": lambda handler: handler.send_error(HTTPStatus.INTERNAL_SERVER_ERROR),
    "redirect": _redirect,
    "redirect_loop": lambda handler: handler.redirect(handler.path),
    "slow": _wait,
    "trickle": _trickle,
    "reset": _reset,
    "short_body": _stop_half_way,
    "opted_out": _opt_out,
}
"""Hazards that lie in the answer; those not listed lie in the file."""


@contextlib.contextmanager
def _listen(handler: type[_FileHandler], root: Path, port: int) -> Iterator[str]:
    try:
        server = _Server(port, functools.partial(handler, directory=str(root)))
    except OSError as error:
        raise OSError(
            f"port {port} of {HOST} cannot be used ({error.strerror}); end what holds it or give another --world.port"
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="miniature-web", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}"
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
