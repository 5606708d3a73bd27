"""Image features that are computed once: in memory up to a budget, then in files mapped into memory."""

import logging
import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path
from types import TracebackType

import torch

from glipv2.model.glipv2 import Pyramid

logger = logging.getLogger(__name__)


class FeatureCache:
    """Remember feature pyramids on the CPU; a context, at whose end its files are deleted."""

    def __init__(self, budget_mib: int, folder: Path | None = None, *, bf16: bool = False) -> None:
        """Start empty.

        Args:
            budget_mib: memory, MiB.
            folder: an existing one for what is beyond the budget; without it, that is computed again each time.
            bf16: keep bfloat16, whatever comes.

        Raises:
            ValueError: there is no such folder.
        """
        if folder is not None and not folder.is_dir():
            raise ValueError(f"there is no folder {folder} for cached features; create it, or give another")
        self._budget, self._bf16 = budget_mib * 2**20, bf16
        self._files = tempfile.TemporaryDirectory(prefix="features-", dir=folder) if folder else None
        self._kept: dict[Hashable, Pyramid] = {}
        self._full = False
        self.memory_bytes = 0
        """Kept in memory."""
        self.mapped_bytes = 0
        """Kept in files."""

    def __enter__(self) -> "FeatureCache":
        """Use it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Forget everything and delete the files."""
        self._kept.clear()
        if self._files:
            self._files.cleanup()

    def get(self, key: Hashable, compute: Callable[[], Pyramid]) -> Pyramid:
        """Return the features of ``key``, computed at most once if there is room; on the CPU, in the precision kept."""
        found = self._kept.get(key)
        if found is None:
            found = [level.detach().to("cpu", torch.bfloat16 if self._bf16 else level.dtype) for level in compute()]
            self._keep(key, found)
        return found

    def _keep(self, key: Hashable, levels: Pyramid) -> None:
        size = sum(level.nbytes for level in levels)
        if self.memory_bytes + size <= self._budget:
            self.memory_bytes += size
            self._kept[key] = levels
        elif self._files:
            path = Path(self._files.name) / f"{len(self._kept)}.pt"
            torch.save(levels, path)
            self.mapped_bytes += size
            self._kept[key] = torch.load(path, mmap=True, weights_only=True)
        elif not self._full:
            self._full = True
            logger.warning(
                "image features of %d views fill cache_mib (%d); all others are computed again each time they are seen",
                *(len(self._kept), self._budget >> 20),
            )
