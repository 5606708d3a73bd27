import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from pipeline import schema
from pipeline.protocol import odinw
from pipeline.sources.odinw import (
    ANNOTATION_FILE,
    OdinwDataset,
    few_shot_images,
    list_datasets,
    make_prompt,
    read_split,
)


def write(path: Path, names: tuple[str, ...] = ("ring",), num_images: int = 3) -> None:
    """Write a split: image ``n`` shows one object, of the categories in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9)).save(path.parent / "a.png")
    shown = [n % len(names) + 1 for n in range(num_images)]
    content = {
        "images": [{"id": n, "file_name": f"{n}.png" if n else "a.png"} for n in range(num_images)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": category, "bbox": [1, 1, 2, 2]} for n, category in enumerate(shown)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def make(root: Path, name: str, names: tuple[str, ...], num_images: int = 3) -> OdinwDataset:
    dataset = OdinwDataset(name=name, root=root)
    folder = odinw()[name].folder if name in odinw() else name
    write(root / folder / "train" / ANNOTATION_FILE, names, num_images)
    return dataset


def test_data_sets_are_found_in_the_paper_order_then_by_name(tmp_path: Path) -> None:
    for name in ("zebra", "Thermal", "Aquarium", "AerialDrone", "apple"):
        make(tmp_path, name, ("ring",))
    write(tmp_path / "AerialMaritimeDrone" / "tiled" / "train" / ANNOTATION_FILE)
    write(tmp_path / "pistols" / "export" / f"train_{ANNOTATION_FILE}")
    expected = ["AerialDrone", "Aquarium", "Pistols", "Thermal", "AerialMaritimeDrone/tiled", "apple", "zebra"]
    assert [dataset.name for dataset in list_datasets(tmp_path)] == expected


def test_the_folder_of_a_data_set_itself_is_answered_with_what_to_give(tmp_path: Path) -> None:
    make(tmp_path, "apple", ("ring",))
    with pytest.raises(ValueError, match=f"is a data set itself.* --data {tmp_path} --datasets apple"):
        list_datasets(tmp_path / "apple")


def test_listed_data_sets_are_made_again_from_name_and_root(tmp_path: Path) -> None:
    make(tmp_path, "EgoHands", ("hand",))
    (dataset,) = list_datasets(tmp_path)
    assert OdinwDataset(name=dataset.name, root=tmp_path).categories == {1: "hand"}


@pytest.mark.parametrize(
    ("split", "folder"), [("val", "valid"), ("valid", "valid"), ("minival", "mini_val"), ("test", "test")]
)
def test_splits_are_found_in_their_folders(tmp_path: Path, split: str, folder: str) -> None:
    path = tmp_path / "shapes" / folder / ANNOTATION_FILE
    write(path)
    dataset = OdinwDataset(name="shapes", root=tmp_path)
    assert (dataset.annotations(split), dataset.images(split)) == (path, path.parent)


def test_flat_folder_has_its_splits_in_the_file_names(tmp_path: Path) -> None:
    path = tmp_path / "pistols" / "export" / f"val_{ANNOTATION_FILE}"
    write(path)
    assert OdinwDataset(name="Pistols", root=tmp_path).annotations("valid") == path


def test_data_set_without_test_split_is_tested_on_validation(tmp_path: Path) -> None:
    path = tmp_path / "PascalVOC" / "valid" / ANNOTATION_FILE
    write(path)
    assert OdinwDataset(name="PascalVOC", root=tmp_path).annotations("test") == path


@pytest.mark.parametrize(
    ("split", "message"), [("val", "has no val split; expected"), ("dev", "split is 'dev', allowed")]
)
def test_absent_split_is_named(tmp_path: Path, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, "shapes", ("ring",)).annotations(split)


def test_split_is_read_as_detection_rows(tmp_path: Path) -> None:
    rows = list(read_split(make(tmp_path, "shapes", ("ring",)), "train"))
    assert [row["status"] for row in rows] == [schema.LABELLED, schema.REJECTED, schema.REJECTED]
    assert (rows[0]["source"], rows[0]["split"], rows[0]["category"]) == ("shapes", "train", ["ring"])


def test_few_shot_images_show_every_category(tmp_path: Path) -> None:
    dataset = make(tmp_path, "shapes", ("ring", "star", "moon"), num_images=30)
    names = few_shot_images(dataset, shots=3, seed=30)
    assert Counter(int(name.split(".")[0].replace("a", "0")) % 3 for name in names) == {0: 3, 1: 3, 2: 3}
    assert names != few_shot_images(dataset, shots=3, seed=3)


def test_prepared_few_shot_list_is_preferred(tmp_path: Path) -> None:
    dataset = make(tmp_path, "shapes", ("ring",), num_images=30)
    write(dataset.images("train") / "fewshot_train_shot5_seed30.json", num_images=2)
    assert few_shot_images(dataset, shots=5, seed=30) == ["a.png", "1.png"]
    assert len(few_shot_images(dataset, shots=5, seed=3)) == 5


def test_plain_prompt_joins_the_names_in_id_order(tmp_path: Path) -> None:
    prompt = make_prompt(make(tmp_path, "shapes", ("ring", "left_star")))
    assert (prompt.text, prompt.spans) == ("ring. left star", {1: (0, 4), 2: (6, 15)})


@pytest.mark.parametrize(
    ("name", "names", "text", "spans"),
    [
        ("Rabbits", ("Cottontail-Rabbit",), "rabbit", {1: (0, 6)}),
        ("EgoHands", ("hand",), " hand of a person", {1: (1, 5)}),
        ("Mushrooms", ("CoW", "chanterelle"), "flat mushroom. yellow mushroom", {1: (0, 13), 2: (15, 30)}),
        ("Packages", ("package",), "there is a package on the porch", {1: (11, 18)}),
        ("Pothole", ("pothole",), "there are some holes on the road", {1: (15, 20)}),
    ],
)
def test_paper_prompt_spans_the_name_alone(
    tmp_path: Path, name: str, names: tuple[str, ...], text: str, spans: dict[int, tuple[int, int]]
) -> None:
    prompt = make_prompt(make(tmp_path, name, names))
    assert (prompt.text, prompt.spans) == (text, spans)


def test_paper_prompt_can_be_left_out(tmp_path: Path) -> None:
    prompt = make_prompt(make(tmp_path, "Pothole", ("pothole",)), use_paper_prompts=False)
    assert prompt.text == "pothole"


def test_data_set_that_only_shares_the_name_keeps_its_words(tmp_path: Path) -> None:
    assert make_prompt(make(tmp_path, "Packages", ("parcel",))).text == "parcel"


def test_public_download_of_odinw_13_is_found_whole(test_data: Path, tmp_path: Path) -> None:
    published = json.loads((test_data / "text" / "names" / "odinw_datasets.json").read_text(encoding="utf-8"))
    splits = [
        (split, tmp_path / entry[split]["ann_file"], tuple(category["name"] for category in entry["categories"]))
        for entry in published.values()
        if entry["in_13"]
        for split in ("train", "val", "test")
    ]
    for _, path, names in splits:
        write(path, names)
    datasets = list_datasets(tmp_path / "odinw")
    assert [dataset.name for dataset in datasets] == list(odinw())
    found = {(split, dataset.annotations(split)) for dataset in datasets for split in ("train", "val", "test")}
    assert found == {(split, path) for split, path, _ in splits}
    assert {dataset.name: make_prompt(dataset).text for dataset in datasets if odinw()[dataset.name].wordings} == {
        "Aquarium": " fish. jellyfish. penguin , which is black and white. puffin with orange beaks . shark. starfish. "
        "stingray which is flat and round",
        "Rabbits": "rabbit",
        "EgoHands": " hand of a person",
        "Mushrooms": "flat mushroom. yellow mushroom",
        "Packages": "there is a package on the porch",
        "Pothole": "there are some holes on the road",
    }


def test_real_data_sets_are_read_in_full(test_data: Path) -> None:
    datasets = list_datasets(test_data / "detection")
    assert len(datasets) == 5
    for dataset in datasets:
        rows = [row for split in ("train", "val", "test") for row in read_split(dataset, split)]
        assert {row["status"] for row in rows} == {schema.LABELLED}
        assert {name for row in rows for name in row["category"]} <= set(dataset.categories.values())
        assert few_shot_images(dataset, shots=3, seed=30)
