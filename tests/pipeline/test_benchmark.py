import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from glipv2.checkpoint import weights_sha256
from glipv2.inference.postprocess import PostprocessConfig
from glipv2.inference.predictor import Predictor
from glipv2.model.glipv2 import GLIPv2
from jobs import cli
from jobs.evaluation_recipes import EVALUATIONS
from pipeline import schema
from pipeline.benchmark import SCORES, BenchmarkJob, FolderJob, evaluate_benchmark
from pipeline.benchmark_scores import PREDICTIONS, Result, judge, table
from pipeline.benchmark_truth import Truth, read_truth
from pipeline.benchmark_worker import ASKED, FOUND, Asker, Plan, RunConfig
from pipeline.engine import Work
from pipeline.evaluate import Benchmark, measure
from pipeline.ledger import Ledger
from pipeline.miniature.odinw import ANNOTATION_FILE, ODINW_SETS
from pipeline.miniature.world import World
from pipeline.protocol import Files, Protocol, ProtocolDataset, list_protocols, read_protocol
from pipeline.shards import MANIFEST_NAME, open_rows
from pipeline.storage import Place
from pipeline.zero_shot import zero_shot

CONFIG = RunConfig(batch_size=4, rows_per_block=8)
ODINW13 = read_protocol("odinw13")


def coco(folder: Path, **changes: Any) -> ProtocolDataset:
    """Write two pictures with a box each, and what is changed."""
    content: dict[str, Any] = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in range(2)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": n, "bbox": [8, 8, 24, 24], "area": 576, "iscrowd": 0}
            for n in range(2)
        ],
        "categories": [{"id": 0, "name": "ring"}, {"id": 1, "name": "star"}],
    } | changes
    folder.mkdir(exist_ok=True)
    (folder / "truth.json").write_text(json.dumps(content), encoding="utf-8")
    for n in range(2):
        Image.new("RGB", (64, 48), (90 * n, 120, 40)).save(folder / f"{n}.png")
    return dataset(folder)


def dataset(folder: Path, **changes: Any) -> ProtocolDataset:
    given: dict[str, Any] = {
        "name": "set",
        "files": {"val": Files(annotations=str(folder / "truth.json"), images=str(folder))},
        "split": "val",
        "metrics": ("coco-bbox",),
        "score": "AP",
    }
    return ProtocolDataset(**(given | changes))


def protocol(*datasets: ProtocolDataset) -> Protocol:
    return Protocol(name="own", title="own", source="", prompts="raw", average="none", datasets=datasets)


def answers(truth: Truth, boxes: Callable[[Any], list[tuple[list[float], float, int]]]) -> pa.Table:
    """Answer every image with boxes: corners, score, label."""
    rows: list[dict[str, object]] = [
        {
            "key": key,
            "boxes": [corners for corners, _, _ in boxes(asked.image_id)],
            "score": [score for _, score, _ in boxes(asked.image_id)],
            "label": [label for _, _, label in boxes(asked.image_id)],
            "unseen": [],
            "status": schema.LABELLED,
        }
        for key, asked in enumerate(truth.images)
    ]
    return schema.to_table(rows, FOUND)


def ask(asker: Asker, name: str, files: list[Path], sentences: list[Any] | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, object]] = [
        {"key": key, "dataset": name, "file": str(file), "sentences": json.dumps(sentences[key]) if sentences else None}
        for key, file in enumerate(files)
    ]
    found: list[dict[str, Any]] = asker(schema.to_table(rows, ASKED)).to_pylist()
    return found


def make_asker(model: Path, *plans: Plan) -> Asker:
    return Asker(CONFIG, str(model), weights_sha256(model), {plan.dataset.name: plan for plan in plans})


