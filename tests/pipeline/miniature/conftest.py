import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.miniature import config
from pipeline.miniature.server import serve
from pipeline.miniature.world import World, build_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    with socket.socket() as probe:  # a port of its own, so that test sessions side by side do not meet
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return build_world(replace(config.test_size(), port=port), tmp_path_factory.mktemp("miniature"))


@pytest.fixture(scope="session")
def base_url(world: World) -> Iterator[str]:
    with serve(world, world.config.port) as base:
        yield base


@pytest.fixture
def few() -> config.MiniatureConfig:
    counts = {name: 1 for name in vars(config.test_size()) if name.startswith("num_")}
    return replace(config.test_size(), **counts)
