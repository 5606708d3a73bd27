"""Turn human-labelled data of any known format into grounding shards.

``python -m jobs.import_data --help`` lists the formats, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.import_data import import_data

if __name__ == "__main__":
    cli.main(import_data, recipes.IMPORTS, "Turn human-labelled data into grounding shards.", needs_ray=False)