# What is asked


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": []}, "lists no image; give a split that has some"),
        ({"annotations": []}, "has no box"),
        ({"annotations": [{"image_id": 0, "category_id": 0, "bbox": [1, 1, 2, 2], "iscrowd": 1}]}, "has no box"),
        ({"categories": []}, "has no category"),
        ({"images": [{"file_name": "0.png"}]}, r"images\[0\] of the truth lacks id"),
        ({"images": [{"id": 1, "file_name": "0.png"}, {"id": "1", "file_name": "1.png"}]}, "1 image ids occur twice"),
        (
            {"images": [{"id": 0, "file_name": "lost.png"}]},
            r"none of the 1 images of set is there; expected .*lost\.png",
        ),
        (
            {"annotations": [{"image_id": 0, "category_id": 0, "bbox": [1, 1]}]},
            r"annotations\[0\] of the truth has bbox",
        ),
    ],
)
def test_a_truth_nothing_can_be_measured_on_is_told_in_a_line(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        read_truth(coco(tmp_path, **changes), tmp_path)
    assert "\n" not in str(caught.value)


def test_an_absent_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"truth\.json cannot be read as json"):
        read_truth(dataset(tmp_path), tmp_path)


def test_another_data_set_than_that_of_the_protocol_is_refused(tmp_path: Path) -> None:
    other = replace(coco(tmp_path), categories=("ring", "moon"))
    with pytest.raises(ValueError, match=r"has the categories 'ring, star', but set has 'ring, moon'"):
        read_truth(other, tmp_path)


def test_names_are_asked_by_ascending_id_and_once_each(tmp_path: Path) -> None:
    names = [{"id": 7, "name": "star"}, {"id": 0, "name": "ring"}, {"id": 9, "name": "ring"}]
    truth = read_truth(coco(tmp_path, categories=names), tmp_path)
    assert (truth.names, truth.ids) == (("ring", "star"), ((0, 9), (7,)))


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ({"coco_url": "http://images.example.org/val2017/0.png"}, "val2017/0.png"),
        ({"file_name": "0.png", "coco_url": "http://images.example.org/val2017/0.png"}, "val2017/0.png"),
        ({"file_name": "images/v1/0.png"}, "0.png"),
    ],
)
def test_an_image_is_found_by_its_name_or_its_address(tmp_path: Path, entry: dict[str, str], place: str) -> None:
    shown = coco(tmp_path, images=[{"id": 0, **entry}])
    (tmp_path / "val2017").mkdir()
    (tmp_path / "0.png").rename(tmp_path / place)
    [asked] = read_truth(shown, tmp_path).images
    assert asked.file == tmp_path / place


def test_phrases_asked_of_flickr30k_are_those_that_are_scored(world: World) -> None:
    flickr30k = read_protocol("miniature").dataset("flickr30k")
    truth = read_truth(flickr30k, world.root)
    spoken = [s.text[slice(*span)] for asked in truth.images for s in asked.sentences for span in s.spans]
    assert len(truth.images) == world.config.num_flickr30k
    assert all("[" not in phrase and phrase for phrase in spoken)
    result = judge(truth, answers(truth, lambda _: []), world.root.parent / "flickr", protocol(flickr30k))
    assert result.metrics["flickr30k-any"]["phrases"] == len(spoken)
    assert result.value == 0


# What is found


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (80, 96, 3), np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(noise).save(path)
    return path


