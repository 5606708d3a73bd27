"""Sweep few-shot transfer over data sets in ODinW's layout.

``python -m jobs.sweep --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import cli, transfer_recipes
from pipeline.flow import sweep_alone

if __name__ == "__main__":
    cli.main(sweep_alone, transfer_recipes.SWEEPS, "Sweep few-shot transfer over data sets in ODinW's layout.")
