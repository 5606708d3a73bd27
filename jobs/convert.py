"""Turn weights of the public GLIP into a model folder.

``python -m jobs.convert --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.convert import convert

if __name__ == "__main__":
    cli.main(convert, recipes.CONVERSIONS, "Turn weights of the public GLIP into a model folder.", needs_ray=False)
