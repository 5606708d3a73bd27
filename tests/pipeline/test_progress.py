import io
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.progress import Progress, track_dataset


class Clock:
    """Stands in for time.monotonic."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: self.now)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_says_how_far_how_fast_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    progress = Progress("download")
    clock.now += 8
    assert progress.line(1200, 2000) == "download      1200/2000  60%  150.0 rows/s  eta 5s"
    assert progress.line(1200, 2000, "97% ok").endswith("eta 5s  97% ok")


def test_the_time_before_the_first_row_does_not_slow_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    progress = Progress("teacher", unit="steps")
    clock.now += 30
    progress.line(0, 100)
    clock.now += 10
    assert "2.0 steps/s  eta 40s" in progress.line(20, 100)


@pytest.mark.parametrize(("done", "eta"), [(0, "?"), (1, "16m39s"), (1000, "0s")])
def test_the_time_left_has_readable_units(monkeypatch: pytest.MonkeyPatch, done: int, eta: str) -> None:
    clock = Clock(monkeypatch)
    progress = Progress("download")
    clock.now += 1
    assert progress.line(done, 1000).endswith(f"eta {eta}")
    assert Progress("download").line(0, 0).endswith("eta ?")


def test_without_a_terminal_a_line_is_logged_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO)
    progress = Progress("download", every_s=5)
    for done in range(1, 13):
        clock.now += 1
        progress(done, 12)
    assert [record.message.split()[1] for record in caplog.records] == ["5/12", "10/12", "12/12"]


def test_on_a_terminal_one_line_is_rewritten_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    progress = Progress("download")
    progress(1, 2)
    progress(2, 2)
    assert terminal.getvalue().count("\r") == 2
    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().endswith("\n")


@pytest.mark.ray
def test_a_data_set_reports_its_rows_while_it_is_written(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.data

    monkeypatch.setattr("pipeline.progress._SECONDS_BETWEEN_REPORTS", 0.0)

    def slowly(batch: Any) -> Any:
        import time

        time.sleep(0.7)
        return batch

    dataset = ray.data.range(30, override_num_blocks=3).map_batches(slowly, num_cpus=2, concurrency=1)
    seen: list[tuple[int, int, str]] = []
    with track_dataset(dataset, lambda *report: seen.append(report), 30):
        dataset.write_parquet(str(tmp_path))
    done = [report[0] for report in seen]
    assert done == sorted(done)
    assert any(0 < rows < 30 for rows in done)
    assert seen[-1] == (30, 30, "")


@pytest.mark.ray
def test_after_the_block_nothing_is_reported_any_more(ray_session: None) -> None:
    import ray.data

    dataset = ray.data.range(3)
    seen: list[tuple[int, int, str]] = []
    with track_dataset(dataset, lambda *report: seen.append(report), 3):
        pass
    dataset.count()
    assert seen == [(3, 3, "")]
    assert not dataset.context.custom_execution_callback_classes
