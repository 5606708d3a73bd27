"""Walk the whole way: from captioned URLs to a compared few-shot sweep.

``python -m jobs.demo --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.flow import demo

if __name__ == "__main__":
    cli.main(demo, recipes.DEMOS, "Walk the whole way: from captioned URLs to a compared few-shot sweep.")
