"""The score command as a person would use it: files in, json out, one line for a mistake."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import cli, recipes
from pipeline.score import score

BOX = [10.0, 10.0, 50.0, 40.0]
RESULTS = [
    {"image_id": 1, "category_id": 3, "bbox": BOX, "score": 0.9, "segmentation": [[10, 10, 60, 10, 60, 50, 10, 50]]}
]
TRUTH = {
    "images": [{"id": 1, "width": 80, "height": 80, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
    "categories": [{"id": 3, "name": "cat", "frequency": "r"}],
    "annotations": [{"id": 0, **{key: RESULTS[0][key] for key in ("image_id", "category_id", "bbox", "segmentation")}}],
}
XML = """<annotation><object><name>{name}</name>
<bndbox><xmin>10</xmin><ymin>10</ymin><xmax>60</xmax><ymax>50</ymax></bndbox></object></annotation>"""


class Run:
    """Run the command, and keep what it said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.setattr("signal.signal", lambda *_: None)  # not for the test session

    def __call__(self, *arguments: object) -> tuple[int | str | None, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["prog", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main(score, recipes.SCORES, "", needs_ray=False)
        said = self.capsys.readouterr()
        return stopped.value.code, said.out, said.err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write the same box as the truth of every benchmark, and as what was found."""
    files: dict[str, Any] = {
        "truth.json": TRUTH,
        "results.json": RESULTS,
        "flickr.json": [{"image_id": "a", "sentence_id": 0, "boxes": [[[10, 10, 60, 50]]]}],
        "voc.json": [{"image_id": "a", "category": "5", "bbox": BOX, "score": 1}],
        "Sentences/a.txt": "[/EN#5/animals A cat] .",
        "Sentences/b.txt": "[/EN#5/animals A cat] .",
        "Annotations/a.xml": XML.format(name=5),
        "Annotations/b.xml": XML.format(name=5),
        "ImageSets/Main/val.txt": "a  1\n",
        "test.txt": "a\n",
        "all.txt": "a\nb\n",
        "comp4/comp4_det_test_5.txt": "a 0.5 10 10 60 50\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("metric", "truth", "predictions", "names"),
    [
        ("coco-bbox", "truth.json", "results.json", ("AP", "AP50", "AP75", "APm", "AR1", "AR10", "AR100", "ARm")),
        ("coco-segm", "truth.json", "results.json", ("AP", "AR100")),
        ("lvis", "truth.json", "results.json", ("AP", "APr", "AR@300", "ARm@300")),
        ("lvis-fixed", "truth.json", "results.json", ("AP", "APr", "AR@10000/cat")),
        ("flickr30k-any", "", "flickr.json", ("R@1", "R@5", "R@10", "R@1_animals", "phrases")),
        ("flickr30k-merged", "", "flickr.json", ("R@1", "phrases")),
        ("voc", "", "voc.json", ("mAP", "mAP07", "AP_5", "AP07_5")),
        ("voc", "", "comp4", ("mAP", "mAP07")),
        ("voc", "", "comp4/comp4_det_test_5.txt", ("mAP", "mAP07")),
    ],
)
def test_every_metric_is_printed_as_json(
    metric: str, truth: str, predictions: str, names: tuple[str, ...], folder: Path, run: Run
) -> None:
    code, printed, _ = run(metric, "--truth", folder / truth, "--predictions", folder / predictions)
    assert code == 0
    scores = json.loads(printed)
    assert {name: scores[name] for name in names} == pytest.approx(dict.fromkeys(names, 1))


def test_masks_of_lvis_are_compared_on_demand(folder: Path, run: Run) -> None:
    results = [{**RESULTS[0], "segmentation": [[10, 10, 60, 10, 60, 18, 10, 18]]}]
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    given = "lvis", "--truth", folder / "truth.json", "--predictions", folder / "results.json"
    assert json.loads(run(*given)[1])["AP"] == pytest.approx(1)
    assert json.loads(run(*given, "--masks")[1])["AP"] == 0


@pytest.mark.parametrize(("subset", "expected"), [("val", 1), ("all", 0.5)])
def test_a_list_of_images_can_be_named(subset: str, expected: float, folder: Path, run: Run) -> None:
    given = "voc", "--truth", folder, "--predictions", folder / "voc.json", "--subset", subset
    assert json.loads(run(*given)[1])["mAP"] == pytest.approx(expected)


def test_without_a_test_list_all_images_are_scored(folder: Path, run: Run) -> None:
    (folder / "test.txt").unlink()
    for truth in (folder, folder / "Annotations"):
        _, printed, _ = run("voc", "--truth", truth, "--predictions", folder / "voc.json")
        assert json.loads(printed)["mAP"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("coco-bbox", "--truth", "{}/truth.json"), "--predictions is missing; give an absolute path"),
        (("coco-bbox", "--truth", "{}/no.json", "--predictions", "{}/results.json"), "no.json cannot be read as json"),
        (("coco-bbox", "--truth", "{}/all.txt", "--predictions", "{}/results.json"), "all.txt cannot be read as json"),
        (("coco-bbox", "--truth", "{}/results.json", "--predictions", "{}/results.json"), "the truth is no COCO json"),
        (("coco-bbox", "--truth", "{}/truth.json", "--predictions", "{}/truth.json"), "the predictions are no list"),
        (("flickr30k-any", "--truth", "{}", "--predictions", "{}/voc.json"), "predictions[0] lacks boxes"),
        (("voc", "--truth", "{}", "--predictions", "{}/voc.json", "--subset", "no"), "has neither no.txt nor"),
        (("voc", "--truth", "{}/comp4", "--predictions", "{}/voc.json"), "comp4 has no annotations"),
        (("coco",), "unknown recipe 'coco'; allowed: coco-bbox, coco-segm, lvis"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: tuple[str, ...], said: str, folder: Path, run: Run) -> None:
    code, printed, error = run(*(argument.replace("{}", str(folder)) for argument in arguments))
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert said in error


def test_real_annotations_score_1_against_themselves(test_data: Path, tmp_path: Path, run: Run) -> None:
    coco, lvis = test_data / "captioned_photos/coco_instances.json", test_data / "lvis_sample/lvis_val_30.json"
    for metric, truth in (("coco-bbox", coco), ("coco-segm", coco), ("lvis", lvis), ("lvis-fixed", lvis)):
        found = [a | {"score": 0.5} for a in json.loads(truth.read_text())["annotations"] if not a.get("iscrowd")]
        (tmp_path / "found.json").write_text(json.dumps(found), encoding="utf-8")
        code, printed, _ = run(metric, "--truth", truth, "--predictions", tmp_path / "found.json")
        assert code == 0
        assert json.loads(printed)["AP"] == pytest.approx(1)
