"""Few-shot draws: the fewest images, at random, that show every category often enough (GLIP appendix E.3).

The public reference walks the images in id order whatever the seed; here the seed decides the order.
"""

import random
from collections import Counter
from collections.abc import Hashable, Sequence


def sample_few_shot(
    categories_per_image: Sequence[frozenset[Hashable]], shots: int, seed: int, *, strict: bool = True
) -> list[int]:
    """Draw images until every category is in ``shots`` of them.

    Images are visited in random order; one is taken if it shows a category that is still short, and then counts for
    all its categories.

    Args:
        categories_per_image: The categories each image shows, called as an error is to call them; how often in one
            image does not matter.
        shots: Images per category.
        seed: Decides the order.
        strict: Refuse a category that fewer than ``shots`` images show; else it has all of them.

    Returns:
        Ascending indices into ``categories_per_image``.

    Raises:
        ValueError: ``shots`` is less than one, or a category is too rare.
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}, allowed: 1 or more; zero-shot needs no draw")
    shown = Counter(category for categories in categories_per_image for category in categories)
    rare = {category: count for category, count in sorted(shown.items(), key=str) if count < shots}
    if strict and rare:
        counts = ", ".join(f"{category} in {count}" for category, count in rare.items())
        raise ValueError(
            f"{shots} shots want every category in {shots} images, but there is category {counts}; give at most "
            f"{min(rare.values())} shots, or allow fewer with strict=False"
        )
    missing = dict.fromkeys(shown, shots)
    order = list(range(len(categories_per_image)))
    random.Random(seed).shuffle(order)
    taken = []
    for index in order:
        if any(missing[category] > 0 for category in categories_per_image[index]):
            taken.append(index)
            for category in categories_per_image[index]:
                missing[category] -= 1
    return sorted(taken)
