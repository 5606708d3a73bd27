"""Measure a model on a benchmark, or on a COCO-style data set of one's own.

``python -m jobs.evaluate --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import cli, evaluation_recipes
from pipeline.benchmark import evaluate_benchmark

if __name__ == "__main__":
    cli.main(evaluate_benchmark, evaluation_recipes.EVALUATIONS, "Measure a model on a benchmark.")
