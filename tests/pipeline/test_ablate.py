"""The ablation: which trainings there are, what each is made of, and how effects are judged."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.recipes import ablate_smoke
from pipeline.ablate import ROWS, SCORES, TEACHER, _Job, _scores, ablate
from pipeline.ablation_table import BASE, EFFECTS, compare, standard_error, write_tables
from pipeline.miniature.world import World
from pipeline.zero_shot import COLUMNS

EFFECT = "some captions instead of none (Table 5)"


def scores(with_it: list[float], without: list[float]) -> dict[str, list[dict[str, float]]]:
    rows = {"some captions": with_it, "no captions": without}
    return {
        name: [{"seed": float(seed), **dict.fromkeys(COLUMNS, value)} for seed, value in enumerate(values)]
        for name, values in rows.items()
    }


@pytest.mark.parametrize(
    ("with_it", "without", "verdict"),
    [
        ([20.0, 21.0, 22.0], [10.0, 11.0, 12.5], "agree"),
        ([10.0, 11.0, 12.5], [20.0, 21.0, 22.0], "disagree"),
        ([10.0, 14.0, 9.0], [11.0, 10.0, 12.0], "within noise"),
        ([20.0], [10.0], "one seed"),
    ],
)
def test_an_effect_is_held_against_the_papers_direction(
    with_it: list[float], without: list[float], verdict: str
) -> None:
    assert compare(scores(with_it, without), EFFECT)["odinw"]["verdict"] == verdict


def test_what_the_paper_does_not_tell_is_better_or_worse() -> None:
    found = compare(scores([20.0, 21.0, 22.0], [10.0, 11.0, 12.5]), EFFECT)
    assert found["novel"]["verdict"] == "better"
    assert "paper" not in found["novel"]


def test_only_seeds_that_both_rows_have_are_compared() -> None:
    found = compare(scores([20.0, 21.0, 99.0], [10.0, 11.0]), EFFECT)
    assert found["coco"]["mean"] == 10


def test_the_standard_error_is_that_of_the_mean() -> None:
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3) / 2)


def test_every_effect_compares_rows_that_there_are() -> None:
    assert {row for with_it, without, _ in EFFECTS.values() for row in (with_it, without)} <= {*ROWS, TEACHER}


def test_an_unfinished_table_says_what_there_is(tmp_path: Path) -> None:
    text = write_tables(tmp_path, scores([20.0], []))
    assert "| some captions | 1 | 20.0" in text
    assert "| no captions | 0 | – |" in text
    assert json.loads((tmp_path / "ablation.json").read_text())["effects"][EFFECT] == {}


def test_a_row_brings_the_rows_whose_labels_it_learns_from() -> None:
    assert replace(ablate_smoke(), rows=("second generation",)).wanted == [BASE, "second generation"]


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['nothing'\] are not known; allowed: no captions"):
        replace(ablate_smoke(), rows=("nothing",))


def job(tmp_path: Path, **changes: Any) -> _Job:
    cfg = replace(ablate_smoke(), out=tmp_path, **changes)
    return _Job(cfg, World(root=tmp_path / "world", config=cfg.world), tmp_path / "vocab.txt", None, 0)  # type: ignore[arg-type]


def test_each_row_is_taught_what_it_is_about(tmp_path: Path) -> None:
    plan = job(tmp_path)
    found = {name: plan._student(row) for name, row in ROWS.items()}
    both = found["many captions, L_inter, L_mlm"]
    assert (both.losses.inter, both.losses.mlm, both.ingest.mask_words) == (1, 1, 0.15)
    assert (found[BASE].losses.inter, found[BASE].losses.mlm, found[BASE].ingest.mask_words) == (0, 0, 0)
    assert not found["many captions, unboxed phrases taught as absent"].ingest.mask_unboxed_phrases
    assert {cfg.num_steps for cfg in found.values()} == {plan.cfg.student.num_steps}


def test_a_second_generation_waits_for_the_first_and_learns_from_its_labels(tmp_path: Path) -> None:
    plan = job(tmp_path)
    assert BASE in plan.waits_for("second generation")
    assert plan.labels("second generation") != plan.labels(BASE)
    assert plan.labels("no captions") is None


def test_finished_trainings_are_read_and_unfinished_ones_left_out(tmp_path: Path) -> None:
    plan = job(tmp_path, seeds=(0, 1))
    folder = plan.out / BASE
    folder.mkdir(parents=True)
    (folder / SCORES).write_text(json.dumps({"coco": 5.0}))
    assert _scores(plan.cfg)[BASE] == [{"seed": 0.0, "coco": 5.0}]
    assert plan.done(BASE)
    assert not plan.done("no captions")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_run_out_of_time_says_what_is_left_and_shows_what_there_is(tmp_path: Path, free_port: int) -> None:
    world = replace(ablate_smoke().world, port=free_port)
    ended = ablate(replace(ablate_smoke(), out=tmp_path, world=world, rows=("no captions",), minutes=1e-6))
    assert "2 trainings left" in ended.text
    assert ended.report is not None
    assert "no captions" in ended.report.html.read_text(encoding="utf-8")


# Slow: makes a world and carries out two whole trainings with all their measurements, three minutes.
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_run_in_two_pieces_trains_nothing_twice(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = replace(ablate_smoke(), out=tmp_path, rows=("no captions",), side_by_side=1)
    cfg = replace(cfg, world=replace(cfg.world, port=free_port))
    teacher = tmp_path / "seed-0" / TEACHER

    def trained() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in teacher.rglob("*") if path.is_file()}

    with monkeypatch.context() as patched:  # time is up once the teacher is there
        clock = SimpleNamespace(monotonic=lambda: 1e6 * (teacher / SCORES).exists())
        patched.setattr("pipeline.ablate.time", clock)
        assert "1 trainings left" in ablate(replace(cfg, minutes=1)).text
    before = trained()
    assert "left" not in ablate(cfg).text
    assert trained() == before
    scores = json.loads((tmp_path / "ablation.json").read_text())["scores"]
    for name in (TEACHER, "no captions"):
        [found] = scores[name]
        assert found.keys() >= COLUMNS.keys()
        assert all(math.isfinite(found[column]) for column in COLUMNS)
