"""What stages ask for is there, and versions agree wherever they are told."""

import re
import tomllib
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.node_types import DOWNLOAD, LABEL, NODE_TYPES, PYTHON, RAY, TRAIN, WORKERS
from cluster.package import ROOT
from cluster.site import SITE
from jobs import recipes
from jobs.evaluation_recipes import EVALUATIONS
from jobs.transfer_recipes import SWEEPS
from pipeline.placement import FIELD

GROUPS: dict[str, dict[str, Any]] = {
    "demo": {**recipes.DEMOS},
    "captions": {**recipes.CAPTIONS},
    "pretrain": {**recipes.PRETRAININGS},
    "evaluate": {**EVALUATIONS},
    "sweep": {**SWEEPS},
}
RECIPES = {f"{group} {name}": recipe for group, found in GROUPS.items() for name, recipe in found.items()}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def asked(config: Any) -> set[str]:
    """Find every resource that a configuration asks for."""
    if not isinstance(config, dict):
        return set()
    here = {config[FIELD]} if FIELD in config else set()
    return here.union(*(asked(value) for value in config.values())) - {""}


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_asks_for_some_machine_has(name: str) -> None:
    assert asked(asdict(RECIPES[name]())) <= {resource for kind in WORKERS for resource in kind.resources}


def test_cluster_recipes_are_placed_and_those_of_a_laptop_run_anywhere() -> None:
    placed = {name: asked(asdict(recipe())) for name, recipe in RECIPES.items()}
    assert placed["captions captions-gpu"] == {DOWNLOAD, LABEL}
    assert all(placed[f"pretrain {name}"] == {TRAIN} for name in ("t", "t-stage2", "b", "b-stage2", "h"))
    assert placed["pretrain t-spot"] == {LABEL}, "machines that may be taken away"
    for name in ("demo demo", "demo smoke", "captions photos", "pretrain nano", "sweep few-shot", "evaluate miniature"):
        assert not placed[name]


def gpus(resource: str) -> int:
    return sum(kind.gpus * kind.max_workers for kind in WORKERS if resource in kind.resources)


def test_the_cluster_can_grow_to_what_its_recipes_need() -> None:
    captions = recipes.captions_gpu()
    assert captions.label.num_teachers * captions.label.num_gpus <= gpus(captions.label.node_resource)
    for name, recipe in recipes.PRETRAININGS.items():
        cfg = recipe().pretrain
        if cfg.node_resource:
            assert cfg.num_workers <= gpus(cfg.node_resource), name


def test_kinds_differ_in_name_and_resource() -> None:
    assert len({kind.name for kind in NODE_TYPES}) == len(NODE_TYPES)
    assert sorted(name for kind in NODE_TYPES for name in kind.resources) == sorted([DOWNLOAD, LABEL, TRAIN])


def test_the_image_has_the_python_and_the_ray_of_the_lock() -> None:
    container = (ROOT / "cluster/Containerfile").read_text(encoding="utf-8")
    assert re.findall(r"^FROM .*python:(\S+?)-", container, re.MULTILINE) == [PYTHON]
    assert f"--python-version {PYTHON} " in LOCK
    assert PROJECT["project"]["requires-python"].startswith(f">={PYTHON},")
    assert re.findall(r"^ray==(\S+)", LOCK, re.MULTILINE) == [RAY]
    assert [d.partition("==")[2] for d in PROJECT["project"]["dependencies"] if d.startswith("ray[")] == [RAY]
    assert SITE.image.endswith(f":ray{RAY}-py{PYTHON}")


def test_the_image_is_installed_from_the_lock_with_hashes_and_compiled() -> None:
    container = (ROOT / "cluster/Containerfile").read_text(encoding="utf-8")
    assert "uv pip install --require-hashes --requirements /build/requirements.lock" in container
    assert "UV_COMPILE_BYTECODE=1" in container
    [uv] = re.findall(r"uv==(\S+)", container)
    assert f"UV_VERSION := {uv}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    for copied in re.findall(r"^COPY (\S+)", container, re.MULTILINE):
        assert (ROOT / copied).exists()


def test_rays_own_submit_ships_the_code_and_neither_tests_nor_data(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import _zip_files

    given = yaml.safe_load((ROOT / "cluster/runtime_env.yaml").read_text(encoding="utf-8"))
    _zip_files(str(ROOT), given["excludes"], str(tmp_path / "code.zip"), include_gitignore=True)
    package = zipfile.ZipFile(tmp_path / "code.zip").infolist()
    shipped = [entry.filename for entry in package]
    wanted = {"jobs/pretrain.py", "pipeline/flow.py", "pipeline/protocols/miniature.yaml", "glipv2/train.py"}
    assert wanted <= set(shipped)
    assert not [name for name in shipped if name.startswith(("tests/", "data/", "runs/", ".venv/", ".ci/"))]
    code = [entry for entry in package if not entry.filename.startswith(".git/")]  # tells the commit; grows with it
    assert sum(entry.compress_size for entry in code) < 3 << 20
