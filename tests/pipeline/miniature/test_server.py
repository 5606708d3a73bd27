import http.client
import io
import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from pipeline.miniature.hazards import EITHER, HAZARDS
from pipeline.miniature.server import ANSWERS, SLOW_S, serve, serve_folder
from pipeline.miniature.world import World
from pipeline.schema import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, SUCCESS

MAX_PIXELS = 50_000_000


def fetch(url: str) -> bytes | None:
    """A careful little downloader: None for what a good one may not take."""
    if not url.startswith("http://"):
        return None
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return None if "noai" in answer.headers.get("X-Robots-Tag", "") else answer.read()
    except (OSError, http.client.HTTPException):
        return None


def outcome(url: str) -> str:
    body = fetch(url)
    if body is None:
        return FAILED_TO_DOWNLOAD
    try:
        with Image.open(io.BytesIO(body)) as image:
            if image.width * image.height > MAX_PIXELS:
                return FAILED_TO_RESIZE
            image.load()
    except (OSError, Image.DecompressionBombError):
        return FAILED_TO_RESIZE
    return SUCCESS


@pytest.fixture(scope="module")
def rows(world: World, base_url: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in world.web_expected.read_text().splitlines()]


@pytest.fixture(scope="module")
def outcomes(rows: list[dict[str, str]]) -> dict[str, str]:
    urls = [row["url"] for row in rows]
    with ThreadPoolExecutor(16) as pool:
        return dict(zip(urls, pool.map(outcome, urls), strict=True))


@pytest.mark.parametrize("hazard", ["", *(hazard.hazard for hazard in HAZARDS)])
def test_row_ends_as_promised(hazard: str, rows: list[dict[str, str]], outcomes: dict[str, str]) -> None:
    own = [row for row in rows if row["hazard"] == hazard]
    assert own
    for row in own:
        assert row["expected"] in (outcomes[row["url"]], EITHER)


def test_every_answer_belongs_to_a_hazard() -> None:
    assert ANSWERS.keys() <= {hazard.hazard for hazard in HAZARDS}


def test_truth_holds_for_what_is_served(world: World, base_url: str) -> None:
    rows = [json.loads(line) for line in world.web_truth.read_text().splitlines()]
    by_file = {row["file"]: row for row in rows}
    assert sum(name.startswith("hazard/") for name in by_file) == sum(hazard.shows_scene for hazard in HAZARDS)
    for row in rows:
        with Image.open(world.web_root / row["file"]) as image:
            assert ImageOps.exif_transpose(image).size == (row["width"], row["height"])


def test_reset_is_a_reset(base_url: str) -> None:
    with pytest.raises(ConnectionResetError):
        urllib.request.urlopen(f"{base_url}/hazard/reset/1.jpg", timeout=5)


def test_short_body_breaks_the_promised_length(rows: list[dict[str, str]]) -> None:
    (url,) = (row["url"] for row in rows if row["hazard"] == "short_body")
    with urllib.request.urlopen(url, timeout=5) as answer, pytest.raises(http.client.IncompleteRead):
        answer.read()


@pytest.mark.parametrize(("hazard", "status"), [("not_found", 404), ("gone", 410), ("server_error", 500)])
def test_status_of_refusals(base_url: str, hazard: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{base_url}/hazard/{hazard}/1.jpg", timeout=5)
    assert caught.value.code == status


def test_slow_host_does_not_hold_up_the_end(world: World) -> None:
    with serve(world.root, 0) as base:
        connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=SLOW_S)
        connection.request("GET", "/hazard/slow/00006.jpg")
        asked = time.monotonic()
    assert time.monotonic() - asked < SLOW_S  # leaving the context did not wait for the answer
    connection.close()


def test_taken_port_says_which_and_what_to_do(world: World) -> None:
    with serve(world, 0) as base:
        port = int(base.rpartition(":")[2])
        with pytest.raises(OSError, match=rf"port {port} .*--world\.port") as caught, serve(world, port):
            pass
    assert "\n" not in str(caught.value)


def test_folder_is_served_and_nothing_outside_it(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "photo.jpg").write_bytes(b"bytes")
    (tmp_path / "secret.txt").write_bytes(b"secret")
    with serve_folder(tmp_path / "open") as base:
        assert fetch(f"{base}/photo.jpg") == b"bytes"
        assert fetch(f"{base}/../secret.txt") is None
        assert fetch(f"{base}/%2e%2e/secret.txt") is None
        assert fetch(f"{base}/") is None


def test_connection_is_kept_for_the_next_request(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"bytes")
    with serve_folder(tmp_path) as base:
        connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=5)
        for _ in range(3):
            connection.request("GET", "/photo.jpg")
            assert connection.getresponse().read() == b"bytes"
            assert connection.sock is not None
        connection.close()
