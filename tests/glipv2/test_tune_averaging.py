"""Weights between the original and the tuned model."""

import pytest
import torch

from glipv2.transfer.averaging import interpolate

ORIGINAL = {"weight": torch.tensor([1.0, -3.3]), "count": torch.tensor(1)}
TUNED = {"weight": torch.tensor([3.0, 0.1]), "count": torch.tensor(7)}


@pytest.mark.parametrize(("alpha", "end"), [(0.0, ORIGINAL), (1.0, TUNED)])
def test_the_ends_are_exact(alpha: float, end: dict[str, torch.Tensor]) -> None:
    assert torch.equal(interpolate(ORIGINAL, TUNED, alpha)["weight"], end["weight"])


def test_between_them_weights_are_mixed_and_integers_are_the_tuned_ones() -> None:
    mixed = interpolate(ORIGINAL, TUNED, 0.25)
    torch.testing.assert_close(mixed["weight"], torch.tensor([1.5, -2.45]))
    assert mixed["count"] == 7


def test_neither_model_is_changed_with_the_mixture() -> None:
    interpolate(ORIGINAL, TUNED, 1.0)["weight"].zero_()
    assert TUNED["weight"].tolist() == pytest.approx([3.0, 0.1])


def test_an_alpha_beyond_the_ends_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha is 1\.5; give"):
        interpolate(ORIGINAL, TUNED, 1.5)


@pytest.mark.parametrize("other", [{"weight": torch.zeros(3), "count": torch.tensor(1)}, {"weight": torch.zeros(2)}])
def test_weights_of_different_models_are_refused(other: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="different models"):
        interpolate(ORIGINAL, other, 0.5)
