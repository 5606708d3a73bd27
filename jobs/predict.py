"""Find the phrases of a text, or categories, in one's own pictures.

``python -m jobs.predict photos --text "A cat beside a red mug." --checkpoint /abs/model --out /abs/out``: pictures and
folders of pictures come first, ``--help`` lists the flags.
"""

import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from jobs import analysis_recipes, cli
from pipeline.predict import predict

DESCRIPTION = "Find a text's phrases, or categories, in pictures: python -m jobs.predict PICTURES [flags]"


def arguments(given: Sequence[str]) -> list[str]:
    """Put the pictures behind their flag, absolute, and the one recipe, which has no name, before all."""
    pictures = list(takewhile(lambda argument: not argument.startswith("-"), given))
    images = ["--images", *(str(Path(picture).absolute()) for picture in pictures)] if pictures else []
    return ["", *images, *given[len(pictures) :]]


if __name__ == "__main__":
    sys.argv[1:] = arguments(sys.argv[1:])
    cli.main(predict, analysis_recipes.PREDICTIONS, DESCRIPTION, needs_ray=False)
