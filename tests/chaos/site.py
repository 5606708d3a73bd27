"""Machines and servers that a group of cells shares, and commands that run there."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from cluster.ports import free_port
from glipv2.losses.criterion import LOSSES
from pipeline.miniature.world import World
from pipeline.tracking import EXPERIMENT, JOB_KEY, PARENT, Run
from tests.chaos.follower import Shelf
from tests.chaos.invariants import Made, Recorded
from tests.chaos.machines import ROOT, Machines, Network
from tests.chaos.servers import BUCKET, Pictures, Store, Tracking
from tests.chaos.stages import NUM_PAIRS, STAGES, Given, Home
from tests.conftest import RAY_ENVIRONMENT
from tests.pipeline.trainings import make_inputs

COMMAND_S = 300
"""Longest run of a command: the machine may be busy."""
PICTURE_S = 0.6
"""Time the web takes for a picture: so long that a fault finds the stage at work."""
CAPTIONS = ("a red star left of a blue ring", "two small green squares", "a striped yellow circle on a dark background")


class Site:
    """Two nodes and all servers on this machine; or, with a network, one node behind its cable."""

    def __init__(self, folder: Path, model: Path, undisturbed: dict[str, Made], network: Network | None = None) -> None:
        """Take what all sites share: the model, and what stages made undisturbed, which the first one finds out."""
        self.folder, self.network, self._model = folder, network, model
        self.world: World | None = None
        """Given by cells whose stage needs it: it takes seconds to draw."""
        self._ip = network.near_ip if network else "127.0.0.1"
        self._closing, self._store_port = ExitStack(), free_port("127.0.0.1")
        self._undisturbed = undisturbed
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def environment(self) -> dict[str, str]:
        """Variables of nodes, servers and commands."""
        own = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self._store_port}", "OMP_NUM_THREADS": "1"}
        outer = {
            name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
        }
        return {**outer, **RAY_ENVIRONMENT, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "25", **own}

    @cached_property
    def machines(self) -> Machines:
        machines = Machines(self.folder, self.environment, *([self._ip] if self.network else []))
        self._closing.callback(machines.close)
        return machines

    @cached_property
    def store(self) -> Store:
        store = Store(self._store_port, self.environment)
        self._closing.callback(store.close)
        return store

    @cached_property
    def tracking(self) -> Tracking | None:
        """The MLflow server; a node behind a cable may hold the writer of a training, so there it is a file."""
        if self.network is not None:
            return None
        tracking = Tracking(self.folder, self.environment)
        self._closing.callback(tracking.close)
        tracking.wait()
        return tracking

    @property
    def uri(self) -> str:
        return self.tracking.uri if self.tracking else f"sqlite:///{self.folder / 'runs.db'}"

    @cached_property
    def given(self) -> Given:
        pictures = Pictures(self._ip, PICTURE_S)
        self._closing.callback(pictures.close)
        boxes = self.folder / "training"
        boxes.mkdir()
        make_inputs(boxes)
        lines = [f"http://{pictures.host}/{n}.jpg\t{CAPTIONS[n % len(CAPTIONS)]}" for n in range(NUM_PAIRS)]
        pairs = self.folder / "pairs.tsv"
        pairs.write_text("\n".join(["url\tcaption", *lines]) + "\n")
        return Given(model=self._model, world=self._drawn, boxes=boxes, pairs=pairs, pictures=pictures.host)

    def _drawn(self) -> World:
        assert self.world is not None, "this stage needs the miniature world"
        return self.world

    def make_ready(self) -> None:
        """Bring the machines back to what a cell begins with."""
        machines = self.machines
        if self.network:  # the node behind the cable was given up, another one took over
            for node in list(machines.nodes):
                machines.lose(node)
            machines.join_from(self.network)
        while len(machines.nodes) < 2 and not self.network:
            machines.join()
        assert all(node.pid for node in machines.nodes)
        if self.tracking:
            self.tracking.wait()

    @contextmanager
    def running(self, stage: str, home: Home) -> Iterator[subprocess.Popen[bytes]]:
        """Run a stage's command, and end it with the block if it still runs."""
        given = {"RAY_ADDRESS": self.machines.address, "MLFLOW_TRACKING_URI": self.uri}
        command = STAGES[stage].command(self.given, home)
        with log_of(home).open("ab") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**self.environment, **given}, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def undisturbed(self, stage: str) -> Made:
        """Run a stage's command once without any fault; every cell is compared with that."""
        if stage not in self._undisturbed:
            self.make_ready()
            home = Home(self.folder / f"undisturbed-{stage}")
            started = time.monotonic()
            with self.running(stage, home) as process:
                assert process.wait(COMMAND_S) == 0, told_by(home)
            sys.stdout.write(f"\nundisturbed {stage}: {time.monotonic() - started:.0f} s\n")
            self._undisturbed[stage] = self.made(home, self.folder)
        return self._undisturbed[stage]

    def home(self, name: str, folder: Path, *, remote: bool) -> Home:
        """Name a place for an output."""
        return Home(folder, f"s3://{BUCKET}/{name}" if remote else "")

    def shelf(self, home: Home) -> Shelf:
        return Shelf(home, self.store if home.remote else None)

    def made(self, home: Home, folder: Path) -> Made:
        """Take up what a command made."""
        return Made(folder=self.shelf(home).bring(folder / "brought"), runs=self._runs(home))

    def _runs(self, home: Home) -> list[Recorded]:
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=self.uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        assert found is not None, "nothing was recorded"
        outs = {str(home.local), home.place}
        parents = [
            run
            for out in sorted(outs)
            for run in client.search_runs([found.experiment_id], f"tags.`{JOB_KEY}` LIKE '{out}/%'")
        ]
        children = [
            run
            for parent in parents
            for run in client.search_runs([found.experiment_id], f"tags.`{PARENT}` = '{parent.info.run_id}'")
        ]
        return [
            Recorded(
                status=run.info.status,
                metrics=run.data.metrics,
                history=Run(self.uri, run.info.run_id).history(("loss", *LOSSES)) if "loss" in run.data.metrics else (),
            )
            for run in [*parents, *children]
        ]

    def close(self) -> None:
        self._closing.close()


def log_of(home: Home) -> Path:
    """Name the file of all that the commands of a home say; not in it, where a full disk would swallow it."""
    home.local.parent.mkdir(parents=True, exist_ok=True)
    return home.local.with_name(f"{home.local.name}.log")


def told_by(home: Home) -> str:
    return log_of(home).read_text(errors="replace")[-3000:]
