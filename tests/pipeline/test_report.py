import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.report import (
    LabelQuality,
    Picture,
    ReportInputs,
    Score,
    Stage,
    Training,
    Trial,
    summary_table,
    write_report,
)
from pipeline.report.inputs import ALL_DATA
from pipeline.report.tuning_figures import MAX_PANELS, drawn_together
from pipeline.sweep_summary import trials as trials_of
from pipeline.trial import PROBE

HOSTILE = '<script>alert("caption")</script>'


def picture(group: str, title: str = "one.jpg") -> Picture:
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), "navy").save(stream, "PNG")
    return Picture(
        image=stream.getvalue(),
        title=title,
        boxes=[[2, 2, 30, 30], [40, 0, 64, 48]],
        phrases=["a red ring", HOSTILE],
        scores=[0.9, 0.4],
        group=group,
        caption=f"a red ring and {HOSTILE}",
    )


EMPTY = ReportInputs(
    title="Nothing yet",
    created="2026-11-21 10:00",
    command="python -m jobs.demo smoke",
    run_id="r",
    git_commit="c" * 40,
    hardware="2 cores",
    config_json="{}",
    input_hashes={},
    mlflow_uri="sqlite:///x.db",
)
TUNED = [
    {"epoch": 0.0, "val_ap": 9.0, "val_ap50": 19.0, "lr": 0.1},
    {"epoch": 2.0, "val_ap": 13.5, "val_ap50": 23.0, "loss": 2.5, "lr": 0.1},
    {"epoch": 4.0, "val_ap": 11.0, "val_ap50": 21.0, "loss": 1.25, "lr": 0.1},
]
FULL = replace(
    EMPTY,
    title=HOSTILE,
    input_hashes={"pairs": "abc123"},
    stages=[
        Stage(
            name="download", rows_in=100, rows_out=83, rejects={"http_404": 12, "timeout": 5}, seconds=3.0, reused=False
        ),
        Stage(name="pseudo_label", rows_in=83, rows_out=70, rejects={"no_box": 13}, seconds=9.0, reused=True),
    ],
    scores=[
        Score(model="teacher", dataset="test", ap=40.5, ap50=61.25, ap50_base=70.0, ap50_novel=14.5, num_images=200),
        Score(model="student", dataset="test", ap=44.0, ap50=66.0, ap50_base=71.0, ap50_novel=33.5, num_images=200),
    ],
    trainings=[
        Training(
            model="teacher",
            steps=20,
            images_seen=320,
            train_images=48,
            seconds=12.0,
            workers=2,
            data_wait=0.037,
            history=[{"step": float(s), "loss": 3.0 / s, "loss_token": 1.0 / s} for s in (1, 10, 20)],
        )
    ],
    trials=[
        Trial(dataset="Fish", mode="zero-shot", shots=0, seed=0, ap=10.0, ap50=20.0, seconds=1.0),
        Trial(dataset="Fish", mode="prompt", shots=1, seed=3, ap=12.0, ap50=22.0, seconds=1.0, history=TUNED),
        Trial(dataset="Fish", mode="prompt", shots=1, seed=30, ap=18.0, ap50=28.0, seconds=1.0),
    ],
    label_quality=[LabelQuality(precision=59.5, recall=37.5, num_labels=918, group="novel", selection="as used")],
    pictures=[picture("Pseudo-labels"), picture("Truth"), picture("Teacher")],
    notes=["A note."],
    limits=["A limit."],
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    paths = write_report(FULL, tmp_path_factory.mktemp("report"))
    return paths.html.read_text(encoding="utf-8"), paths.markdown.read_text(encoding="utf-8"), paths.figures


def test_both_forms_tell_the_same_numbers(written: tuple[str, str, Path]) -> None:
    page, markdown, _ = written
    for number in ("61.2", "33.5", "59.5", "918", "3.7 %", "http_404", "no_box"):
        assert number in page
        assert number in markdown


def test_the_way_of_a_tuned_trial_is_drawn_and_told(written: tuple[str, str, Path]) -> None:
    page, markdown, figures = written
    told = "Validation AP of seed 3 from 9.0 to 13.5 at epoch 2 of 4, loss from 2.500 to 1.250"
    assert told in page
    assert told in markdown
    assert (figures / "tuning_00.png").stat().st_size > 1000


def test_the_curve_of_averaged_weights_is_drawn_and_told(tmp_path: Path) -> None:
    zero = {"dataset": "Fish", "mode": "zero-shot", "shots": 0, "seed": 0, "ap": 10.0, "ap50": 20.0, "seconds": 1.0}
    full = {**zero, "mode": "full", "shots": 1, "seed": 3, "ap": 30.0, "probe_ap": 12.0}
    half = [{"tuned_part": 0.5, "ap": 24.0, "probe_ap": 35.0}]
    results = [{**zero, "dataset": PROBE, "ap": 40.0}, zero, {**full, "averages": half}]
    paths = write_report(replace(FULL, trials=trials_of(results)), tmp_path)
    told = "AP tuned to: 10.0 at 0, 24.0 at 0.5, 30.0 at 1; AP probe: 40.0 at 0, 35.0 at 0.5, 12.0 at 1"
    assert told in paths.markdown.read_text(encoding="utf-8")
    assert (paths.figures / "averaging_00.png").stat().st_size > 1000


def test_more_ways_than_a_page_holds_leave_out_those_with_few_shots() -> None:
    trials = [
        Trial(dataset=f"Set {n}", mode="full", shots=shots, seed=3, ap=1.0, ap50=1.0, seconds=1.0, history=TUNED)
        for n in range(MAX_PANELS - 1)
        for shots in (1, ALL_DATA)
    ]
    drawn = [kind[0].shots for kind in drawn_together(trials)]
    assert len(drawn) == MAX_PANELS
    assert drawn.count(ALL_DATA) == MAX_PANELS - 1


def test_ap50_of_tuned_trials_is_told_by_shots(written: tuple[str, str, Path]) -> None:
    assert "AP50 by shots, prompt" in written[1]
    assert "25.0 ± 4.2" in written[1]


def test_the_difference_between_student_and_teacher_is_told(written: tuple[str, str, Path]) -> None:
    assert "+19.0" in written[0]


def test_hostile_captions_are_text_and_never_code(written: tuple[str, str, Path]) -> None:
    assert "<script" not in written[0]
    assert "&lt;script&gt;" in written[0]


def test_the_page_needs_nothing_from_outside(written: tuple[str, str, Path]) -> None:
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]+)"', written[0]))
    assert not re.search(r'<link[^>]+href="http|url\(http|@import', written[0])


def test_every_picture_has_words_for_those_who_cannot_see_it(written: tuple[str, str, Path]) -> None:
    images = re.findall(r"<img [^>]+>", written[0])
    assert len(images) >= 3
    assert all(re.search(r'alt="[^"]+"', image) for image in images)


def test_the_figures_the_markdown_names_are_there(written: tuple[str, str, Path]) -> None:
    _, markdown, figures = written
    named = re.findall(r'src="(figures/[^"]+)"', markdown)
    assert named
    assert all((figures.parent / name).is_file() for name in named)


def test_a_report_of_nothing_is_still_a_report(tmp_path: Path) -> None:
    paths = write_report(EMPTY, tmp_path)
    assert "Nothing yet" in paths.html.read_text(encoding="utf-8")
    assert summary_table(EMPTY) is not None


def test_the_summary_fits_a_terminal_and_has_the_scores() -> None:
    lines = summary_table(FULL).splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert all(number in text for number in ("66.0", "33.5", "15.0"))


def test_an_account_that_loses_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="in must equal out plus rejected"):
        Stage(name="download", rows_in=10, rows_out=8, rejects={"x": 1}, seconds=0.0, reused=False)
