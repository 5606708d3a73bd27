"""Tell what a large run will take, before there is one: machines, hours, bytes, memory, money. Starts nothing.

``python -m jobs.plan --pairs 16M --teacher glip-l``: without a recipe's name it is ``captions``; ``--help`` lists the
recipes, and after one its flags.
"""

import sys

from jobs import cli, plan_recipes
from pipeline.plan import plan

DESCRIPTION = "Tell what a large run will take, and where each figure comes from."


def arguments(given: list[str]) -> list[str]:
    """Put the first recipe before flags that come without one."""
    bare = bool(given) and given[0].startswith("-") and given[0] not in ("-h", "--help")
    return ["captions", *given] if bare else given


if __name__ == "__main__":
    sys.argv[1:] = arguments(sys.argv[1:])
    cli.main(plan, plan_recipes.PLANS, DESCRIPTION, needs_ray=False)
