"""Tell what a run was made of, back to the list of URLs, and what was made of it.

``python -m jobs.lineage RUN``: the id of an MLflow run or its beginning, or a folder that a job wrote; ``--help`` lists
the flags.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jobs import analysis_recipes, cli
from pipeline.chain import lineage

DESCRIPTION = "Tell the chain a run is part of: python -m jobs.lineage RUN [flags]"


def arguments(given: Sequence[str]) -> list[str]:
    """Put the run behind its flag, a folder absolute, and the one recipe, which has no name, before all."""
    if not given or given[0].startswith("-"):
        return ["", *given]
    run = str(Path(given[0]).absolute()) if Path(given[0]).exists() else given[0]
    return ["", "--run", run, *given[1:]]


if __name__ == "__main__":
    sys.argv[1:] = arguments(sys.argv[1:])
    cli.main(lineage, analysis_recipes.LINEAGES, DESCRIPTION, needs_ray=False)
