import time
from email.utils import formatdate

import pytest

from pipeline.hosts import Hosts, retry_after_s

HERE = ("images.example", 80)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("", 0), ("0", 0), ("7", 7), ("-7", 0), ("99999999999999999999", 600), ("soon", 0), ("7.5", 0), ("\u0667", 0)],
)
def test_a_pause_asked_for_in_seconds_is_read_and_bounded(header: str, seconds: float) -> None:
    assert retry_after_s(header) == seconds


@pytest.mark.parametrize(("away", "seconds"), [(30, 30), (-30, 0), (99999, 600)])
def test_a_pause_asked_for_until_a_date_is_read_and_bounded(away: float, seconds: float) -> None:
    assert retry_after_s(formatdate(time.time() + away, usegmt=True)) == pytest.approx(seconds, abs=2)


def test_a_host_is_left_alone_after_failures_in_a_row_only() -> None:
    hosts = Hosts(max_per_host=1, max_failures=2)
    for reason, pauses in [("timeout", False), (None, False), ("connect_failed", False), ("connect_timeout", True)]:
        hosts.note(HERE, hosts.find(HERE), reason)
        assert (hosts.find(HERE).pause_s > 0) == pauses


@pytest.mark.parametrize("reason", ["http_404", "http_503", "truncated", "tls_failed", "too_large"])
def test_a_host_that_answers_is_not_in_trouble(reason: str) -> None:
    hosts = Hosts(max_per_host=1, max_failures=1)
    hosts.note(HERE, hosts.find(HERE), reason)
    assert hosts.find(HERE).pause_s == 0


def test_hosts_are_remembered_while_in_use_or_trouble_and_the_memory_is_bounded() -> None:
    hosts = Hosts(max_per_host=1, max_failures=1)
    for number in range(10_500):
        place = (f"{number}.example", 80)
        hosts.note(place, hosts.find(place), "timeout" if number % 100 else None)
    assert len(hosts._in_trouble) == 10_000
    assert len(hosts._in_use) <= 10_001  # and the last one that was found
    assert hosts.find(("10499.example", 80)).pause_s > 0
    assert hosts.find(("10400.example", 80)).pause_s == 0