def test_images_that_cannot_be_read_are_told_and_the_others_asked(
    eager_model: Path, picture: Path, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(picture.read_bytes()[:200])
    asker = make_asker(eager_model, Plan(dataset=dataset(tmp_path), names=("ring",), prompts="raw"))
    rows = ask(asker, "set", [torn, picture, tmp_path / "absent.jpg"])
    assert [row["key"] for row in rows] == [0, 1, 2]
    assert [row["reason"] for row in rows] == ["unreadable_image", None, "missing_image"]
    assert rows[1]["boxes"]
    assert rows[0]["boxes"] is None


def test_a_limit_per_prompt_keeps_the_best_of_each_prompt(eager_model: Path, picture: Path, tmp_path: Path) -> None:
    names = ("ring", "star", "moon", "house")
    limited = dataset(tmp_path, max_detections=5, limit_per="prompt", max_categories=2)
    [row] = ask(make_asker(eager_model, Plan(dataset=limited, names=names, prompts="raw")), "set", [picture])
    predictor = Predictor.load(eager_model, cfg=PostprocessConfig(max_detections=5))
    image = Image.open(picture)
    alone = [
        predictor.detect([image], dict(pair))[0] for pair in ([(0, "ring"), (1, "star")], [(2, "moon"), (3, "house")])
    ]
    expected = sorted((s for found in alone for s in found.scores), reverse=True)
    assert row["score"] == pytest.approx(expected, abs=1e-6)
    assert sorted(row["label"]) == sorted(label for found in alone for label in found.labels)


def test_an_image_is_encoded_once_for_all_prompts(
    eager_model: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = GLIPv2.encode_image
    monkeypatch.setattr(
        GLIPv2, "encode_image", lambda self, pixels: encoded.append(len(pixels)) or encode(self, pixels)
    )
    chunked = dataset(tmp_path, max_categories=1)
    ask(make_asker(eager_model, Plan(dataset=chunked, names=("ring", "star", "moon"), prompts="raw")), "set", [picture])
    assert encoded == [1]


def test_more_names_than_a_prompt_holds_are_all_asked(eager_model: Path, picture: Path, tmp_path: Path) -> None:
    names = tuple(f"{colour} {noun}" for noun in ("ring", "star", "moon", "house") for colour in ("red", "blue") * 30)
    plan = Plan(dataset=dataset(tmp_path, max_detections=100_000), names=(*names, "  "), prompts="raw")
    [row] = ask(make_asker(eager_model, plan), "set", [picture])
    assert set(row["label"]) == set(range(len(names)))
    assert row["unseen"] == [len(names)]


def test_sentences_asked_together_find_what_each_finds_alone(eager_model: Path, picture: Path, tmp_path: Path) -> None:
    said = [["a red ring and a star", [[0, 10], [15, 21]]], ["the moon", [[0, 8]]]]
    grounded = dataset(tmp_path, metrics=("flickr30k-any",), score="R@1", max_detections=20, limit_per="prompt")
    [row] = ask(make_asker(eager_model, Plan(dataset=grounded, names=(), prompts="raw")), "set", [picture], [said])
    predictor = Predictor.load(eager_model, cfg=PostprocessConfig(max_detections=20))
    first, second = (
        predictor.ground([Image.open(picture)], [text], [[(b, e) for b, e in spans]])[0] for text, spans in said
    )
    own = {label: [s for s, own in zip(row["score"], row["label"], strict=True) if own == label] for label in range(3)}
    for label in range(2):
        alone = [s for s, found in zip(first.scores, first.labels, strict=True) if found == label]
        assert own[label] == pytest.approx(alone, abs=1e-6)
    assert own[2] == pytest.approx(second.scores, abs=1e-6)


def test_other_weights_than_those_the_run_began_with_are_refused(eager_model: Path) -> None:
    with pytest.raises(ValueError, match="the run began with 000000000000; give every machine the same folder"):
        Asker(CONFIG, str(eager_model), "0" * 64, {})


# What it comes to


def test_a_perfect_answer_has_all_of_ap_though_ids_begin_at_0_and_boxes_reach_beyond_the_image(tmp_path: Path) -> None:
    whole = [
        {"image_id": 0, "category_id": 0, "bbox": [40, 8, 40, 24]},  # beyond the right edge
        {"image_id": 1, "category_id": 1, "bbox": [8, 8, 24, 24]},
        {"image_id": 1, "category_id": 0, "bbox": [30, 20, 20, 20], "iscrowd": 1},
    ]
    shown = coco(tmp_path, annotations=whole)
    truth = read_truth(shown, tmp_path)
    found = {
        0: [([40.0, 8.0, 80.0, 32.0], 0.9, 0)],
        1: [([8.0, 8.0, 32.0, 32.0], 0.9, 1), ([30.0, 20.0, 50.0, 40.0], 0.8, 0)],
    }
    assert judge(truth, answers(truth, found.__getitem__), tmp_path / "out", protocol(shown)).value == pytest.approx(
        100
    )


def test_what_is_found_of_a_name_counts_for_every_category_called_so(tmp_path: Path) -> None:
    shown = coco(tmp_path, categories=[{"id": 0, "name": "ring"}, {"id": 1, "name": "ring"}])
    truth = read_truth(shown, tmp_path)
    found = answers(truth, lambda _: [([8.0, 8.0, 32.0, 32.0], 0.9, 0)])
    judge(truth, found, tmp_path / "out", protocol(shown))
    records = json.loads((tmp_path / "out" / "set" / PREDICTIONS).read_text(encoding="utf-8"))
    assert [(r["image_id"], r["category_id"]) for r in records] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert records[0]["bbox"] == [8, 8, 24, 24]


def test_groups_are_told_apart_by_supercategory(tmp_path: Path) -> None:
    named = [{"id": 0, "name": "ring", "supercategory": "novel"}, {"id": 1, "name": "star", "supercategory": "base"}]
    shown = replace(coco(tmp_path, categories=named), by_supercategory=True)
    truth = read_truth(shown, tmp_path)
    found = {0: [([8.0, 8.0, 32.0, 32.0], 0.9, 0)], 1: [([40.0, 8.0, 60.0, 32.0], 0.9, 1)]}
    numbers = judge(truth, answers(truth, found.__getitem__), tmp_path / "out", protocol(shown)).metrics["coco-bbox"]
    assert (numbers["AP50_novel"], numbers["AP50_base"]) == (pytest.approx(1), 0)


def test_boxes_are_told_to_voc_in_its_own_pixels(tmp_path: Path) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    # Pixels 9 to 32, counted from 1: [8, 32) here.
    corners = "".join(
        f"<{side}>{value}</{side}>"
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), (9, 9, 32, 32), strict=True)
    )
    thing = f"<annotation><object><name>ring</name><bndbox>{corners}</bndbox></object></annotation>"
    (tmp_path / "Annotations" / "000001.xml").write_text(thing, encoding="utf-8")
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("000001\n", encoding="utf-8")
    Image.new("RGB", (64, 48)).save(tmp_path / "JPEGImages" / "000001.jpg")
    files = {"test": Files(annotations=str(tmp_path), images=str(tmp_path / "JPEGImages"))}
    voc = dataset(tmp_path, files=files, split="test", metrics=("voc",), score="mAP07", categories=("ring",))
    truth = read_truth(voc, tmp_path)
    found = answers(truth, lambda _: [([8.0, 8.0, 32.0, 32.0], 0.9, 0)])
    assert judge(truth, found, tmp_path / "out", protocol(voc)).value == pytest.approx(100)
    [record] = json.loads((tmp_path / "out" / "set" / PREDICTIONS).read_text(encoding="utf-8"))
    assert record["bbox"] == [9, 9, 23, 23]


