"""A web server on loopback that costs next to nothing, with the pictures it serves: the same for every contender.

``/<any>/<number>`` is a picture, ``/slow/<number>`` the same after 3 s, ``/stats`` what was asked of it since the last
``/reset``, as JSON. Answers lie ready in memory.
"""

import asyncio
import io
import json
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from tests.bench.processes import ROOT

SLOW_S = 3.0
PICTURES = 200
"""Different pictures; addresses beyond repeat them."""
BODY_BYTES = 60_000
"""What a picture of 500 x 400 pixels takes, about."""


def make_pictures(count: int, width: int, height: int, size_bytes: int) -> list[bytes]:
    """Draw pictures as rough as photographs (amplitudes fall as 1/f), in JPEGs of about the size given."""
    rng = np.random.default_rng(0)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falling = 1 / np.maximum(np.hypot(fy, fx), 1 / max(width, height))
    pictures: list[bytes] = []
    quality = 95
    for _ in range(count):
        noise = np.fft.rfft2(rng.standard_normal((3, height, width))) * falling
        waves = np.fft.irfft2(noise, s=(height, width))
        grey = waves.mean(0, keepdims=True)
        mixed = grey + 0.3 * (waves - grey)
        pixels = (128 + 48 * mixed / mixed.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if not pictures:  # the first one finds the quality that gives the size
            quality = min(range(30, 98, 4), key=lambda q: abs(len(_jpeg(image, q)) - size_bytes))
        pictures.append(_jpeg(image, quality))
    return pictures


def _jpeg(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that runs, in a process of its own."""

    address: str
    """``http://127.0.0.1:port``"""
    pid: int
    environment: dict[str, str]
    """What a client needs to trust it."""

    @property
    def place(self) -> str:
        """``host:port``"""
        return self.address.partition("//")[2]

    def urls(self, rows: int, slow_every: int = 0) -> list[str]:
        return [f"{self.address}/{'slow' if slow_every and i % slow_every == 7 else 'i'}/{i}" for i in range(rows)]

    def reset(self) -> float:
        """Forget what was asked; give the CPU seconds it used so far."""
        return float(self._ask("reset")["cpu_s"])

    def stats(self) -> dict[str, float]:
        """Tell ``requests`` and ``answers`` since the last reset, the time of the ``first``, and ``cpu_s`` so far."""
        return cast("dict[str, float]", self._ask("stats"))

    def _ask(self, what: str) -> Any:
        context = None
        if cafile := self.environment.get("SSL_CERT_FILE"):
            context = ssl.create_default_context(cafile=cafile)
        with urllib.request.urlopen(f"{self.address}/{what}", timeout=30, context=context) as answer:
            return json.load(answer)


@contextmanager
def serving(folder: Path, *, tls: bool = False, count: int = PICTURES) -> Iterator[Server]:
    """Start a server for the length of a block, with a certificate of our own authority if wished."""
    environment = make_authority(folder) if tls else {}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.loopback_server", str(count), *([str(folder)] if tls else [])],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError("the loopback server did not start; see stderr for why")
        yield Server(address=f"http{'s' if tls else ''}://127.0.0.1:{port}", pid=process.pid, environment=environment)
    finally:
        process.terminate()
        process.wait()


def make_authority(folder: Path) -> dict[str, str]:
    """Make an authority and a server's certificate, and a bundle as long as the system's with ours at its end."""
    if shutil.which("openssl") is None:
        raise FileNotFoundError("openssl is not installed; https cannot be measured without it")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    _openssl("req", "-x509", *curve, "-keyout", folder / "ca.key", "-out", folder / "ca.pem", "-subj", "/CN=bench ca")
    _openssl("req", *curve[:4], "-nodes", "-keyout", folder / "key.pem", "-out", folder / "csr", "-subj", "/CN=bench")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n", encoding="ascii")
    signing: list[str | Path] = ["-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", "2"]
    _openssl("x509", "-req", "-in", folder / "csr", *signing, "-extfile", folder / "ext", "-out", folder / "cert.pem")
    system = ssl.get_default_verify_paths().cafile
    if system is None:
        raise FileNotFoundError("the system has no bundle of authorities; install ca-certificates")
    bundle = folder / "bundle.pem"
    bundle.write_bytes(Path(system).read_bytes() + b"\n" + (folder / "ca.pem").read_bytes())
    return {"SSL_CERT_FILE": str(bundle)}


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


class _Connection(asyncio.Protocol):
    """One client: a request after the other, without bodies."""

    answers: list[bytes]
    """Each a whole response; shared by all connections."""
    counts: dict[str, float]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._waiting = b""

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        while (end := self._waiting.find(b"\r\n\r\n")) >= 0:
            head, self._waiting = self._waiting[:end], self._waiting[end + 4 :]
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        path = head.split(b" ", 2)[1]
        last = b"connection: close" in head.lower()
        kind, _, number = path[1:].partition(b"/")
        if not number:
            self._tell(path == b"/reset", last)
            return
        if not self.counts["requests"]:
            self.counts["first"] = time.time()
        self.counts["requests"] += 1
        body = self.answers[int(number) % len(self.answers)]
        if kind == b"slow":
            asyncio.get_running_loop().call_later(SLOW_S, self._send, body, last)
        else:
            self._send(body, last)

    def _tell(self, reset: bool, last: bool) -> None:
        if reset:
            self.counts.update(requests=0, answers=0, first=0)
        told = json.dumps({**self.counts, "cpu_s": time.process_time()})
        self._write(_response(told.encode(), "application/json"), last)

    def _send(self, body: bytes, last: bool) -> None:
        self.counts["answers"] += 1
        self._write(body, last)

    def _write(self, response: bytes, last: bool) -> None:
        if not self._transport.is_closing():
            self._transport.write(response)
            if last:
                self._transport.close()


def _response(body: bytes, kind: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def _serve(count: int, certificates: Path | None) -> None:
    _Connection.answers = [_response(p, "image/jpeg") for p in make_pictures(count, 500, 400, BODY_BYTES)]
    _Connection.counts = {"requests": 0, "answers": 0, "first": 0}
    context = None
    if certificates:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, ssl=context, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
