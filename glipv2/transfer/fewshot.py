"""Few-shot draws: the fewest images, at random, that show every category often enough (GLIP appendix E.3).

The public reference walks the images in id order whatever the seed; here the seed decides the order.
"""

import random
from collections.abc import Sequence


def sample_few_shot(categories_per_image: Sequence[frozenset[int]], shots: int, seed: int) -> list[int]:
    """Draw images until every category is in ``shots`` of them.

    Images are visited in random order; one is taken if it shows a category that is still short, and then counts for
    all its categories. A category that fewer than ``shots`` images show has all of them.

    Args:
        categories_per_image: The categories each image shows; how often in one image does not matter.
        shots: Images per category.
        seed: Decides the order.

    Returns:
        Ascending indices into ``categories_per_image``.
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}, allowed: 1 or more; zero-shot needs no draw")
    missing = dict.fromkeys(frozenset().union(*categories_per_image), shots)
    order = list(range(len(categories_per_image)))
    random.Random(seed).shuffle(order)
    taken = []
    for index in order:
        shown = categories_per_image[index]
        if any(missing[category] > 0 for category in shown):
            taken.append(index)
            for category in shown:
                missing[category] -= 1
    return sorted(taken)
