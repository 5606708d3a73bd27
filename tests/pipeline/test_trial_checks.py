"""Odd data sets: what is refused in a line before any trial runs, and what is tuned to all the same."""

import io
import json
import logging
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from glipv2.checkpoint import load
from glipv2.transfer.protocol import Mode, protocol_for
from pipeline.evaluate import Benchmark
from pipeline.protocol import read_protocol
from pipeline.sources.odinw import ANNOTATION_FILE, OdinwDataset, make_prompt
from pipeline.storage import Place
from pipeline.trial import ALL, Samples, TrialConfig, TrialInputs, TrialSpec, run_trial
from pipeline.trial_checks import check_protocol, check_trials

Edit = Callable[[dict[str, Any]], object]
SPLITS = ("train", "valid", "test")


def content(split: str) -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": f"{split}{n}.png", "width": 96, "height": 64} for n in range(2)],
        "categories": [{"id": 1, "name": "ring"}, {"id": 2, "name": "star"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [8, 8, 30, 30], "area": 900, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [40, 20, 32, 32], "area": 1024, "iscrowd": 0},
        ],
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a data set in ODinW's layout, some of whose splits were edited; give the folder it lies in."""

    def make(edit: Edit = lambda _: None, splits: tuple[str, ...] = SPLITS) -> Path:
        for split in SPLITS:
            folder, made = tmp_path / "Odd" / split, content(split)
            folder.mkdir(parents=True)
            for image in made["images"]:
                Image.new("RGB", (96, 64), "navy").save(folder / image["file_name"])
            if split in splits:
                edit(made)
            (folder / ANNOTATION_FILE).write_text(json.dumps(made))
        return tmp_path

    return make


def trials(*modes: Mode) -> list[TrialSpec]:
    tunings = [replace(protocol_for(mode, None), max_epochs=1, scales=(1.0,)) for mode in modes]
    return [TrialSpec(dataset="Odd", mode=t.mode, shots=ALL, seed=3, tuning=t) for t in tunings]


def rename(name: str) -> Edit:
    return lambda made: made["categories"][0].update(name=name)


def recount(made: dict[str, Any]) -> None:
    """Let all ids begin at 0."""
    for category in made["categories"]:
        category["id"] -= 1
    for box in made["annotations"]:
        box["id"] -= 1
        box["category_id"] -= 1


def reach_beyond(made: dict[str, Any]) -> None:
    made["annotations"][0]["bbox"] = [-20, -20, 300, 300]
    made["annotations"][1]["bbox"] = [500, 500, 10, 10]


def all_crowds(made: dict[str, Any]) -> None:
    for box in made["annotations"]:
        box["iscrowd"] = 1


def many_names(made: dict[str, Any]) -> None:
    made["categories"] += [{"id": 10 + n, "name": f"category number {n}"} for n in range(100)]


@pytest.mark.parametrize(
    ("edit", "splits", "said"),
    [
        (lambda made: made["images"][1].update(file_name="lost.jpg"), ("test",), "1 of the 2 images of .*lost.jpg"),
        (lambda made: made.update(annotations=[]), SPLITS, "no boxes"),
        (all_crowds, ("valid",), "valid.* has no boxes .crowds do not count."),
        (lambda made: made.update(images=[], annotations=[]), ("valid",), "valid.* has no images"),
        (many_names, SPLITS, "names do not fit into the model's text of 128 tokens"),
        (lambda made: made["annotations"][0].update(category_id=7), ("train",), "boxes of category 7, allowed: 1, 2"),
        (rename("moon"), ("test",), "category 1 is 'moon' in .*test.*, but 'ring' in training"),
        (lambda made: made["annotations"][0].update(bbox=[1, 2]), ("valid",), "bbox"),
    ],
)
def test_what_cannot_be_tuned_to_is_told_in_a_line_before_anything_runs(
    write: Callable[..., Path], eager_model: Path, edit: Edit, splits: tuple[str, ...], said: str
) -> None:
    inputs = TrialInputs(model=eager_model, root=write(edit, splits))
    with pytest.raises(ValueError, match=said) as caught:
        check_trials(trials("full"), TrialConfig(), inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda made: made["images"][1].update(file_name="lost.jpg"), "1 of the 2 images of .*lost.jpg"),
        (lambda made: made.update(annotations=[]), "no boxes"),
        (lambda made: made["categories"][0].update(id="one"), "category of id 'one'"),
    ],
)
def test_a_probe_that_cannot_be_measured_is_told_before_anything_runs(
    write: Callable[..., Path], eager_model: Path, tmp_path: Path, edit: Edit, said: str
) -> None:
    made = content("probe")
    for image in made["images"]:
        Image.new("RGB", (96, 64), "navy").save(tmp_path / image["file_name"])
    edit(made)
    (tmp_path / "probe.json").write_text(json.dumps(made))
    probe = Benchmark(name="probe", annotations=tmp_path / "probe.json", images=tmp_path)
    inputs = TrialInputs(model=eager_model, root=write(), probe=probe)
    with pytest.raises(ValueError, match=said):
        check_trials(trials("full"), TrialConfig(), inputs)


