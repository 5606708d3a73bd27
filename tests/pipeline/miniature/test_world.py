import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO

from pipeline import shards
from pipeline.miniature import config
from pipeline.miniature.grammar import BASE_NOUNS, GENERIC_NOUNS, NOVEL_NOUNS, plural
from pipeline.miniature.odinw import ANNOTATION_FILE, ODINW_SETS, SPLITS
from pipeline.miniature.world import WORLD_NAME, Annotated, World, build_world, list_parts, open_world

NOVEL_WORDS = {*NOVEL_NOUNS, *map(plural, NOVEL_NOUNS)}
BOXED_PARTS = ("objects365_train", "objects365_val", "gold")


def read_tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def coco_sets(world: World) -> list[Annotated]:
    folders = [world.odinw / s.name / split for s in ODINW_SETS for split in SPLITS]
    odinw = [Annotated(annotations=folder / ANNOTATION_FILE, images=folder) for folder in folders]
    return [world.objects365_train, world.objects365_val, world.gold, world.novel_test, *odinw]


def test_bytes_do_not_depend_on_the_number_of_processes(few: config.MiniatureConfig, tmp_path: Path) -> None:
    alone, together = (build_world(few, tmp_path / str(n), num_processes=n).root for n in (1, 2))
    assert read_tree(alone) == read_tree(together)


def test_other_seed_is_another_world(few: config.MiniatureConfig, tmp_path: Path) -> None:
    first, second = (build_world(replace(few, seed=n), tmp_path / str(n)) for n in (1, 2))
    assert first.objects365_train.annotations.read_bytes() != second.objects365_train.annotations.read_bytes()


def test_finished_world_is_reused(few: config.MiniatureConfig, tmp_path: Path) -> None:
    world = build_world(few, tmp_path)
    world.web_pairs.write_text("kept")
    assert build_world(few, tmp_path) == world
    assert world.web_pairs.read_text() == "kept"


