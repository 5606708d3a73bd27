import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from pipeline import retry
from pipeline.download import DownloadConfig, collecting
from pipeline.engine import Source
from pipeline.fetch import FetchConfig
from pipeline.pseudo_label import LabelPlan, PseudoLabelConfig, pseudo_label
from pipeline.retry import RETRIES, failed_keys, retry_failed
from pipeline.shards import MANIFEST_NAME, Manifest, open_rows, read_manifest
from pipeline.storage import Place
from tests.pipeline.test_download import jpeg, reaching
from tests.pipeline.test_exactly_once import write_captions

pytestmark = pytest.mark.ray

Serve = Callable[[dict[str, Any]], str]


class Web:
    """Twelve addresses: some answer, some never will, and some do once they are `well`."""

    gone, broken, flaky = (2,), (5,), (1, 4, 7)

    def __init__(self, serve: Serve) -> None:
        self.asked: Counter[int] = Counter()
        self.well: tuple[int, ...] = ()
        self.base = serve({f"/{number}.jpg": partial(self._answer, number) for number in range(12)})

    def _answer(self, number: int, handler: BaseHTTPRequestHandler) -> None:
        self.asked[number] += 1
        status, body = 200, jpeg(80 + number, 60)
        if number in self.gone:
            status, body = 404, b""
        elif number in self.broken:
            body = body[:-40]
        elif number in self.flaky and number not in self.well:
            status, body = 503, b""
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@dataclass(frozen=True)
class Labels:
    """Labels made while all flaky addresses failed."""

    plan: LabelPlan
    source: Source
    out: Place

    def retry(self, run_id: str = "again") -> Manifest:
        return retry_failed(self.plan, self.source, self.out, run_id=run_id)

    def rows(self) -> dict[int, dict[str, Any]]:
        rows = open_rows(self.out).to_table().to_pylist()
        assert len({row["key"] for row in rows}) == len(rows) == 12
        return {row["key"]: row for row in rows}

    def copy(self, folder: Path) -> "Labels":
        """Copy them, ledger and all: what they are bound to are hashes, not places."""
        for name in ("labels", "labels.ledger"):
            shutil.copytree(self.out.parent.local / name, folder / name)
        return replace(self, out=Place.of(folder / "labels"))


@pytest.fixture(scope="module")
def web(serve: Serve) -> Web:
    return Web(serve)


@pytest.fixture(scope="module")
def made(ray_session: None, web: Web, eager_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Labels:
    folder = tmp_path_factory.mktemp("made")
    fetch = FetchConfig(timeout_s=20, max_attempts=1, max_host_failures=100)
    config = reaching(web.base, DownloadConfig(fetch=fetch, image_size_px=96, max_side_px=200))
    pairs = write_captions(folder, [f"{web.base}/{number}.jpg" for number in range(12)])
    plan = LabelPlan(cfg=PseudoLabelConfig(batch_size=1, rows_per_block=4), teacher=str(eager_model))
    labels = Labels(plan, collecting(config, pairs), Place.of(folder / "labels"))
    pseudo_label(labels.plan, labels.source, labels.out, run_id="first")
    return labels


@pytest.fixture
def labels(made: Labels, web: Web, tmp_path: Path) -> Labels:
    web.asked.clear()
    web.well = ()
    return made.copy(tmp_path)


def manifest(labels: Labels) -> Manifest:
    found = read_manifest(labels.out)
    assert found is not None
    return found


def test_only_what_failed_for_a_passing_reason_is_fetched_again_and_only_once(web: Web, labels: Labels) -> None:
    first, before = manifest(labels), labels.rows()
    assert failed_keys(labels.out).tolist() == list(web.flaky)
    web.well = web.flaky
    again, after = labels.retry(), labels.rows()

    assert web.asked == dict.fromkeys(web.flaky, 1)
    assert {key for key in after if after[key] != before[key]} == set(web.flaky)
    assert all(after[key]["image"] and after[key]["run_id"] == "again" for key in web.flaky)
    assert first.rejects["failed_to_download:http_503"] == 3
    assert "failed_to_download:http_503" not in again.rejects
    assert first.rows_in == again.rows_in == again.rows_out + sum(again.rejects.values())
    assert (again.rows_out - first.rows_out, again.config[RETRIES]) == (3, 1)
    assert again == manifest(labels)
    assert again.digest != first.digest
    assert listed(labels) == there(labels), "shards that no manifest lists are left"

    assert labels.retry("third") == again, "there was something to retry"
    assert web.asked == dict.fromkeys(web.flaky, 1)
    assert labels.rows() == after


def listed(labels: Labels) -> list[str]:
    return sorted(str(file["path"]) for file in manifest(labels).files)


def there(labels: Labels) -> list[str]:
    return [place.relative_to(labels.out) for place in labels.out.files(".parquet")]


def test_a_retry_killed_before_its_manifest_changes_nothing_for_readers_and_is_gone_on_with(
    web: Web, labels: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, old = labels.rows(), manifest(labels)
    cured, failing = set(web.flaky[:2]), web.flaky[2]
    web.well = tuple(cured)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retry, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            labels.retry()
    assert there(labels) != listed(labels), "it was killed too early to tell"
    assert labels.rows() == before
    assert manifest(labels) == old

    web.asked.clear()
    labels.retry()
    assert web.asked == {}, "what the killed retry fetched is kept"
    after = labels.rows()
    assert {key for key in after if after[key]["image"] and not before[key]["image"]} == cured
    assert after[failing]["reason"] == "failed_to_download:http_503"
    assert listed(labels) == there(labels)


def test_unfinished_labels_are_refused(labels: Labels) -> None:
    (labels.out / MANIFEST_NAME).delete()
    with pytest.raises(ValueError, match="is not finished") as caught:
        labels.retry()
    assert "\n" not in str(caught.value)


def test_labels_of_another_threshold_are_refused(web: Web, labels: Labels) -> None:
    other = replace(labels.plan, cfg=replace(labels.plan.cfg, min_score=0.5))
    with pytest.raises(ValueError, match=r"label\.min_score was 0.3, now 0.5"):
        replace(labels, plan=other).retry()
    assert web.asked == {}
