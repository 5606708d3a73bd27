"""What a sweep costs beside its trials: thirteen small sets, with processes kept and with a process for each trial."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from glipv2 import checkpoint
from glipv2.config import nano
from glipv2.model.glipv2 import GLIPv2
from glipv2.text.tokenizer import WordPiece, make_vocabulary
from pipeline.miniature import config
from pipeline.miniature.grammar import vocabulary
from pipeline.miniature.world import build_world
from tests.bench.processes import run, scratch
from tests.bench.timing import Results

CONCURRENT = 2


@dataclass(frozen=True, kw_only=True)
class SweepBench:
    """Where, and for how long."""

    out: Path
    timeout_s: float = 1200.0
    """Of one sweep."""


def compare_sweeps(results: Results, bench: SweepBench) -> None:
    """Sweep all sets with two numbers of shots and two draws, then some of them with a process for each trial."""
    print(f"sweep of the miniature ODinW, nano, {CONCURRENT} trials at a time, one thread each, four epochs")
    with scratch(bench.out) as folder:
        size = replace(config.test_size(), num_odinw_train=24, num_odinw_valid=8, num_odinw_test=12)
        world = build_world(size, folder / "world")
        torch.manual_seed(0)
        words = make_vocabulary(vocabulary())
        model = GLIPv2(nano(len(words)))
        checkpoint.save(model, WordPiece(words, model.cfg.max_tokens), folder / "model")
        names = sorted(path.name for path in world.odinw.iterdir())
        for key, flags, datasets in (
            ("kept", ["--sweep.reuse-actors"], names),
            ("each", ["--sweep.no-reuse-actors"], names[:3]),
        ):
            command = [sys.executable, "-m", "jobs.sweep", "few-shot", "--checkpoint", str(folder / "model")]
            command += ["--data", str(world.odinw), "--out", str(folder / key), "--datasets", *datasets, *flags]
            command += ["--sweep.max-epochs", "4", "--sweep.trial.no-strict"]
            spent = run(command, {}, bench.timeout_s)
            found = json.loads((folder / key / "sweep.json").read_text(encoding="utf-8"))
            count, seconds = len(found["trials"]), found["cost"]["trial_seconds"]
            over = CONCURRENT * spent.wall_s - seconds
            results.say(
                f"sweep.{key}.wall_s", spent.wall_s, f"processes {key}: {count} trials, start-up included", " s"
            )
            results.say(f"sweep.{key}.trial_s", seconds / count, "  a trial itself", " s")
            results.say(f"sweep.{key}.over_s", over / count, "  beside it, per trial, start-up included", " s")
