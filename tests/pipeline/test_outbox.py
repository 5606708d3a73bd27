"""Writes while MLflow's server is away: in order, all of them, and nobody waits for them."""

import time
from functools import partial

import pytest

from pipeline import outbox
from pipeline.mlflow_client import AwayError
from pipeline.outbox import Outbox


class Server:
    """Takes writes while it is there."""

    def __init__(self) -> None:
        self.there, self.taken = True, list[int]()

    def write(self, number: int) -> None:
        if not self.there:
            raise AwayError("http://mlflow", "gone")
        self.taken.append(number)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "GRACE_S", 0.3)
    monkeypatch.setattr(outbox, "PAUSE_S", 0.01)


def test_a_write_is_made_when_it_is_put_in() -> None:
    server, box = Server(), Outbox()
    box.put(partial(server.write, 1))
    assert server.taken == [1]


def test_writes_of_an_outage_are_made_in_order_when_it_is_over_and_only_the_first_waits() -> None:
    server, box = Server(), Outbox()
    box.put(partial(server.write, 0))
    server.there = False
    begun = time.monotonic()
    for number in range(1, 100):
        box.put(partial(server.write, number))
    assert time.monotonic() - begun < 2.0
    assert box.settle(0.0) == 99
    server.there = True
    assert box.settle(30.0) == 0
    assert server.taken == list(range(100))
    box.put(partial(server.write, 100))
    assert server.taken[-1] == 100, "after the outage writes are made at once again"


def test_what_is_refused_is_raised_and_the_next_write_is_made() -> None:
    server, box = Server(), Outbox()

    def refused() -> None:
        raise ValueError("no such metric")

    with pytest.raises(ValueError, match="no such metric"):
        box.put(refused)
    box.put(partial(server.write, 1))
    assert server.taken == [1]


def test_what_is_left_after_one_s_patience_is_counted() -> None:
    server, box = Server(), Outbox()
    server.there = False
    box.put(partial(server.write, 1))
    box.put(partial(server.write, 2))
    assert box.settle(0.05) == 2
