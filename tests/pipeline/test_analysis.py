"""What a detector gets right and wrong, from the files to the report."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from glipv2.evaluation.errors import MEASURES, Curve, judge
from glipv2.inference.predictor import Prediction
from glipv2.inference.query import Query
from glipv2.text.tokenizer import WordPiece, make_vocabulary
from jobs import analysis_recipes, cli
from pipeline import analysis_pictures
from pipeline.analysis import NUMBERS, AnalyseJob, analyse, metrics, numbers, summarise
from pipeline.analysis_absent import AbsentConfig, ask_for_absent
from pipeline.analysis_pictures import worst_pictures
from pipeline.report import Analysis, ClassResult, NameRate, ReportInputs, summary_table, write_report
from pipeline.report.analysis_figures import MAX_BARS, class_charts, curve_charts
from pipeline.report.analysis_tables import MAX_ROWS, by_absent_rate, class_tables
from pipeline.report.pictures import draw_all

Record = dict[str, Any]
NAMES = ("red circle", "blue ring", "star")
SIDE = 200


@pytest.fixture
def job(tmp_path: Path) -> AnalyseJob:
    """Four pictures, each with a red circle, and the first with a blue ring and a crowd of stars too."""
    return make_job(tmp_path)


def make_job(folder: Path) -> AnalyseJob:
    (folder / "images").mkdir()
    images: list[Record] = []
    annotations: list[Record] = []
    for number in range(4):
        Image.new("RGB", (SIDE, SIDE), "gray").save(folder / "images" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": SIDE, "height": SIDE})
        annotations.append({"image_id": number, "category_id": 0, "bbox": [10, 10, 40, 40]})
    annotations.append({"image_id": 0, "category_id": 1, "bbox": [100, 100, 60, 60]})
    annotations.append({"image_id": 0, "category_id": 2, "bbox": [0, 150, 50, 50], "iscrowd": 1})
    numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations)]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    truth = {"images": images, "categories": categories, "annotations": numbered}
    results = [
        {"image_id": 0, "category_id": 0, "bbox": [10, 10, 40, 40], "score": 0.9},
        {"image_id": 1, "category_id": 0, "bbox": [12, 10, 40, 40], "score": 0.8},
        {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.7},
        {"image_id": 2, "category_id": 2, "bbox": [150, 150, 30, 30], "score": 0.6},
    ]
    paths = {name: folder / f"{name}.json" for name in ("annotations", "predictions")}
    paths["annotations"].write_text(json.dumps(truth), encoding="utf-8")
    paths["predictions"].write_text(json.dumps(results), encoding="utf-8")
    return AnalyseJob(**paths, images=folder / "images", out=folder / "out", threshold=0.5)


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def summarised(job: AnalyseJob, truth: Record | None = None, results: Any = None) -> Analysis:
    truth = content(job.annotations) if truth is None else truth
    results = content(job.predictions) if results is None else results
    return summarise(judge(truth, results), job, [])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, eager_model: Path) -> tuple[AnalyseJob, str]:
    asked = AbsentConfig(names=("zebra",), num_images=3)
    job = replace(make_job(tmp_path_factory.mktemp("analysis")), checkpoint=eager_model, absent=asked)
    return job, str(analyse(job))


def test_the_numbers_are_in_a_json_beside_the_report(done: tuple[AnalyseJob, str]) -> None:
    written = content(done[0].out / NUMBERS)
    assert written["deployed"]["num_right"] == 2
    assert written["deployed"]["precision"] == 0.5
    assert written["deployed"]["recall"] == 0.4
    assert written["false_positives"] == {
        "wrong class": 1,
        "poor box": 0,
        "wrong class and poor box": 0,
        "duplicate": 0,
        "background": 1,
    }
    assert {c["name"]: c["num_truth"] for c in written["classes"]} == {"red circle": 4, "blue ring": 1, "star": 0}
    assert written["classes"][-1]["measures"]["AP"] is None  # no truth but a crowd


def test_the_numbers_are_metrics_of_the_run(done: tuple[AnalyseJob, str]) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{done[0].out / 'mlflow.db'}")
    [experiment] = [e.experiment_id for e in client.search_experiments() if e.name == "glipv2"]
    [run] = client.search_runs([experiment])
    assert run.data.metrics["precision"] == 0.5
    assert run.data.metrics["class_AP/red circle"] == pytest.approx(
        content(done[0].out / NUMBERS)["classes"][0]["measures"]["AP"]
    )
    assert run.data.metrics["false_positives/background"] == 1
    assert 0 <= run.data.metrics["absent_found"] <= 1


@pytest.mark.parametrize(
    "heading",
    [
        "<h2>Classes</h2>",
        "<h2>Errors</h2>",
        "<h2>Precision and recall</h2>",
        "<h2>Calibration</h2>",
        "<h2>Asked for what is not there</h2>",
        "<h3>False positives, wrong class: the highest scores of 1</h3>",
        "<h3>False positives, background: the highest scores of 1</h3>",
        "<h3>Misses, medium: the largest of 3</h3>",
    ],
)
def test_the_report_shows(done: tuple[AnalyseJob, str], heading: str) -> None:
    assert heading in (done[0].out / "report" / "report.html").read_text(encoding="utf-8")


def test_both_forms_of_the_report_tell_the_same(done: tuple[AnalyseJob, str]) -> None:
    page, twin = ((done[0].out / "report" / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for told in ("red circle", "Best threshold", "Expected calibration error", "Crowds in the truth: 1.", "zebra"):
        assert told in page
        assert told in twin


def test_who_waits_is_told_the_classes(done: tuple[AnalyseJob, str]) -> None:
    lines = done[1].splitlines()
    assert any(line.startswith("all classes ") for line in lines)
    assert any(line.startswith("report ") for line in lines)


@pytest.mark.parametrize("case", ["no predictions", "no truth", "no images", "scores of any scale", "one class"])
def test_odd_data_have_a_report(job: AnalyseJob, tmp_path: Path, case: str) -> None:
    truth, results = content(job.annotations), content(job.predictions)
    match case:
        case "no predictions":
            results = []
        case "no truth":
            truth["annotations"] = []
        case "no images":
            truth, results = {"images": [], "annotations": [], "categories": []}, []
        case "scores of any scale":
            results = [result | {"score": 40 * result["score"] - 20} for result in results]
        case "one class":
            results = [result | {"category_id": 0} for result in results]
            truth["categories"] = truth["categories"][:1]
            truth["annotations"] = truth["annotations"][:4]
    analysis = summarised(job, truth, results)
    inputs = ReportInputs(
        **dict.fromkeys(("title", "created", "command", "run_id", "git_commit", "hardware", "mlflow_uri"), "x"),
        config_json="{}",
        input_hashes={},
        analysis=analysis,
    )
    assert "Classes" in write_report(inputs, tmp_path / "report").html.read_text(encoding="utf-8")
    assert "all classes" in summary_table(inputs)
    json.dumps(numbers(analysis), allow_nan=False)
    assert all(np.isfinite(value) for value in metrics(analysis).values())


def many(number: int) -> Analysis:
    """An analysis of many classes, two of them always of one name."""
    found = np.array([1])
    curve = Curve(scores=np.array([0.5]), num_right=found, num_wrong=found, num_truth=2)
    classes = [
        ClassResult(name=f"c{i // 2}", measures=dict.fromkeys(MEASURES, 0.25), curve=curve) for i in range(number)
    ]
    return Analysis(
        dataset="many",
        num_images=1,
        threshold=0.3,
        measures=classes[0].measures,
        overall=curve,
        classes=classes,
        kinds={},
        sizes=[],
        calibration=None,
    )


def test_a_long_table_is_cut_and_says_so() -> None:
    [table] = class_tables(many(1500))
    assert len(table.rows) == MAX_ROWS + 1
    assert "the first 100 of 1,500" in table.caption


def test_charts_show_the_classes_with_the_most_truth() -> None:
    [chart] = class_charts(many(MAX_BARS + 10))
    assert f"the {MAX_BARS} of {MAX_BARS + 10}" in chart.title


def test_classes_of_one_name_have_a_curve_each() -> None:
    charts = curve_charts(many(2))
    assert [chart.title for chart in charts] == ["All classes", "c0", "c0"]
    assert len({chart.name for chart in charts}) == len(charts)


def test_names_with_any_characters_make_metrics() -> None:
    analysis = many(2)
    odd = replace(analysis.classes[0], name="../a: café/b")
    found = metrics(replace(analysis, classes=[odd, replace(odd, name="")]))
    assert {name for name in found if name.startswith("class_AP/")} == {"class_AP/___a_ caf__b", "class_AP/_"}


def test_many_classes_are_no_metrics_of_the_run() -> None:
    assert not [name for name in metrics(many(1500)) if name.startswith("class_AP/")]


def test_only_what_is_shown_is_opened(job: AnalyseJob, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    read = analysis_pictures.open_picture

    def noted(file: Path) -> Image.Image | None:
        opened.append(file)
        return read(file)

    monkeypatch.setattr(analysis_pictures, "open_picture", noted)
    shown = worst_pictures(judge(content(job.annotations), content(job.predictions)), job.images, 0.5, 1)
    assert [file.name for file in opened] == ["1.jpg", "2.jpg", "0.jpg"]
    assert len(shown) == 3


def test_a_false_positive_is_shown_with_the_truth_it_touches(job: AnalyseJob) -> None:
    shown = worst_pictures(judge(content(job.annotations), content(job.predictions)), job.images, 0.5, 1)
    wrong = next(picture for picture in shown if "wrong class" in picture.group)
    assert wrong.phrases == ["blue ring", "truth: red circle"]
    assert wrong.title == "blue ring 0.70, 40 × 40 px, 1.jpg"


def test_an_image_with_misses_of_two_sizes_stands_under_both(job: AnalyseJob) -> None:
    truth = content(job.annotations)
    truth["annotations"] += [
        {"id": 100 + side, "image_id": 0, "category_id": 1, "bbox": [0, 0, side, side]} for side in (20, 120)
    ]
    blocks = draw_all(worst_pictures(judge(truth, []), job.images, 0.5, 1))
    assert list(blocks) == [
        f"Misses, {size}: the largest of {n}" for size, n in (("large", 1), ("medium", 5), ("small", 1))
    ]


def test_a_small_box_is_shown_larger_than_in_its_picture(job: AnalyseJob) -> None:
    shown = worst_pictures(judge(content(job.annotations), content(job.predictions)), job.images, 0.5, 1)
    background = next(picture for picture in shown if "background" in picture.group)
    [[x1, y1, x2, y2]] = background.boxes
    assert (x2 - x1, y2 - y1) == (30, 30)
    assert max(x2, y2) < 90  # of a picture of 200 the part around the box


@pytest.mark.parametrize("box", [[-20, -20, 300, 300], [190, 190, 60, 60], [50, 50, 0, 0]])
def test_a_box_over_the_edge_is_shown(job: AnalyseJob, box: list[float]) -> None:
    result = {"image_id": 3, "category_id": 2, "bbox": box, "score": 0.9}
    shown = worst_pictures(judge(content(job.annotations), [result]), job.images, 0.5, 1)
    assert [picture.title[:9] for picture in shown if "background" in picture.group] == ["star 0.90"]


def test_a_picture_that_is_not_there_is_left_out(job: AnalyseJob, caplog: pytest.LogCaptureFixture) -> None:
    (job.images / "2.jpg").unlink()
    shown = worst_pictures(judge(content(job.annotations), content(job.predictions)), job.images, 0.5, 1)
    assert not [picture for picture in shown if "background" in picture.group]
    assert "2.jpg is left out" in caplog.text


class Eager:
    """Find a red circle and a zebra in every picture, if asked for."""

    tokenizer = WordPiece(make_vocabulary(["red", "circle", "blue", "ring", "star", "zebra"]), max_tokens=64)

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def find(self, images: Sequence[Image.Image], queries: Sequence[Sequence[Query]]) -> list[Prediction]:
        assert len({len(own) for own in queries}) <= 1
        self.asked += [[query.prompt.text for query in own] for own in queries]
        return [self._find(own) for own in queries]

    @staticmethod
    def _find(queries: Sequence[Query]) -> Prediction:
        words = {
            label: query.prompt.text[begin:end]
            for query in queries
            for label, (begin, end) in query.prompt.spans.items()
        }
        labels = [label for label, name in words.items() if name in ("red circle", "zebra")]
        return Prediction(boxes_xyxy=torch.zeros(len(labels), 4), scores=[0.6] * len(labels), labels=labels)


def asked(job: AnalyseJob, truth: Record | None = None, **cfg: Any) -> tuple[Eager, dict[str, NameRate]]:
    eager = Eager()
    judged = judge(truth or content(job.annotations), [])
    rates = ask_for_absent(eager, judged, job.images, 0.5, AbsentConfig(**cfg))  # type: ignore[arg-type]
    return eager, {rate.name: rate for rate in rates}


def test_no_picture_is_asked_in_vain_for_what_it_shows(job: AnalyseJob) -> None:
    eager, rates = asked(job)
    assert rates["red circle"].num_absent == 0
    assert (rates["red circle"].num_present, rates["red circle"].num_present_found) == (4, 4)
    assert (rates["star"].num_absent, rates["star"].num_present) == (3, 1)  # a crowd shows it
    assert all("red circle" not in absent for absent, *_ in eager.asked)


def test_further_names_are_asked_of_every_picture(job: AnalyseJob) -> None:
    _, rates = asked(job, names=("zebra",))
    assert (rates["zebra"].num_absent, rates["zebra"].num_absent_found, rates["zebra"].listed) == (4, 4, True)
    assert rates["star"].num_absent_found == 0
    assert next(iter(by_absent_rate(list(rates.values())))).name == "zebra"


def test_a_find_below_the_threshold_is_none(job: AnalyseJob) -> None:
    judged = judge(content(job.annotations), [])
    rates = ask_for_absent(Eager(), judged, job.images, 0.61, AbsentConfig(names=("zebra",)))  # type: ignore[arg-type]
    assert sum(rate.num_absent_found + rate.num_present_found for rate in rates) == 0


def test_only_names_known_to_be_absent_are_asked_of_federated_data(job: AnalyseJob) -> None:
    truth = content(job.annotations)
    truth["images"] = [image | {"neg_category_ids": [1]} for image in truth["images"]]
    _, rates = asked(job, truth)
    assert (rates["blue ring"].num_absent, rates["star"].num_absent) == (3, 0)


def test_as_many_pictures_are_asked_as_wanted(job: AnalyseJob) -> None:
    eager, _ = asked(job, num_images=2, batch_size=1)
    assert len(eager.asked) == 2


def test_a_further_name_of_the_data_set_is_refused(job: AnalyseJob) -> None:
    with pytest.raises(ValueError, match="has Star, which the data set has too; give names it does not show"):
        asked(job, names=("Star",))


def test_the_command_line_fills_the_recipe() -> None:
    given = ["coco", "--annotations", "/a.json", "--images", "/i", "--predictions", "/p.json", "--out", "/o"]
    cfg = cli.parse(analysis_recipes.ANALYSES, [*given, "--absent.names", "zebra", "fire truck"], "prog")
    assert isinstance(cfg, AnalyseJob)
    assert cfg.absent.names == ("zebra", "fire truck")
    with pytest.raises(ValueError, match=r"--absent\.names is given without --checkpoint"):
        cfg.check()


@pytest.mark.parametrize("recipe", [*analysis_recipes.ANALYSES.values(), *analysis_recipes.PREDICTIONS.values()])
def test_every_recipe_builds_and_explains_itself(recipe: Any) -> None:
    assert recipe() == recipe()
    assert "python -m jobs." in recipe.__doc__


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"images": Path("/nowhere")}, "--images is /nowhere, which is no folder"),
        ({"annotations": Path("/nowhere.json")}, "cannot be read as COCO json"),
        ({"predictions": Path("/nowhere.json")}, "/nowhere.json cannot be read as json"),
    ],
)
def test_files_that_are_not_there_are_told(job: AnalyseJob, wrong: dict[str, Path], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        analyse(replace(job, **wrong))


@pytest.mark.parametrize("number", [{"threshold": float("nan")}, {"pictures": -1}])
def test_numbers_out_of_range_are_refused(job: AnalyseJob, number: dict[str, Any]) -> None:
    [(name, value)] = number.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; give "):
        replace(job, **number)
