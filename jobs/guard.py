"""Keep pictures of evaluation sets, and pictures already there, out of a finished directory.

``python -m jobs.guard --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.guards import guard_alone

if __name__ == "__main__":
    cli.main(guard_alone, recipes.GUARDS, "Keep evaluation pictures and duplicates out of shards.", needs_ray=False)
