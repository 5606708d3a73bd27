"""Which images a few-shot run trains on and validates with."""

import json
from pathlib import Path

import pytest

from pipeline.sources.odinw import ANNOTATION_FILE, OdinwDataset, few_shot_images, few_shot_validation


@pytest.fixture
def dataset(tmp_path: Path) -> OdinwDataset:
    """Three images with a ring, one of them with a star; no image shows a moon."""
    folder = tmp_path / "shapes" / "train"
    folder.mkdir(parents=True)
    shown = [(0, 1), (1, 1), (2, 1), (2, 2)]
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(3)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": [1, 1, 2, 2]}
            for number, (image, category) in enumerate(shown)
        ],
        "categories": [{"id": 1, "name": "ring"}, {"id": 2, "name": "star"}, {"id": 3, "name": "moon"}],
    }
    (folder / ANNOTATION_FILE).write_text(json.dumps(content), encoding="utf-8")
    return OdinwDataset(name="shapes", root=tmp_path)


def test_category_with_too_few_images_is_named_with_their_number(dataset: OdinwDataset) -> None:
    with pytest.raises(ValueError, match=r"'star' \(2\) in 1; give at most 1 shots") as caught:
        few_shot_images(dataset, shots=3, seed=3)
    assert str(dataset.annotations("train")) in str(caught.value)
    assert "ring" not in str(caught.value)


def test_too_few_images_can_be_allowed(dataset: OdinwDataset) -> None:
    assert few_shot_images(dataset, shots=3, seed=3, strict=False) == ["0.png", "1.png", "2.png"]


def test_category_that_no_image_shows_is_not_asked_for(dataset: OdinwDataset) -> None:
    assert "2.png" in few_shot_images(dataset, shots=1, seed=3)


@pytest.mark.parametrize(
    "path",
    [
        "valid/fewshot_val_shot3_seed30.json",
        "fewshot_val_shot3_seed30.json",
        "mini_val/fewshot_minival_shot3_seed30.json",
    ],
)
def test_prepared_validation_list_is_found(dataset: OdinwDataset, path: str) -> None:
    prepared = dataset.folder / path
    prepared.parent.mkdir(exist_ok=True)
    prepared.write_text("{}", encoding="utf-8")
    assert few_shot_validation(dataset, shots=3, seed=30) == prepared
    assert few_shot_validation(dataset, shots=3, seed=3) is None


def test_list_of_the_split_for_choosing_models_comes_first(dataset: OdinwDataset) -> None:
    for path in ("valid/fewshot_val_shot1_seed3.json", "mini_val/fewshot_minival_shot1_seed3.json"):
        (dataset.folder / path).parent.mkdir()
        (dataset.folder / path).write_text("{}", encoding="utf-8")
    found = few_shot_validation(dataset, shots=1, seed=3)
    assert found is not None
    assert found.parent.name == "mini_val"
