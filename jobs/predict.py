"""Find categories, or the phrases of a caption, in one's own pictures.

``python -m jobs.predict --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.predict import predict

if __name__ == "__main__":
    cli.main(predict, recipes.PREDICTIONS, "Find categories, or a caption's phrases, in pictures.", needs_ray=False)
