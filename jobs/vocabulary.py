"""Learn a tokenizer's vocabulary from captions and category names.

``python -m jobs.vocabulary --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.vocabulary import learn_vocabulary

if __name__ == "__main__":
    cli.main(learn_vocabulary, recipes.VOCABULARIES, "Learn a vocabulary from captions and names.", needs_ray=False)
