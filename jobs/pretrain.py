"""Pre-train GLIPv2 on grounding shards.

``python -m jobs.pretrain --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.flow import pretrain_alone

if __name__ == "__main__":
    cli.main(pretrain_alone, recipes.PRETRAININGS, "Pre-train GLIPv2 on grounding shards.")
