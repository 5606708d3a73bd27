"""Complete, named configurations: functions to be called or derived from, nothing to be merged.

Each docstring says what for, on what hardware, for how long, and what to expect. Flags are for one-off changes; a
change made twice becomes a recipe here. Paths a recipe cannot know (``--out`` and others) are given as flags.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from glipv2.config import ModelConfig, b, glip_l, glip_t, glip_t_a, h, nano, t
from glipv2.losses.criterion import LossConfig
from glipv2.optim import OptimConfig
from jobs.transfer_recipes import nano_sweep
from pipeline import data_lint
from pipeline.ablate import AblateConfig
from pipeline.captions import CaptionsConfig
from pipeline.convert import ConvertJob
from pipeline.data_lint import LintDataJob
from pipeline.download import DownloadConfig
from pipeline.evaluate import EvaluateConfig
from pipeline.export import ExportConfig, ExportJob
from pipeline.flow import DemoConfig, PretrainJob
from pipeline.guards import GuardConfig, GuardJob
from pipeline.import_data import ImportJob
from pipeline.ingest import IngestConfig
from pipeline.miniature.config import demo_size, full_size, test_size
from pipeline.mixture import OrderConfig
from pipeline.pretrain import PretrainConfig
from pipeline.pseudo_label import PseudoLabelConfig
from pipeline.score import ScoreJob
from pipeline.sources import formats
from pipeline.trace import TraceJob
from pipeline.vocabulary import VocabularyJob

Job = TypeVar("Job")


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
    """Pseudo-label captioned photos on a CPU, with a small teacher.

    ``python -m jobs.pseudo_label photos --pairs /abs/pairs.tsv --teacher /abs/model --out /abs/dir``: 2 CPU cores,
    about a minute per thousand captions. A nano teacher has only seen drawn shapes: expect few boxes, and poor ones.
    """
    return CaptionsConfig(
        download=DownloadConfig(),
        label=PseudoLabelConfig(num_teachers=2),
    )


def captions_gpu() -> CaptionsConfig:
    """Pseudo-label a large caption list on a cluster: one teacher per GPU, eight GPUs, four nodes' fetchers.

    ``python -m jobs.pseudo_label captions-gpu --pairs s3://bucket/cc12m.tsv --teacher /abs/model --out s3://bucket/cap``.
    Never run yet: no GPU was at hand when this was written.
    """
    return CaptionsConfig(
        mix_rows=100_000,
        download=DownloadConfig(num_actors=8, node_resource="download"),
        label=PseudoLabelConfig(num_teachers=8, num_gpus=1, batch_size=16, rows_per_block=1000, node_resource="label"),
    )


def guard_directory() -> GuardJob:
    """Keep evaluation pictures and pictures of the same bytes out of a finished directory of images or labels.

    ``python -m jobs.guard bytes --source /abs/images --out /abs/guarded --guard.eval-images coco=/abs/val2017
    lvis=/abs/lvis``: one CPU core, some 6 s per million rows and 30 s more per hundred thousand evaluation pictures,
    plus the writing.
    """
    return GuardJob()


def guard_alike() -> GuardJob:
    """Keep out pictures that only look alike too.

    ``python -m jobs.guard alike --source /abs/images --out /abs/guarded``: some 10 s per million rows. The more rows,
    the more strangers are alike: above some millions add ``--guard.duplicate-distance 0``.
    """
    return GuardJob(guard=GuardConfig(duplicates="alike"))


def trace_shards() -> TraceJob:
    """Follow a row to its source, or find (and drop) what came from a source.

    ``python -m jobs.trace shards --shards /abs/labels --key 17 --box 0``, or ``--find.hosts example.org``, and to write
    the directories anew without it ``--drop --out /abs/clean``: one CPU core, some 3 s per million rows.
    """
    return TraceJob()


def export_chosen() -> ExportJob:
    """Export the boxes training would use.

    ``python -m jobs.export chosen --labels /abs/labels --out /abs/coco``, ``--export.format odvg`` for mmdetection's
    format: one CPU core, minutes per million rows, mostly for the image files.
    """
    return ExportJob()


def export_all() -> ExportJob:
    """Export every stored box with its score, to choose elsewhere.

    ``python -m jobs.export all --labels /abs/labels --out /abs/coco``: as ``chosen``.
    """
    return ExportJob(export=ExportConfig(all_boxes=True))


def nano_pretrain() -> PretrainJob:
    """Pre-train the nano model on finished shards.

    ``python -m jobs.pretrain nano --sources /abs/a /abs/b --vocabulary /abs/vocab.txt --out /abs/dir``: 2 CPU cores,
    minutes; the demo's two trainings are of this kind.
    """
    return PretrainJob(pretrain=nano_training())


def nano_all_pretrain() -> PretrainJob:
    """Pre-train the nano model with all four losses of GLIPv2.

    ``python -m jobs.pretrain nano-all --sources /abs/a /abs/b --vocabulary /abs/vocab.txt --out /abs/dir``: 2 CPU
    cores, minutes. ``--pretrain.losses.inter 0`` or ``--pretrain.losses.mlm 0`` leaves one of the further two out.
    """
    start = nano_training()
    return PretrainJob(
        pretrain=replace(
            start,
            model=replace(start.model, contrast="paper", word_head=True),
            ingest=replace(start.ingest, mask_words=0.15),
            losses=LossConfig(inter=1.0, mlm=1.0),
        )
    )


def t_pretrain() -> PretrainJob:
    """Pre-train GLIPv2-T as the paper does, from GLIP-T's weights: 32 GPUs, batch 64, 330,000 steps, all four losses.

    ``python -m jobs.pretrain t --init /abs/glip-t --vocabulary /abs/vocab.txt --sources /abs/a /abs/b --out /abs/dir
    --val-annotations /abs/val2017.json --val-images /abs/val2017``, the first two of ``jobs.convert``. The paper: 47.3
    AP on COCO val, zero-shot. Never run: no such cluster was at hand. At the speed GLIP's paper gives for V100s it
    takes five days.
    """
    return PretrainJob(pretrain=paper_training())


def t_stage2_pretrain() -> PretrainJob:
    """Go on with GLIPv2-T for 300,000 steps without masked words, on human boxes alone, as the paper's second stage.

    ``python -m jobs.pretrain t-stage2 --init /abs/stage1/model/model --vocabulary /abs/vocab.txt --sources /abs/o365
    /abs/gold --out /abs/dir``: 32 GPUs. Never run.
    """
    return PretrainJob(pretrain=without_masked_words(paper_training(), 300_000))


def b_pretrain() -> PretrainJob:
    """Pre-train GLIPv2-B as the paper does: 64 GPUs, batch 64, a million steps at one rate for all parts.

    ``python -m jobs.pretrain b --vocabulary /abs/clip --sources /abs/a … --copies 8 4 2 … --out /abs/dir``; the copies
    of GLIP-L: Flickr30k 8, mixed 4, Objects365 2, Visual Genome 3, ImageNet boxes 2, OpenImages 1. Without UniCL's
    weights, which are not public in this form, it starts from nothing. Never run.
    """
    return PretrainJob(pretrain=large_training(b()))


def b_stage2_pretrain() -> PretrainJob:
    """Go on with GLIPv2-B for 500,000 steps without masked words, on human boxes alone.

    ``python -m jobs.pretrain b-stage2 --init /abs/stage1/model/model --vocabulary /abs/clip --sources … --out /abs/d``
    on 64 GPUs. Never run.
    """
    return PretrainJob(pretrain=without_masked_words(large_training(b()), 500_000))


def h_pretrain() -> PretrainJob:
    """Pre-train GLIPv2-H as the paper does: 64 GPUs, batch 64, a million steps; weights split among workers (FSDP2).

    ``python -m jobs.pretrain h --vocabulary /abs/clip --sources /abs/a … --out /abs/dir``: as ``b``. Never run.
    """
    return PretrainJob(pretrain=replace(large_training(h()), strategy="fsdp2"))


def t_spot_pretrain() -> PretrainJob:
    """Pre-train GLIPv2-T on machines that may be taken away: as ``t``, with 8 to 32 workers as there are.

    ``python -m jobs.pretrain t-spot --checkpoints s3://bucket/t …`` and the flags of ``t``. When workers are lost it
    goes on with those that are left from the last checkpoint, 500 steps ago at most, and grows again. Never run.
    """
    start = paper_training()
    return PretrainJob(
        pretrain=replace(
            start,
            min_workers=8,
            checkpoint_every=500,
            max_failures=1000,
            node_resource="label",
        )
    )


def paper_training() -> PretrainConfig:
    """Schedule of GLIPv2-T's first stage (appendix C), with GLIP's reference settings where the paper is silent."""
    return PretrainConfig(
        model=t(),
        ingest=IngestConfig(
            batch_size=64,
            short_sides_px=(480, 560, 640, 720, 800),
            pack_negatives=True,
            mask_words=0.15,
            order=OrderConfig(bucket_batches=16),
        ),
        optim=OptimConfig(
            lr=1e-4, text_lr=1e-5, weight_decay=1e-4, warmup_steps=2000, decay_at=(0.67, 0.89), ema_decay=0.999
        ),
        losses=LossConfig(inter=1.0, mlm=1.0),
        num_steps=330_000,
        num_workers=32,
        use_gpu=True,
        node_resource="train",
        bf16=True,
        recompute=True,
        loader_processes=4,
        checkpoint_every=2500,
        log_every=20,
        max_failures=20,
    )


def large_training(model: ModelConfig) -> PretrainConfig:
    """Schedule of GLIPv2-B and H (appendix C), with GLIP-L's weight decay."""
    start = paper_training()
    optim = replace(start.optim, text_lr=1e-4, weight_decay=0.01, weight_decay_drops=True)
    return replace(start, model=model, optim=optim, num_steps=1_000_000, num_workers=64)