def test_interrupted_build_is_repaired(
    few: config.MiniatureConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_world(few, tmp_path / "whole").root

    def die(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_atomically", die)
        with pytest.raises(KeyboardInterrupt):
            build_world(few, tmp_path / "killed")
    leftover = tmp_path / "killed" / "gold" / "leftover.jpg"
    leftover.touch()
    assert read_tree(build_world(few, tmp_path / "killed").root) == read_tree(whole)


def test_killed_build_leaves_no_process_behind_and_is_made_again(few: config.MiniatureConfig, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pipeline.miniature import config, world; "
        "world.build_world(config.demo_size(), Path(sys.argv[1]), num_processes=2)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(shards.__file__).parents[1]) as build:
        while build.poll() is None and not any(tmp_path.rglob("*.jpg")):
            time.sleep(0.05)
        build.kill()
        build.communicate(timeout=30)  # returns once no process holds the pipe any more
    assert build.returncode == -signal.SIGKILL
    assert read_tree(build_world(few, tmp_path / "killed").root) == read_tree(build_world(few, tmp_path / "whole").root)


def test_unfinished_world_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished miniature world"):
        open_world(tmp_path)


def test_opened_world_equals_the_built_one(world: World) -> None:
    assert open_world(world.root) == world


def test_folder_of_others_is_not_touched(few: config.MiniatureConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match="not ours"):
        build_world(few, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_another_configuration_is_refused_with_the_difference(few: config.MiniatureConfig, tmp_path: Path) -> None:
    build_world(few, tmp_path)
    with pytest.raises(ValueError, match="seed 0 there, 7 wanted"):
        build_world(replace(few, seed=7), tmp_path)


def test_world_of_another_version_is_refused(few: config.MiniatureConfig, tmp_path: Path) -> None:
    stamp = build_world(few, tmp_path).root / WORLD_NAME
    stamp.write_text(stamp.read_text().replace('"world_version": ', '"world_version": 9'))
    with pytest.raises(ValueError, match="another one"):
        build_world(few, tmp_path)


@pytest.mark.parametrize("change", [{"num_gold": 0}, {"port": 80}, {"image_size_px": 8}, {"generic_share": 1.5}])
def test_impossible_configuration_is_refused(few: config.MiniatureConfig, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(few, **change)


def test_full_size_has_no_less_of_anything_than_the_demo() -> None:
    demo, full = vars(config.demo_size()), vars(config.full_size())
    assert all(full[name] >= demo[name] for name in demo)
    assert full["num_web"] >= 8000


def test_novel_nouns_are_not_drawn_in_boxed_training_sets(world: World) -> None:
    parts = {part.name: part for part in list_parts(world)}
    drawn = {noun for name in BOXED_PARTS for style in parts[name].styles for noun in style.nouns + style.first_nouns}
    assert drawn == set(BASE_NOUNS)


def test_novel_nouns_are_not_written_in_boxed_training_sets(world: World) -> None:
    for place in (world.objects365_train, world.objects365_val, world.gold):
        assert not NOVEL_WORDS & set(re.findall("[a-z]+", place.annotations.read_text().lower()))


def test_novel_nouns_are_in_about_half_of_the_web(world: World) -> None:
    rows = read_lines(world.web_truth)
    share = sum(any(thing["novel"] for thing in row["objects"]) for row in rows) / len(rows)  # type: ignore[attr-defined]
    assert 0.4 < share < 0.75


def test_boxes_lie_inside_their_pictures(world: World) -> None:
    for place in coco_sets(world):
        document = json.loads(place.annotations.read_text())
        sides = {image["id"]: (image["width"], image["height"]) for image in document["images"]}
        assert document["annotations"]
        for annotation in document["annotations"]:
            x, y, width, height = annotation["bbox"]
            assert x >= 0
            assert y >= 0
            assert width > 0
            assert height > 0
            assert (x + width, y + height) <= sides[annotation["image_id"]]
            assert y + height <= sides[annotation["image_id"]][1]
            assert annotation["area"] == width * height


def test_pictures_have_the_size_the_json_says(world: World) -> None:
    for place in coco_sets(world):
        for image in json.loads(place.annotations.read_text())["images"]:
            with Image.open(place.images / image["file_name"]) as opened:
                assert opened.size == (image["width"], image["height"])


def test_ids_count_from_one(world: World) -> None:
    for place in coco_sets(world):
        document = json.loads(place.annotations.read_text())
        for key in ("images", "annotations", "categories"):
            assert [entry["id"] for entry in document[key]] == list(range(1, len(document[key]) + 1))


def test_pycocotools_reads_the_detection_sets(world: World) -> None:
    coco = COCO(str(world.objects365_train.annotations))
    assert len(coco.getImgIds()) == world.config.num_objects365_train
    assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == list(BASE_NOUNS)
    assert all(coco.getAnnIds(imgIds=[image]) for image in coco.getImgIds())


def test_novel_test_tells_base_from_novel(world: World) -> None:
    categories = json.loads(world.novel_test.annotations.read_text())["categories"]
    assert {c["name"] for c in categories if c["supercategory"] == "novel"} == set(NOVEL_NOUNS)


def test_generic_nouns_come_into_the_human_labelled_mix_alone(few: config.MiniatureConfig, tmp_path: Path) -> None:
    told = replace(few, num_gold=8, num_web=8, generic_share=0.9)
    world = build_world(told, tmp_path)
    captions = [image["caption"] for image in json.loads(world.gold.annotations.read_text())["images"]]
    generic = re.compile(rf"\b({'|'.join(GENERIC_NOUNS)})s?\b")
    assert any(map(generic.search, captions))
    assert not generic.search(world.web_pairs.read_text())


def test_gold_spans_cut_out_phrases(world: World) -> None:
    document = json.loads(world.gold.annotations.read_text())
    captions = {image["id"]: image["caption"] for image in document["images"]}
    nouns = {*BASE_NOUNS, *map(plural, BASE_NOUNS)}
    for annotation in document["annotations"]:
        for begin, end in annotation["tokens_positive"]:
            assert captions[annotation["image_id"]][begin:end].split()[-1] in nouns


def test_gold_negative_spans_are_the_rest_of_the_caption(world: World) -> None:
    document = json.loads(world.gold.annotations.read_text())
    for image in document["images"]:
        own = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        positive = {tuple(span) for annotation in own for span in annotation["tokens_positive"]}
        spans = sorted(positive | {tuple(span) for span in image["tokens_negative"]})
        assert "".join(image["caption"][begin:end] for begin, end in spans) == image["caption"]


def test_some_gold_things_have_several_spans_and_some_pictures_two_captions(world: World) -> None:
    document = json.loads(world.gold.annotations.read_text())
    assert any(len(annotation["tokens_positive"]) > 1 for annotation in document["annotations"])
    assert len(document["images"]) > len({image["file_name"] for image in document["images"]})


def test_odinw_has_the_layout_of_the_real_one(world: World, test_data: Path) -> None:
    real = test_data / "detection" / "raccoon"
    mine = world.odinw / "NightMoons"
    splits = {path.name for path in real.iterdir() if path.is_dir()}
    assert {path.name for path in mine.iterdir()} == splits
    for split in splits:
        theirs, ours = (json.loads((folder / split / ANNOTATION_FILE).read_text()) for folder in (real, mine))
        assert ours.keys() == theirs.keys()
        for key in ("images", "annotations", "categories"):
            assert ours[key][0].keys() == theirs[key][0].keys()


def test_odinw_has_thirteen_sets_with_a_box_in_each_picture(world: World) -> None:
    assert len({path.name for path in world.odinw.iterdir()}) == len(ODINW_SETS) == 13
    for odinw_set in ODINW_SETS:
        for split in SPLITS:
            document = json.loads((world.odinw / odinw_set.name / split / ANNOTATION_FILE).read_text())
            boxed = {annotation["image_id"] for annotation in document["annotations"]}
            assert boxed == {image["id"] for image in document["images"]}


def test_one_odinw_set_has_nineteen_training_images_in_the_demo(tmp_path: Path) -> None:
    parts = list_parts(World(root=tmp_path, config=config.demo_size()))
    small = [part.name for part in parts if part.name.endswith("train") and part.count == 19]
    assert small == ["odinw/Parcels/train"]


def test_pairs_have_one_line_per_row_and_truth_its_caption(world: World) -> None:
    header, *lines = world.web_pairs.read_text(encoding="utf-8").splitlines()
    captions = {url: caption for caption, url in (line.split("\t") for line in lines)}
    assert header == "caption\turl"
    assert len(captions) == len(lines) == world.config.num_web + world.config.num_hazards
    assert [row["url"] for row in read_lines(world.web_expected)] == list(captions)
    for row in read_lines(world.web_truth):
        assert captions[str(row["url"])] == row["caption"]


def test_web_has_captions_without_an_object_and_with_quotation_marks(world: World) -> None:
    rows = read_lines(world.web_truth)
    assert any(all(thing["phrase"] is None for thing in row["objects"]) for row in rows)  # type: ignore[attr-defined]
    assert any('"' in str(row["caption"]) for row in rows)
