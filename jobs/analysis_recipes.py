"""Recipes of the jobs that look at work done: boxes in pictures, mistakes on a data set, the chain of a run."""

from pipeline.analysis import AnalyseJob
from pipeline.chain import LineageJob
from pipeline.predict import PredictJob


def pictures_predict() -> PredictJob:
    """Find the phrases of a text, or categories, in pictures of one's own.

    ``python -m jobs.predict photos --text "A cat beside a red mug." --checkpoint /abs/model --out /abs/out``, or
    ``--text "cat. red mug"``, or ``--categories cat "red mug"``: a fraction of a second per picture with a nano model
    on a CPU; what larger ones cost is said by ``make bench``. It runs on the GPU if there is one.
    """
    return PredictJob()


def coco_analyse() -> AnalyseJob:
    """Show what a detector gets right and wrong on a COCO-style data set, from its predictions.

    ``python -m jobs.analyse coco --annotations /abs/coco.json --images /abs/dir --predictions /abs/predictions.json
    --out /abs/dir``; with ``--checkpoint /abs/model`` the model is asked for what pictures do not show, too, and with
    ``--absent.names zebra "fire truck"`` for names of your own: one CPU core, not timed on val2017; what the model is
    asked for, as ``jobs.predict``.
    """
    return AnalyseJob()


def run_lineage() -> LineageJob:
    """Tell the chain a run is part of: from the list of URLs to shards, models, measurements and sweeps.

    ``python -m jobs.lineage 4f1c2a9b``, or ``python -m jobs.lineage /abs/out`` with what a job wrote: one CPU core,
    seconds. Stores are those of MLFLOW_TRACKING_URI, or else beside the folder and what it was made of; ``--stores
    /abs/out /abs/other`` names more.
    """
    return LineageJob()


PREDICTIONS = {"": pictures_predict}
"""One recipe without a name: ``jobs.predict`` has pictures where others have a recipe."""
ANALYSES = {"coco": coco_analyse}
LINEAGES = {"": run_lineage}
"""One recipe without a name: ``jobs.lineage`` has a run where others have a recipe."""