def without_masked_words(start: PretrainConfig, num_steps: int) -> PretrainConfig:
    """Second stage: the same without L_mlm, for so many steps."""
    ingest, losses = replace(start.ingest, mask_words=0.0), replace(start.losses, mlm=0.0)
    return replace(start, ingest=ingest, losses=losses, num_steps=num_steps)


def ablate_full() -> AblateConfig:
    """Repeat the paper's ablations with three seeds on the full miniature world.

    ``python -m jobs.ablate full --out /abs/dir``: two and a half hours on two CPU cores that do nothing else;
    ``--minutes 9`` does a piece at a time.
    """
    return AblateConfig(
        world=full_size(),
        download=DownloadConfig(image_size_px=128),
        label=PseudoLabelConfig(source="web", num_teachers=1),
        teacher=replace(nano_training(), num_workers=1, num_steps=800),
        student=replace(student_training(), num_workers=1, num_steps=600),
    )


def ablate_quick() -> AblateConfig:
    """Ask with one seed, in a quarter of an hour, whether captions and masking help: part of ``make bench``.

    ``python -m jobs.ablate quick --out /abs/dir``: two CPU cores.
    """
    whole = ablate_full()
    return replace(
        whole,
        world=demo_size(),
        teacher=replace(whole.teacher, num_steps=400),
        student=replace(whole.student, num_steps=200),
        seeds=(0,),
        rows=("no captions", "many captions", "many captions, unboxed phrases taught as absent"),
    )


