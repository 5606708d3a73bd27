from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.miniature import config
from pipeline.miniature.server import serve
from pipeline.miniature.world import World


@pytest.fixture(scope="module")
def base_url(world: World) -> Iterator[str]:
    with serve(world, world.config.port) as base:
        yield base


@pytest.fixture
def few() -> config.MiniatureConfig:
    counts = {name: 1 for name in vars(config.test_size()) if name.startswith("num_")}
    return replace(config.test_size(), **counts)
