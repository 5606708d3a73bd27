import subprocess
import sys

import pytest

from cluster.node_types import node_type
from jobs import plan_recipes
from jobs.cli import parse
from jobs.plan import arguments


@pytest.mark.parametrize("name", plan_recipes.PLANS)
def test_every_recipe_builds_and_explains_itself(name: str) -> None:
    recipe = plan_recipes.PLANS[name]
    assert recipe() == recipe()
    assert f"python -m jobs.plan {name}" in (recipe.__doc__ or "")


def test_plans_speak_of_the_cluster_s_own_node_types() -> None:
    job = plan_recipes.captions()
    for machine in (job.downloads, job.labels, job.trains):
        kind = node_type(machine.name)
        assert (machine.cpus, machine.gpus, machine.most, machine.spot) == (
            *(kind.cpus, kind.gpus, kind.max_workers, kind.spot),
        )
        assert kind.aws in machine.kind
        assert kind.gpus == 0 or machine.gpu


def test_flags_without_a_recipe_plan_captions() -> None:
    assert arguments(["--pairs", "16M"]) == ["captions", "--pairs", "16M"]
    assert arguments(["--help"]) == ["--help"]
    assert arguments(["laptop", "--pairs", "1k"]) == ["laptop", "--pairs", "1k"]
    assert arguments([]) == []


def test_the_command_answers_a_stranger_and_misuse_in_a_line() -> None:
    def run(*flags: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-m", "jobs.plan", *flags], capture_output=True, text=True, check=False)

    answer = run("--pairs", "16M", "--teacher", "glip-l")
    assert answer.returncode == 0, answer.stderr
    for wanted in ("16,000,000 pairs", "x label (g6.2xlarge", "<- bottleneck", "Machine hours", "published: V100"):
        assert wanted in answer.stdout
    for flags in (
        ("--trains.most", "0"),
        ("--downloads.cpus", "0"),
        ("--within-hours", "-5"),
        ("--batch-size", "-3"),
        ("--image-bytes", "0"),
    ):
        with pytest.raises(ValueError, match=rf"^{flags[0]} is {flags[1]}"):
            parse(plan_recipes.PLANS, ["captions", "--pairs", "16M", "--teacher", "glip-l", *flags]).check()
    misused = run("--pairs", "16X", "--teacher", "glip-l")
    assert misused.returncode == 2
    assert misused.stderr.count("\n") == 1
    assert "--pairs is '16X'; give a number" in misused.stderr