def ablate_generations() -> AblateConfig:
    """Let the student become the teacher and label again; the table says whether that helped.

    ``python -m jobs.ablate generations --out /abs/dir``: the last row of ``full``; in the same folder as ``full`` it
    repeats nothing.
    """
    return replace(ablate_full(), rows=("second generation",))


def ablate_smoke() -> AblateConfig:
    """Walk through the ablations in their smallest size: everything runs, nothing is learned.

    ``python -m jobs.ablate smoke --out /abs/dir``: two CPU cores.
    """
    whole = ablate_full()
    return replace(
        whole,
        world=test_size(),
        label=replace(whole.label, min_score=0.05),
        teacher=replace(whole.teacher, num_steps=4),
        student=replace(whole.student, num_steps=2),
        seeds=(0,),
    )


def nano_vocabulary() -> VocabularyJob:
    """Learn a vocabulary for a nano model from captions and category names.

    ``python -m jobs.vocabulary nano --pairs /abs/pairs.tsv --sources /abs/a --out /abs/vocab.txt``, either or both: one
    CPU core, seconds per hundred thousand captions.
    """
    return VocabularyJob()


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


def convert_glip_t() -> ConvertJob:
    """Convert GLIP-T, (B) or (C).

    ``python -m jobs.convert glip-t --weights /abs/file.pth --vocabulary /abs/vocab.txt --out /abs/model``: CPU, a
    minute, memory for the file once. ``--weights owner/repo`` takes it from the Hugging Face hub.
    """
    return ConvertJob(model=glip_t(), hub_filename="glip_tiny_model_o365_goldg_cc_sbu.pth")


