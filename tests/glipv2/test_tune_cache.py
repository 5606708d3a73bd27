"""Features are computed once, wherever they are kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glipv2.model.glipv2 import Pyramid
from glipv2.transfer.feature_cache import FeatureCache

LEVELS = [torch.randn(1, 8, 64, 64, generator=torch.Generator().manual_seed(0)), torch.ones(1, 8, 3, 2)]
LEVELS_BYTES = 4 * 8 * (64 * 64 + 6)


def counted(calls: list[int], key: int) -> Callable[[], Pyramid]:
    def compute() -> Pyramid:
        calls.append(key)
        return [level + key for level in LEVELS]

    return compute


def ask(cache: FeatureCache, keys: list[int]) -> list[int]:
    """Ask for keys in turn, see that each gives its own features, and tell which were computed."""
    calls: list[int] = []
    for key in keys:
        for found, level in zip(cache.get(key, counted(calls, key)), LEVELS, strict=True):
            assert torch.equal(found, level + key)
    return calls


def test_features_are_computed_once() -> None:
    with FeatureCache(1) as cache:
        assert ask(cache, [0, 1, 0, 1]) == [0, 1]
        assert (cache.memory_bytes, cache.mapped_bytes) == (2 * LEVELS_BYTES, 0)


def test_what_is_beyond_the_budget_goes_to_files_that_are_gone_at_the_end(tmp_path: Path) -> None:
    with FeatureCache(1, tmp_path) as cache:
        assert ask(cache, [*range(12), *range(12)]) == list(range(12))
        assert cache.memory_bytes == 7 * LEVELS_BYTES
        assert cache.mapped_bytes == 5 * LEVELS_BYTES
        assert len(list(tmp_path.glob("*/*.pt"))) == 5
    assert not list(tmp_path.iterdir())


def test_what_is_beyond_the_budget_is_computed_again_where_there_is_no_folder(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with FeatureCache(0) as cache:
        assert ask(cache, [0, 1, 0]) == [0, 1, 0]
        assert cache.memory_bytes == 0
    assert caplog.text.count("computed again") == 1


def test_half_precision_takes_half_the_memory_and_gives_the_same_every_time() -> None:
    with FeatureCache(1, bf16=True) as cache:
        first, again = (cache.get(0, lambda: LEVELS) for _ in range(2))
        assert cache.memory_bytes == LEVELS_BYTES // 2
    for one, other, exact in zip(first, again, LEVELS, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one.float(), exact, rtol=1e-2, atol=0)


def test_an_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        FeatureCache(1, tmp_path / "nowhere")
