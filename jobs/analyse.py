"""Show what a detector gets right and wrong, from its predictions.

``python -m jobs.analyse --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import analysis_recipes, cli
from pipeline.analysis import analyse

if __name__ == "__main__":
    cli.main(analyse, analysis_recipes.ANALYSES, "Show what a detector gets right and wrong.", needs_ray=False)