def convert_glip_t_a() -> ConvertJob:
    """Convert GLIP-T (A), the one without deep fusion.

    ``python -m jobs.convert glip-t-a --weights /abs/file.pth --vocabulary /abs/vocab.txt --out /abs/model``: CPU.
    """
    return ConvertJob(model=glip_t_a(), hub_filename="glip_a_tiny_o365.pth")


def convert_glip_l() -> ConvertJob:
    """Convert GLIP-L.

    ``python -m jobs.convert glip-l --weights /abs/file.pth --vocabulary /abs/vocab.txt --out /abs/model``: CPU.
    """
    return ConvertJob(model=glip_l(), hub_filename="glip_large_model.pth")


def convert_t() -> ConvertJob:
    """Start GLIPv2-T from GLIP-T's weights, as the paper does; the heads GLIPv2 adds start at random.

    ``python -m jobs.convert t --weights /abs/file.pth --vocabulary /abs/vocab.txt --out /abs/model``: CPU. For B and H
    there is nothing to convert: no weights with their text encoder were ever released.
    """
    return replace(convert_glip_t(), model=t(), init_missing_heads=True)


def coco_bbox_score() -> ScoreJob:
    """Score boxes as COCO does: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl.

    ``python -m jobs.score coco-bbox --truth /abs/instances.json --predictions /abs/results.json``: one CPU core,
    not timed on val2017.
    """
    return ScoreJob(metric="coco-bbox")


def coco_segm_score() -> ScoreJob:
    """Score masks as COCO does.

    ``python -m jobs.score coco-segm --truth /abs/instances.json --predictions /abs/results.json``: as ``coco-bbox``.
    """
    return ScoreJob(metric="coco-segm")


def lvis_score() -> ScoreJob:
    """Score as LVIS does, 300 detections per image: AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@300 and more.

    ``python -m jobs.score lvis --truth /abs/lvis_v1_minival.json --predictions /abs/results.json``, ``--masks`` for
    masks: one CPU core, not timed on minival.
    """
    return ScoreJob(metric="lvis")


def lvis_fixed_score() -> ScoreJob:
    """Score as LVIS does, but the best 10,000 detections of every category instead of 300 per image (fixed AP).

    ``python -m jobs.score lvis-fixed --truth /abs/lvis_v1_minival.json --predictions /abs/results.json``: as ``lvis``.
    """
    return ScoreJob(metric="lvis-fixed")


