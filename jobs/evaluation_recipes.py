"""Recipes of ``python -m jobs.evaluate``: one per benchmark, each measured as its protocol file says.

What they have in common: ``--checkpoint``, ``--data`` and ``--out`` are absolute; a killed evaluation goes on when the
same command is given again; ``--run.num-workers 8 --run.num-gpus 1 --run.bf16`` spreads it over eight GPUs. Nothing but
the drawn world and samples of real data was at hand: the paper's numbers are what is to be expected, not what was seen.
"""

from collections.abc import Callable

from pipeline.benchmark import BenchmarkJob, FolderJob
from pipeline.benchmark_worker import RunConfig


def coco_val2017() -> BenchmarkJob:
    """Measure box AP on COCO val2017, zero-shot, all 80 names in one prompt.

    ``python -m jobs.evaluate coco-val2017 --checkpoint /abs/model --data /abs/coco --out /abs/dir``, with
    ``annotations/instances_val2017.json`` and ``val2017/`` in the data: 5,000 forward passes. GLIPv2-T: 47.3.
    """
    return BenchmarkJob(benchmark="coco-val2017")


def lvis_minival() -> BenchmarkJob:
    """Measure fixed AP on LVIS minival, zero-shot, 1,203 names in prompts of 40; standard AP is told too.

    ``python -m jobs.evaluate lvis-minival --checkpoint /abs/model --data /abs/coco --out /abs/dir``, with
    ``annotations/lvis_v1_minival_inserted_image_name.json``, ``val2017/`` and ``train2017/`` in the data: 4,809 images
    encoded once, and 31 prompts asked of each. GLIPv2-T: 29.0.
    """
    return BenchmarkJob(benchmark="lvis-minival", run=RunConfig(batch_size=4, rows_per_block=16))


def lvis_minival_packed() -> BenchmarkJob:
    """Measure LVIS minival with as many names in a prompt as fit: faster, and another benchmark.

    ``python -m jobs.evaluate lvis-minival-packed --checkpoint /abs/model --data /abs/coco --out /abs/dir``: as
    ``lvis-minival`` with a third to a half of its prompts. No paper reports it.
    """
    return BenchmarkJob(benchmark="lvis-minival-packed", run=RunConfig(batch_size=4, rows_per_block=16))


def flickr30k_test() -> BenchmarkJob:
    """Measure recall of phrase grounding on the test split of Flickr30k Entities, any-box and merged-box.

    ``python -m jobs.evaluate flickr30k-test --checkpoint /abs/model --data /abs/flickr30k --out /abs/dir``, with
    ``flickr30k_entities/`` (``Annotations``, ``Sentences``, ``test.txt``) and ``flickr30k-images/`` in the data: 1,000
    images, five sentences each. GLIPv2-T: R@1 86.0.
    """
    return BenchmarkJob(benchmark="flickr30k-test")


def voc2007_test() -> BenchmarkJob:
    """Measure mAP on Pascal VOC 2007 test, by the eleven points of 2007 and by the area.

    ``python -m jobs.evaluate voc2007-test --checkpoint /abs/model --data /abs/VOCdevkit --out /abs/dir``: 4,952 images.
    """
    return BenchmarkJob(benchmark="voc2007-test")


def odinw13() -> BenchmarkJob:
    """Measure the mean AP on ODinW-13 as the paper does: test splits, prompts written by hand for six sets.

    ``python -m jobs.evaluate odinw13 --checkpoint /abs/model --data /abs/odinw --out /abs/dir``, the data being the
    folder in which ``PascalVOC``, ``Aquarium`` and the others lie: 4,575 images, 3,422 of them VOC's. GLIPv2-T: 48.5.
    """
    return BenchmarkJob(benchmark="odinw13")


def odinw13_val_raw() -> BenchmarkJob:
    """Measure ODinW-13 on the validation splits with the names as they are: not what the paper reports.

    ``python -m jobs.evaluate odinw13-val-raw --checkpoint /abs/model --data /abs/odinw --out /abs/dir``. GLIP-T (C)
    has 39.2 here by mmdetection, and 44.4 as the paper measures.
    """
    return BenchmarkJob(benchmark="odinw13-val-raw")


def odinw35() -> BenchmarkJob:
    """Measure the mean AP on ODinW-35: the thirteen of ``odinw13``, and 22 more by the names in their json.

    ``python -m jobs.evaluate odinw35 --checkpoint /abs/model --data /abs/odinw --out /abs/dir``: as ``odinw13``.
    """
    return BenchmarkJob(benchmark="odinw35")


def miniature() -> BenchmarkJob:
    """Measure the columns of the paper's tables on the drawn world: COCO-, LVIS- and Flickr30k-like, novel nouns.

    ``python -m jobs.evaluate miniature --checkpoint /abs/model --data /abs/demo/world --out /abs/dir``: a nano model,
    2 CPU cores, a minute or two at the demo's size.
    """
    return BenchmarkJob(benchmark="miniature", run=RunConfig(num_workers=2))


def miniature_odinw() -> BenchmarkJob:
    """Measure the mean AP on the thirteen small sets of the drawn world.

    ``python -m jobs.evaluate miniature-odinw --checkpoint /abs/model --data /abs/demo/world --out /abs/dir``: as
    ``miniature``.
    """
    return BenchmarkJob(benchmark="miniature-odinw", run=RunConfig(num_workers=2))


def own() -> BenchmarkJob:
    """Measure a benchmark of your own: a yaml file in the form of those in ``pipeline/protocols``.

    ``python -m jobs.evaluate own --benchmark /abs/mine.yaml --checkpoint /abs/model --data /abs/root --out /abs/dir``.
    """
    return BenchmarkJob(benchmark="")


def folder() -> FolderJob:
    """Measure a data set of your own: a COCO json and its images, all its names looked for.

    ``python -m jobs.evaluate folder --checkpoint /abs/model --annotations /abs/x.json --images /abs/dir --out
    /abs/dir``, with ``--metric lvis-fixed`` for an LVIS json: any machine.
    """
    return FolderJob()


EVALUATIONS: dict[str, Callable[[], BenchmarkJob | FolderJob]] = {
    "coco-val2017": coco_val2017,
    "lvis-minival": lvis_minival,
    "lvis-minival-packed": lvis_minival_packed,
    "flickr30k-test": flickr30k_test,
    "voc2007-test": voc2007_test,
    "odinw13": odinw13,
    "odinw13-val-raw": odinw13_val_raw,
    "odinw35": odinw35,
    "miniature": miniature,
    "miniature-odinw": miniature_odinw,
    "own": own,
    "folder": folder,
}
