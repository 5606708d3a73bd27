"""Recipes of few-shot transfer: sweeps over data sets in ODinW's layout."""

from pipeline.flow import SweepJob
from pipeline.sweep import SearchConfig, SweepConfig
from pipeline.trial import ALL, TrialConfig


def few_shot() -> SweepJob:
    """Sweep zero-shot and prompt tuning of a nano model on a CPU.

    ``python -m jobs.sweep few-shot --checkpoint /abs/model --data /abs/odinw --out /abs/dir``: about 10 s per trial on
    2 CPU cores. ``--sweep.modes prompt full linear`` tunes in other ways too.
    """
    return SweepJob(sweep=nano_sweep())


def nano_full() -> SweepJob:
    """Tune all of a nano model to a small real data set, at 320 px on a CPU.

    ``python -m jobs.sweep nano-full --checkpoint /abs/model --data /abs/odinw --datasets bccd --out /abs/dir``: nine
    minutes of a core for 72 images, and as many data sets at a time as ``--sweep.max-concurrent`` says (2). From a
    model that had seen the drawn world alone, 700 steps: BCCD, 3 classes, AP 44.6 and AP50 81.9 on test (2.6 untuned).
    Aquarium, 60 images of 7 classes with small objects: AP 3.3 and AP50 9.7 (0.4 untuned); 6.0 and 18.6 with
    ``--sweep.max-epochs 108``. Measured on 2 virtual cores (Intel Xeon), 2026-11-29, one seed.
    """
    sweep = SweepConfig(
        modes=("full",),
        shots=(ALL,),
        seeds=(3,),
        lr=1e-3,
        text_lr=1e-4,
        decay="cosine",
        max_epochs=36,
        evaluate_every=4,
        # Descriptions would be spelled letter by letter: their words are not in a miniature vocabulary.
        trial=TrialConfig(short_side_px=320, use_paper_prompts=False, keep_models=True),
    )
    return SweepJob(sweep=sweep)


def odinw13() -> SweepJob:
    """Sweep ODinW-13: prompt, full and linear tuning with 1, 3, 5, 10 shots and all data, three draws.

    ``python -m jobs.sweep odinw13 --checkpoint /abs/model --data /abs/odinw --out /abs/dir``: GPUs, one trial on each;
    never run with one. ``--sweep.max-concurrent`` says how many there are. All 13 data sets must be there, as the
    paper's mean is over them.
    """
    trial = TrialConfig(num_gpus=1, batch_size=8, averages=(0.25, 0.5, 0.75))
    sweep = SweepConfig(modes=("prompt", "full", "linear"), trial=trial, max_concurrent=8)
    return SweepJob(protocol="odinw13", sweep=sweep)


def odinw13_search() -> SweepJob:
    """Search learning rate and weight decay of prompt tuning on ODinW-13: nine pairs, early stopping.

    ``python -m jobs.sweep odinw13-search --checkpoint /abs/model --data /abs/odinw --out /abs/dir``: GPUs, two trials
    on each; never run with one.
    """
    search = SearchConfig(lr_times=(0.1, 0.3, 1.0), decay_times=(0.1, 0.3, 1.0), stop_early=True)
    trial = TrialConfig(num_gpus=0.5, batch_size=8)
    return SweepJob(protocol="odinw13", sweep=SweepConfig(search=search, trial=trial, max_concurrent=16))


def nano_sweep() -> SweepConfig:
    """Tune a nano model's prompt in seconds."""
    return SweepConfig(shots=(1, 3), seeds=(3, 30), lr=0.02, max_epochs=24, evaluate_every=4)


SWEEPS = {"few-shot": few_shot, "nano-full": nano_full, "odinw13": odinw13, "odinw13-search": odinw13_search}
