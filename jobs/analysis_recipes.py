"""Recipes of the jobs that look at a model's work: its boxes in pictures, and its mistakes on a data set."""

from pipeline.analysis import AnalyseJob
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


PREDICTIONS = {"": pictures_predict}
"""One recipe without a name: ``jobs.predict`` has pictures where others have a recipe."""
ANALYSES = {"coco": coco_analyse}
