"""Every fault at every stage: nothing lost, nothing doubled, nothing else than undisturbed (``make chaos``).

``CHAOS_SEED`` chooses other moments; ``CHAOS_TABLE=/abs/name`` writes the table to ``name.txt`` and ``name.md``.
"""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.cell import Cell
from tests.chaos.conftest import RESULT
from tests.chaos.faults import BLOWS, SmallDisk
from tests.chaos.matrix import FAST, FAULTS, SENSELESS
from tests.chaos.matrix import STAGES as NAMED
from tests.chaos.site import Site
from tests.chaos.stages import DRAWN, STAGES, Home

pytestmark = [pytest.mark.chaos, pytest.mark.cluster, pytest.mark.timeout(900)]


def cells() -> Iterator[Any]:
    """List the cells; all but a few take too long for ``make test``: half a minute each."""
    for fault in sorted(FAULTS, key=lambda name: name == "link"):  # which has machines of its own
        for stage in NAMED:
            if (fault, stage) not in SENSELESS:
                marks = [] if (fault, stage) in FAST else [pytest.mark.slow]
                yield pytest.param(fault, stage, marks=marks, id=f"{fault}-{stage}")


def test_the_matrix_speaks_of_what_there_is() -> None:
    assert NAMED.keys() == STAGES.keys()
    assert FAULTS.keys() == BLOWS.keys()
    assert {fault for fault, _ in [*SENSELESS, *FAST]} <= FAULTS.keys()
    assert {stage for _, stage in [*SENSELESS, *FAST]} <= NAMED.keys()
    assert not set(SENSELESS) & set(FAST)


@pytest.fixture
def place(request: pytest.FixtureRequest, fault: str, tmp_path: Path) -> Iterator[Path]:
    """Name the folder of the output: for a full disk, on a small disk of its own."""
    if fault != "disk":
        yield tmp_path / "out"
        return
    request.getfixturevalue("_mounting")
    disk = SmallDisk(tmp_path / "disk")
    yield disk.folder
    disk.close()


@pytest.mark.parametrize(("fault", "stage"), list(cells()))
def test_after_a_fault_everything_is_there_once(
    request: pytest.FixtureRequest, place: Path, fault: str, stage: str, tmp_path: Path
) -> None:
    site: Site = request.getfixturevalue("cut_site" if fault == "link" else "site")
    if stage in DRAWN:
        site.world = request.getfixturevalue("world")
    seed = f"{os.environ.get('CHAOS_SEED', '0')}/{fault}/{stage}"
    home: Home = site.home(f"{fault}-{stage}", place, remote=fault == "store")
    result, verdict = Cell(site, (fault, stage), home, random.Random(seed)).endure(tmp_path)
    request.node.user_properties.append((RESULT, result.to_dict()))
    sys.stdout.write(f"\nseed {seed}, {result}, {verdict.broken}\n")
    assert verdict.holds, verdict
