"""Sites for the cells, and the table at the end of a session."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faults import may_mount
from tests.chaos.invariants import Made
from tests.chaos.machines import Network, may_make_networks
from tests.chaos.site import Site
from tests.chaos.table import as_markdown, as_text

RESULT = "chaos"


@pytest.fixture(scope="session")
def undisturbed() -> dict[str, Made]:
    """What each stage makes undisturbed: the same wherever it runs."""
    return {}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, eager_model: Path, undisturbed: dict[str, Made]) -> Iterator[Site]:
    """Two nodes and all servers."""
    site = Site(tmp_path_factory.mktemp("site") / "s", eager_model, undisturbed)
    yield site
    site.close()


@pytest.fixture(scope="session")
def cut_site(
    tmp_path_factory: pytest.TempPathFactory, eager_model: Path, undisturbed: dict[str, Made]
) -> Iterator[Site]:
    """One node behind a cable that can be pulled."""
    if reason := may_make_networks():
        pytest.skip(reason)
    network = Network()
    site = Site(tmp_path_factory.mktemp("cut") / "s", eager_model, undisturbed, network)
    yield site
    site.close()
    network.close()


@pytest.fixture(scope="session")
def _mounting(tmp_path_factory: pytest.TempPathFactory) -> None:
    if reason := may_mount(tmp_path_factory.mktemp("mount") / "probe"):
        pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    lines = [value for report in reports for name, value in getattr(report, "user_properties", ()) if name == RESULT]
    if not lines:
        return
    skipped = {
        tuple(report.nodeid.rpartition("[")[2].rstrip("]").split("-")): report.longrepr[2]
        for report in terminalreporter.stats.get("skipped", ())
        if "test_chaos.py" in report.nodeid
    }
    terminalreporter.write_sep("=", f"chaos, seed {os.environ.get('CHAOS_SEED', '0')}")
    terminalreporter.write_line(as_text(lines, skipped))
    if given := os.environ.get("CHAOS_TABLE"):
        Path(given).parent.mkdir(parents=True, exist_ok=True)
        Path(f"{given}.txt").write_text(as_text(lines, skipped) + "\n")
        Path(f"{given}.md").write_text(as_markdown(lines, skipped))