def flickr30k_any_score() -> ScoreJob:
    """Score phrase grounding on Flickr30k Entities, any box of a phrase being right: R@1, R@5, R@10, and by type.

    ``python -m jobs.score flickr30k-any --truth /abs/flickr30k_entities --predictions /abs/found.json``, the latter a
    list of ``{image_id, sentence_id, boxes: [[[x1, y1, x2, y2], ...], ...]}`` with a ranked list of boxes for each
    phrase that has boxes; ``--subset val`` for another list than ``test.txt``: one CPU core.
    """
    return ScoreJob(metric="flickr30k-any")


def flickr30k_merged_score() -> ScoreJob:
    """Score phrase grounding on Flickr30k Entities against the box around all boxes of a phrase.

    ``python -m jobs.score flickr30k-merged --truth /abs/flickr30k_entities --predictions /abs/found.json``: as
    ``flickr30k-any``.
    """
    return ScoreJob(metric="flickr30k-merged")


def voc_score() -> ScoreJob:
    """Score as Pascal VOC does: mAP and AP_<class> by the area, mAP07 and AP07_<class> by the eleven points of 2007.

    ``python -m jobs.score voc --truth /abs/VOC2007 --predictions /abs/results``, a folder of ``comp4_det_*.txt``, or a
    json list of ``{image_id, category, bbox [xmin, ymin, xmax - xmin, ymax - ymin], score}`` with names instead of
    numbers: one CPU core.
    """
    return ScoreJob(metric="voc")


def of_format(job: Callable[..., Job], name: str, blank: object, doc: str) -> Callable[[], Job]:
    """Make the recipe of a format of human-labelled data: they differ in nothing but the flags of its source."""

    def recipe() -> Job:
        return job(format=name, data=blank)

    recipe.__doc__ = doc
    return recipe


DEMOS = {"demo": demo, "smoke": smoke}
CAPTIONS = {"photos": photos, "captions-gpu": captions_gpu}
GUARDS = {"bytes": guard_directory, "alike": guard_alike}
TRACES = {"shards": trace_shards}
EXPORTS = {"chosen": export_chosen, "all": export_all}
PRETRAININGS = {
    "nano": nano_pretrain,
    "nano-all": nano_all_pretrain,
    "t": t_pretrain,
    "t-stage2": t_stage2_pretrain,
    "t-spot": t_spot_pretrain,
    "b": b_pretrain,
    "b-stage2": b_stage2_pretrain,
    "h": h_pretrain,
}
ABLATIONS = {
    "full": ablate_full,
    "quick": ablate_quick,
    "generations": ablate_generations,
    "smoke": ablate_smoke,
}
VOCABULARIES = {"nano": nano_vocabulary}
CONVERSIONS = {"glip-t": convert_glip_t, "glip-t-a": convert_glip_t_a, "glip-l": convert_glip_l, "t": convert_t}
SCORES = {
    "coco-bbox": coco_bbox_score,
    "coco-segm": coco_segm_score,
    "lvis": lvis_score,
    "lvis-fixed": lvis_fixed_score,
    "flickr30k-any": flickr30k_any_score,
    "flickr30k-merged": flickr30k_merged_score,
    "voc": voc_score,
}
IMPORTS = {
    name: of_format(
        ImportJob,
        name,
        chosen.blank,
        f"Import {chosen.title}.\n\n"
        f"``python -m jobs.import_data {name} {formats.needed_flags(chosen.blank)} --out /abs/dir``; "
        f"``--data.source`` and ``--data.split`` name the set: one CPU core.",
    )
    for name, chosen in formats.FORMATS.items()
}
LINTS = {
    name: of_format(
        LintDataJob,
        name,
        linted.blank,
        f"Look for mistakes in {linted.title}.\n\n"
        f"``python -m jobs.lint_data {name} {formats.needed_flags(linted.blank)}``: "
        f"one CPU core; ``--no-open-images`` leaves out what takes longest.",
    )
    for name, linted in data_lint.LINTED.items()
}
