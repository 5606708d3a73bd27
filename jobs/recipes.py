"""Complete, named configurations: functions to be called or derived from, nothing to be merged.

Each docstring says what for, on what hardware, for how long, and what to expect. Flags are for one-off changes; a
change made twice becomes a recipe here. Paths a recipe cannot know (``--out`` and others) are given as flags.
"""

from dataclasses import replace

from glipv2.config import nano
from glipv2.train import OptimConfig
from glipv2.transfer.prompt import PromptTuningConfig
from pipeline.download import DownloadConfig
from pipeline.evaluate import EvaluateConfig
from pipeline.flow import CaptionsConfig, DemoConfig, EvaluateJob, PretrainJob, SweepJob
from pipeline.ingest import IngestConfig
from pipeline.miniature.config import demo_size, test_size
from pipeline.pretrain import PretrainConfig
from pipeline.pseudo_label import PseudoLabelConfig
from pipeline.sweep import SweepConfig


def demo() -> DemoConfig:
    """Walk the whole way on the drawn miniature world.

    ``python -m jobs.demo demo --out /abs/dir``: 2 CPU cores; see the README for minutes and scores.
    """
    return DemoConfig(
        world=demo_size(),
        download=DownloadConfig(image_size_px=128),
        label=PseudoLabelConfig(source="web", num_teachers=2),
        teacher=nano_training(),
        student=student_training(),
        caption_copies=2,
        evaluate=EvaluateConfig(),
        sweep=nano_sweep(),
        sweep_datasets=("FishTank", "LoneHearts", "NightMoons"),
    )


def smoke() -> DemoConfig:
    """Walk the whole way in its smallest size: everything runs, nothing is learned.

    ``python -m jobs.demo smoke --out /abs/dir``: 2 CPU cores, about two minutes; scores are near zero.
    """
    whole = demo()
    return replace(
        whole,
        world=test_size(),
        teacher=replace(whole.teacher, num_steps=8, checkpoint_every=4, log_every=2),
        student=replace(whole.student, num_steps=4, checkpoint_every=4, log_every=2),
        label=replace(whole.label, min_score=0.05),
        sweep=replace(whole.sweep, shots=(1,), seeds=(3,), max_epochs=2),
        sweep_datasets=("LoneHearts",),
    )


def photos() -> CaptionsConfig:
    """Pseudo-label real captioned photos on a CPU, with a small teacher.

    ``python -m jobs.pseudo_label photos --pairs /abs/pairs.tsv --teacher /abs/model --out /abs/dir``: 2 CPU cores,
    about a minute per thousand captions. A nano teacher has only seen drawn shapes: expect few boxes, and poor ones.
    """
    return CaptionsConfig(
        download=DownloadConfig(),
        label=PseudoLabelConfig(num_teachers=2),
    )


def captions_gpu() -> CaptionsConfig:
    """Pseudo-label a large caption list on a cluster: one teacher per GPU, eight GPUs.

    ``python -m jobs.pseudo_label captions-gpu --pairs /abs/cc12m.tsv --teacher /abs/model --out /abs/dir``. Never run
    yet: no GPU was at hand when this was written.
    """
    return CaptionsConfig(
        download=DownloadConfig(num_actors=4),
        label=PseudoLabelConfig(num_teachers=8, num_gpus=1, batch_size=16),
    )


def nano_pretrain() -> PretrainJob:
    """Pre-train the nano model on finished shards.

    ``python -m jobs.pretrain nano --sources /abs/a /abs/b --vocabulary /abs/vocab.txt --out /abs/dir``: 2 CPU cores,
    minutes; the demo's two trainings are of this kind.
    """
    return PretrainJob(pretrain=nano_training())


def nano_evaluate() -> EvaluateJob:
    """Measure a model on one COCO-style data set.

    ``python -m jobs.evaluate coco --model /abs/model --annotations /abs/x.json --images /abs/dir --out /abs/dir``: CPU.
    """
    return EvaluateJob(evaluate=EvaluateConfig())


def few_shot() -> SweepJob:
    """Sweep zero-shot and prompt tuning over ODinW-style data sets on a CPU.

    ``python -m jobs.sweep few-shot --model /abs/model --root /abs/odinw --out /abs/dir``: about 10 s per trial of a
    nano model on 2 CPU cores.
    """
    return SweepJob(sweep=nano_sweep())


def odinw() -> SweepJob:
    """Sweep ODinW-13 as the paper does: 1, 3, 5 and 10 shots, three draws, 200 epochs with early stopping.

    ``python -m jobs.sweep odinw --model /abs/model --root /abs/odinw --out /abs/dir``: meant for GPUs; never run yet.
    """
    return SweepJob(sweep=SweepConfig(shots=(1, 3, 5, 10), num_gpus=1, max_concurrent=8))


def nano_training() -> PretrainConfig:
    """Train a nano model from nothing: rates for a model this small, not those of the paper."""
    return PretrainConfig(
        model=nano(),
        ingest=IngestConfig(batch_size=16),
        optim=OptimConfig(lr=2e-3, text_lr=1e-4, beta2=0.98, warmup_steps=50, decay="cosine"),
        num_steps=700,
    )


def student_training() -> PretrainConfig:
    """Continue from a trained nano model at half its rate."""
    start = nano_training()
    return replace(start, optim=replace(start.optim, lr=1e-3), num_steps=450)


def nano_sweep() -> SweepConfig:
    """Tune a nano model's prompt in seconds."""
    return SweepConfig(
        seeds=(3, 30),
        tuning=PromptTuningConfig(lr=0.02),
        max_epochs=24,
        evaluate_every=4,
        stop_patience=4,
        step_patience=2,
    )


DEMOS = {"demo": demo, "smoke": smoke}
CAPTIONS = {"photos": photos, "captions-gpu": captions_gpu}
PRETRAININGS = {"nano": nano_pretrain}
EVALUATIONS = {"coco": nano_evaluate}
SWEEPS = {"few-shot": few_shot, "odinw": odinw}
