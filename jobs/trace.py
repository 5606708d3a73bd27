"""Follow a label back to where it came from, or a source on to every shard and model that has it.

``python -m jobs.trace --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.trace import trace

if __name__ == "__main__":
    cli.main(
        trace, recipes.TRACES, "Follow labels to their sources, and sources to labels and models.", needs_ray=False
    )