def test_a_number_the_metric_does_not_have_is_told_with_those_it_has(tmp_path: Path) -> None:
    shown = replace(coco(tmp_path), score="mAP")
    truth = read_truth(shown, tmp_path)
    with pytest.raises(ValueError, match="score is 'mAP', allowed: AP, AP50"):
        judge(truth, answers(truth, lambda _: []), tmp_path / "out", protocol(shown))


def result(name: str, value: float, **changes: Any) -> Result:
    given: dict[str, Any] = {
        "dataset": name,
        "split": "test",
        "prompts": "manual",
        "protocol": ODINW13.hash,
        "value": value,
        "name": "AP",
        "metrics": {"coco-bbox": {"AP": value / 100}},
        "num_images": 10,
        "unread": {},
        "unseen": 0,
    }
    return Result(**(given | changes))


def test_the_table_sets_numbers_and_their_mean_beside_the_paper() -> None:
    lines = table(ODINW13, [result(d.name, 50.0) for d in ODINW13.datasets]).splitlines()
    assert ODINW13.hash in lines[0]
    assert lines[2].split() == ["PascalVOC", "10", "AP", "50.0", "56.2", "61.7", "57.6", "62.8", "66.3"]
    assert lines[15].split() == ["mean", "130", "50.0", "46.5", "52.1", "48.5", "54.2", "55.5"]


