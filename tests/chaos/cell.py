"""One cell of the matrix: break a command at a moment left to chance, repeat it until it is through, and look."""

import random
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.chaos.faults import BLOWS, Scene, Struck
from tests.chaos.follower import LOOK_S, Follower
from tests.chaos.invariants import Verdict, check
from tests.chaos.site import COMMAND_S, Site, told_by
from tests.chaos.stages import STAGES, Home

TRIES = 3
"""Times a command is given at most."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A line of the table."""

    fault: str
    stage: str
    moment: str
    """When it came, and what it hit."""
    tries: int
    recovered_s: float
    """From the fault to the first piece of work committed after it."""
    ended_s: float
    """From the fault to the end of the last command."""
    lost: int
    doubled: int
    broken: int

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class Cell:
    """A command on a site, and what is done to it."""

    def __init__(self, site: Site, cell: tuple[str, str], home: Home, chance: random.Random) -> None:
        self._site, (self._fault, self._stage), self._home, self._chance = site, cell, home, chance
        self._plan = STAGES[self._stage]
        self._shelf = site.shelf(home)
        self._kept: dict[str, bytes] = {}
        self._started = 0.0
        """When the last repetition began."""

    def endure(self, folder: Path) -> tuple[Result, Verdict]:
        """Go through it; what lies in the store is looked at in ``folder``."""
        undisturbed = self._site.undisturbed(self._stage)
        self._site.make_ready()
        fewest, most = self._plan.after
        after, pause = self._chance.randint(fewest, most), self._chance.uniform(0, 0.5)
        with Follower(self._shelf, self._plan.committed) as follower:
            when, what = self._disturb(follower, after, pause)
            tries = 1 + self._repeat()
            ended = time.monotonic()
        made = self._site.made(self._home, folder)
        verdict = check(self._stage, made, undisturbed, kept=self._kept)
        verdict.broken += [f"torn: {shard}" for shard in follower.torn]
        assert follower.first_after(when) is not None, f"it was struck when nothing was left to do: {what}"
        # What a dead command's tasks still commit is no recovery; nor is what was there and not yet seen.
        first = follower.first_after(max(when + 3 * LOOK_S, self._started if tries > 1 else 0.0)) or ended
        result = Result(
            fault=self._fault,
            stage=self._stage,
            moment=f"after {after} pieces and {pause:.2f} s: {what}",
            tries=tries,
            recovered_s=round(first - when, 1),
            ended_s=round(ended - when, 1),
            lost=verdict.lost,
            doubled=verdict.doubled,
            broken=len(verdict.broken),
        )
        return result, verdict

    def _disturb(self, follower: Follower, after: int, pause: float) -> tuple[float, str]:
        """Run the command the first time, up to its end; tell when it was struck, and by what."""
        with self._site.running(self._stage, self._home) as command:
            end = time.monotonic() + COMMAND_S
            while len(follower.seen) < after:
                assert command.poll() is None, f"it ended before it was struck: {told_by(self._home)}"
                assert time.monotonic() < end, f"it never came so far: {told_by(self._home)}"
                time.sleep(0.02)
            time.sleep(pause)
            if self._stage == "sweep":
                self._kept = {name: self._shelf.read(name) for name in self._shelf.names() & follower.seen.keys()}
            site = self._site
            scene = Scene(
                stage=self._plan,
                command=command,
                machines=site.machines,
                chance=self._chance,
                disk=self._home.local,
                store=site.store if self._fault == "store" else None,
                tracking=site.tracking if self._fault == "mlflow" else None,
                network=site.network,
            )
            struck, when = BLOWS[self._fault](scene), time.monotonic()
            self._rc = self._await(command, struck, when)
        return when, struck.what

    def _await(self, command: subprocess.Popen[bytes], struck: Struck, when: float) -> int:
        """Wait for the command to end, and put right meanwhile what was broken, whatever comes of it."""
        try:
            while (rc := command.poll()) is None and time.monotonic() - when < struck.after_s:
                time.sleep(0.02)
        finally:
            struck.mend()
        while rc is None:
            assert time.monotonic() - when < COMMAND_S, f"it did not end: {told_by(self._home)}"
            time.sleep(0.02)
            rc = command.poll()
        return rc

    def _repeat(self) -> int:
        """Give the command again until it is through; tell how often."""
        for again in range(TRIES):
            if self._rc == 0:
                return again
            if again < TRIES - 1:
                self._started = time.monotonic()
                with self._site.running(self._stage, self._home) as command:
                    self._rc = self._await(command, Struck("nothing more"), self._started)
        raise AssertionError(f"it was given {TRIES} times and is not through: {told_by(self._home)}")
