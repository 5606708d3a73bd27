"""Train and measure the paper's ablations on the miniature world.

``python -m jobs.ablate --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.ablate import ablate

if __name__ == "__main__":
    cli.main(
        ablate, recipes.ABLATIONS, "Which losses help, how many captions, masking or not: beside the paper's tables."
    )
