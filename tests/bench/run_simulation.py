"""A labelling in which nothing is fetched and nothing is looked at, as `processes.run_ours` starts it."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pipeline import engine
from pipeline.download import DownloadConfig, collecting
from pipeline.engine import Step
from pipeline.ledger import Ledger
from pipeline.pseudo_label import LabelPlan, PseudoLabelConfig, pseudo_label
from pipeline.session import ray_session
from pipeline.storage import Place
from tests.bench.labellers import read_log
from tests.bench.no_op_labelling import NoOpLabeller, TinyCollector, tiny_picture
from tests.bench.processes import answer
from tests.bench.run_download import shout
from tests.bench.run_labelling import watching_store

PHASES = {"reconcile": Ledger, "_write_round": engine, "take_account": engine, "write_manifest": engine}
"""What a run is made of, by name, and where it is looked up."""


def simulate(pairs: str, out: str, block: int, number: int) -> dict[str, Any]:
    """Label a list, or go on with it; give the seconds of each phase and the log of the labeller's blocks."""
    log = Path(f"{out}.{number}.log")
    with (
        ray_session(),
        patch("pipeline.pseudo_label.Labeller", NoOpLabeller),
        patch("pipeline.pseudo_label.teacher_identity", return_value=("nobody", "0" * 64)),
        watching_store([], log) as series,
        timing() as phases,
    ):
        source = replace(
            collecting(DownloadConfig(), Place.of(pairs)),
            steps=[Step(make=TinyCollector, arguments={"picture": tiny_picture()}, calls_at_once=2)],
        )
        plan = LabelPlan(cfg=PseudoLabelConfig(rows_per_block=block), teacher="nobody")
        manifest = pseudo_label(plan, source, Place.of(out), run_id=str(log), on_progress=shout("simulation"))
    return {"rows": manifest.rows_out, "phases": phases, "log": read_log(log), "series": series}


@contextmanager
def timing() -> Iterator[dict[str, list[tuple[float, float]]]]:
    """Note when each phase begins and ends."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            began = time.time()
            try:
                return function(*given, **named)
            finally:
                found[name].append((began, time.time()))

        return call

    with ExitStack() as stack:
        for name, owner in PHASES.items():
            stack.enter_context(patch.object(owner, name, timed(name, getattr(owner, name))))
        yield found


if __name__ == "__main__":
    answer(simulate)