def test_a_part_of_the_data_sets_has_no_mean_and_what_was_not_read_is_told() -> None:
    lines = table(
        read_protocol("odinw13"), [result("Thermal", 50.0, unread={"missing_image": 3}, unseen=2)]
    ).splitlines()
    assert lines[2].split()[:5] == ["Thermal", "10", "AP", "50.0", "44.1"]
    assert lines[3].split()[2] == "–"
    assert "Thermal: nothing is found in 3 of 10 images: missing_image" in lines
    assert "Thermal: 2 names or phrases could not be looked for" in lines


# The whole way


@pytest.fixture(scope="module", autouse=True)
def one_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let all runs share MLflow's store: to make one takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")
        yield


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask in this process: Ray adds nothing to the numbers."""

    def carry_out(work: Work, out: Place) -> None:
        rows = pq.read_table(work.source.places[0].path)
        [step] = work.source.steps
        out.local.mkdir()
        pq.write_table(step.make(**step.arguments)(rows), (out / "0.parquet").path)

    monkeypatch.setattr("pipeline.benchmark.carry_out", carry_out)


@pytest.fixture(scope="module")
def odinw13_root(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay the drawn sets out as the public download of ODinW-13, each under the names of the set it is after."""
    root = tmp_path_factory.mktemp("odinw")
    for drawn, official in zip(ODINW_SETS, ODINW13.datasets, strict=True):
        place = official.place(root)
        source = world.odinw / drawn.name / "test"
        shutil.copytree(source, place.images)
        content = json.loads((source / ANNOTATION_FILE).read_text(encoding="utf-8"))
        content["categories"] = [{"id": n, "name": name} for n, name in enumerate(official.categories, start=1)]
        (Path(place.images) / ANNOTATION_FILE).unlink()
        Path(place.annotations).write_text(json.dumps(content), encoding="utf-8")
    return root


def test_odinw13_is_measured_set_by_set_and_averaged(
    here: None, eager_model: Path, odinw13_root: Path, tmp_path: Path
) -> None:
    job = BenchmarkJob(benchmark="odinw13", checkpoint=eager_model, data=odinw13_root, out=tmp_path / "out", run=CONFIG)
    said = str(evaluate_benchmark(job))
    saved = json.loads((job.out / SCORES).read_text(encoding="utf-8"))
    assert saved["protocol"] == ODINW13.hash
    assert len(saved["scores"]) == 13
    assert all((job.out / score["dataset"] / PREDICTIONS).is_file() for score in saved["scores"])
    average = sum(score["value"] for score in saved["scores"]) / 13
    [line] = [line.split() for line in said.splitlines() if line.startswith("mean")]
    assert line[2] == f"{average:.1f}"
    pinned = json.loads((odinw13_root / "pins.json").read_text(encoding="utf-8"))
    assert len(pinned) == 26
    _change_a_box(Path(ODINW13.dataset("Thermal").place(odinw13_root).annotations))
    with pytest.raises(ValueError, match=r"thermalDogsAndPeople/test.* is not what was first used"):
        evaluate_benchmark(replace(job, out=tmp_path / "other"))


