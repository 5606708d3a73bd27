"""Turn captioned URLs into grounding shards with a GLIP teacher.

``python -m jobs.pseudo_label --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.captions import label_captions

if __name__ == "__main__":
    cli.main(label_captions, recipes.CAPTIONS, "Turn captioned URLs into grounding shards with a GLIP teacher.")
