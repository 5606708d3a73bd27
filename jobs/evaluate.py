"""Measure a model on a COCO-style data set.

``python -m jobs.evaluate --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.flow import evaluate_alone

if __name__ == "__main__":
    cli.main(evaluate_alone, recipes.EVALUATIONS, "Measure a model on a COCO-style data set.")