def _change_a_box(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["annotations"][0]["bbox"][0] += 1
    path.write_text(json.dumps(content), encoding="utf-8")


def test_the_columns_of_the_paper_are_measured_on_the_drawn_world(
    here: None, eager_model: Path, world: World, tmp_path: Path
) -> None:
    job = BenchmarkJob(
        benchmark="miniature",
        checkpoint=eager_model,
        data=world.root,
        out=tmp_path,
        pins=tmp_path / "pins.json",
        run=CONFIG,
    )
    said = str(evaluate_benchmark(job))
    scores = {s["dataset"]: s for s in json.loads((tmp_path / SCORES).read_text(encoding="utf-8"))["scores"]}
    place = world.objects365_val
    benchmark = Benchmark(name="coco", annotations=place.annotations, images=place.images)
    torch.set_num_threads(1)
    alone, _ = measure(Predictor.load(eager_model), benchmark, 4)
    assert scores["coco"]["value"] == pytest.approx(alone.ap, abs=1e-4)
    assert {"AP50_base", "AP50_novel"} <= scores["novel"]["metrics"]["coco-bbox"].keys()
    assert set(scores["lvis"]["metrics"]) == {"lvis-fixed", "lvis"}
    assert scores["flickr30k"]["value"] == 100 * scores["flickr30k"]["metrics"]["flickr30k-any"]["R@1"]
    assert "flickr30k, flickr30k-merged: R@1" in said
    assert not any(score["unread"] for score in scores.values())
    plain = zero_shot(eager_model, world)
    assert [plain[name] for name in ("coco", "lvis", "flickr30k")] == pytest.approx(
        [scores[name]["value"] for name in ("coco", "lvis", "flickr30k")], abs=1e-4
    )


@pytest.mark.ray
def test_an_evaluation_goes_on_where_it_was_killed_and_is_then_only_read(
    ray_session: None, eager_model: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = world.objects365_val
    job = FolderJob(
        annotations=place.annotations, images=place.images, checkpoint=eager_model, out=tmp_path / "out", run=CONFIG
    )
    whole = str(evaluate_benchmark(job))
    predictions = (job.out / place.annotations.stem / PREDICTIONS).read_bytes()
    found = Place.of(job.out / "found.parquet")
    kept = [shard.name for shard in found.files(".parquet")]
    # As after a kill: no scores, no manifest, and one of the shards never came.
    (job.out / SCORES).unlink()
    (found / MANIFEST_NAME).delete()
    (found / kept[0]).delete()
    lost = {row["key"] for row in open_rows(found).to_table(columns=["key"]).to_pylist()}
    with pytest.raises(ValueError, match=r"was begun otherwise: bf16 was False, now True"):
        evaluate_benchmark(replace(job, run=replace(CONFIG, bf16=True)))
    assert str(evaluate_benchmark(job)).splitlines()[:3] == whole.splitlines()[:3]
    assert (job.out / place.annotations.stem / PREDICTIONS).read_bytes() == predictions
    assert {shard.name for shard in found.files(".parquet")} > set(kept[1:])
    assert len(lost) < world.config.num_objects365_val
    assert Ledger(found).bugs_seen() == []
    monkeypatch.setattr("pipeline.benchmark._ask_all", _refuse)
    assert str(evaluate_benchmark(job)).splitlines()[:3] == whole.splitlines()[:3]


def _refuse(*_: object) -> None:
    raise AssertionError("the images were asked again")


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_recipe_builds_and_explains_itself(name: str) -> None:
    assert EVALUATIONS[name]() == EVALUATIONS[name]()
    assert f"python -m jobs.evaluate {name} " in (EVALUATIONS[name].__doc__ or "")


def test_a_flag_changes_how_an_evaluation_runs() -> None:
    arguments = ["folder", "--annotations", "/a.json", "--run.num-workers", "3", "--run.bf16"]
    changed = cli.parse(EVALUATIONS, arguments, "prog")
    assert isinstance(changed, FolderJob)
    assert (changed.annotations, changed.run) == (Path("/a.json"), RunConfig(num_workers=3, bf16=True))


def test_every_protocol_has_a_recipe() -> None:
    assert set(list_protocols()) == EVALUATIONS.keys() - {"own", "folder"}


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (BenchmarkJob(benchmark="odinw13"), "--checkpoint is missing"),
        (BenchmarkJob(benchmark="odinw13", checkpoint=Path("/a"), out=Path("/b")), "--data is missing"),
        (BenchmarkJob(benchmark="", checkpoint=Path("/a"), out=Path("/b"), data=Path("/c")), "--benchmark is missing"),
        (FolderJob(checkpoint=Path("/a"), out=Path("/b")), "--annotations is missing"),
        (FolderJob(checkpoint=Path("/a"), out=Path("/b"), pins=Path("p.json")), "--pins is p.json, a relative path"),
    ],
)
def test_what_only_the_command_line_can_know_is_asked_for(job: BenchmarkJob | FolderJob, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        job.check()