def truncated(form: str) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((96, 64), 50).convert("RGB").save(stream, form)
    return stream.getvalue()[:-300]


@pytest.mark.parametrize("file", [b"<html>", truncated("PNG"), truncated("JPEG")], ids=["html", "png", "jpeg"])
def test_a_file_that_is_no_whole_image_is_told_before_anything_runs(
    write: Callable[..., Path], eager_model: Path, file: bytes
) -> None:
    root = write()
    (root / "Odd" / "test" / "test1.png").write_bytes(file)
    with pytest.raises(ValueError, match=r"test1\.png cannot be opened"):
        check_trials(trials("full"), TrialConfig(), TrialInputs(model=eager_model, root=root))


def test_a_prepared_draw_of_other_images_is_refused(write: Callable[..., Path], eager_model: Path) -> None:
    root, made = write(), content("train")
    made["images"][0]["file_name"] = "elsewhere.png"
    (root / "Odd" / "train" / "fewshot_train_shot1_seed3.json").write_text(json.dumps(made))
    specs = [replace(spec, shots=1) for spec in trials("full")]
    with pytest.raises(ValueError, match=r"1 images prepared .* the first is elsewhere\.png"):
        check_trials(specs, TrialConfig(), TrialInputs(model=eager_model, root=root))


def test_a_set_without_a_test_split_is_told_of(
    write: Callable[..., Path], eager_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write()
    shutil.rmtree(root / "Odd" / "test")
    check_trials(trials("full"), TrialConfig(), TrialInputs(model=eager_model, root=root))
    assert "Odd has no test split" in caplog.text


RABBITS = "Cottontail-Rabbit"
"""Category of the data set Rabbits."""


@pytest.mark.parametrize(
    ("name", "prompts", "lost", "said"),
    [
        (RABBITS, "manual", None, None),
        (RABBITS.upper(), "manual", None, None),
        (RABBITS, "raw", None, "odinw13 has manual prompts, but the sweep asks with raw ones"),
        (RABBITS, "manual", "test", "measures .*test.* of Rabbits, but the sweep would measure .*valid"),
        ("hare", "manual", None, "Rabbits has the categories 'hare', but in odinw13"),
    ],
)
def test_a_mean_of_a_benchmark_is_refused_before_anything_runs(
    tmp_path: Path, name: str, prompts: str, lost: str | None, said: str | None
) -> None:
    protocol = read_protocol("odinw13")
    dataset = OdinwDataset(name="Rabbits", root=tmp_path)
    for split in SPLITS:
        if split != lost:
            folder = tmp_path / protocol.dataset("Rabbits").folder / split
            folder.mkdir(parents=True)
            (folder / ANNOTATION_FILE).write_text(
                json.dumps({**content(split), "categories": [{"id": 1, "name": name}]})
            )
    with pytest.raises(ValueError, match=said) if said else nullcontext():
        check_protocol(protocol, [dataset], prompts)


@pytest.mark.parametrize(
    ("edit", "splits"),
    [
        (recount, SPLITS),
        (rename("star"), SPLITS),
        (rename("  "), SPLITS),
        (reach_beyond, SPLITS),
        (lambda made: made["annotations"][0].update(iscrowd=1), SPLITS),
        (lambda made: made["annotations"][0].update(bbox=[8, 8, 0, 0], area=0), ("train",)),
        (lambda made: made["annotations"].pop(), ("train",)),
    ],
)
def test_other_oddities_are_tuned_to_and_measured(
    write: Callable[..., Path], eager_model: Path, tmp_path: Path, edit: Edit, splits: tuple[str, ...]
) -> None:
    inputs = TrialInputs(model=eager_model, root=write(edit, splits))
    specs = trials("full", "prompt")
    check_trials(specs, TrialConfig(), inputs)
    for spec in specs:
        outcome = run_trial(spec, TrialConfig(), inputs, Place.of(tmp_path / "out"), lambda _: None)
        assert 0 <= outcome.ap <= outcome.ap50 <= 100
        assert [seen["epoch"] for seen in outcome.history] == [0, 1]
        assert all(0 <= seen["val_ap"] <= seen["val_ap50"] <= 100 for seen in outcome.history)


def test_boxes_in_whole_numbers_are_scaled_like_any_others(write: Callable[..., Path], eager_model: Path) -> None:
    dataset, (model, _) = OdinwDataset(name="Odd", root=write()), load(eager_model)
    samples = Samples(dataset, ["train0.png"], make_prompt(dataset), model.cfg)  # 96 px become 128
    assert samples[0].boxes_xyxy.flatten().tolist() == pytest.approx([10.67, 10.67, 50.67, 50.67], abs=0.5)


def test_a_blank_name_is_said_to_be_left_out(
    write: Callable[..., Path], eager_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pipeline.trial_checks"):
        check_trials(trials("full"), TrialConfig(), TrialInputs(model=eager_model, root=write(rename("  "))))
    assert "category [1] has a blank name" in caplog.text
