import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from glipv2.text.prompts import Wording
from glipv2.text.tokenizer import WordPiece, make_vocabulary
from pipeline.protocol import (
    MEAN,
    Files,
    PaperRow,
    Protocol,
    ProtocolDataset,
    Score,
    list_protocols,
    make_prompts,
    mean,
    odinw,
    read_protocol,
)

ODINW13 = read_protocol("odinw13")


def scores(protocol: Protocol = ODINW13) -> list[Score]:
    return [
        Score(dataset=d.name, split=d.split, prompts=protocol.prompts, protocol=protocol.hash, value=float(n))
        for n, d in enumerate(protocol.datasets)
    ]


def text(**changes: Any) -> str:
    """Write a protocol; a value of None leaves a key out."""
    content: dict[str, Any] = {
        "title": "two sets",
        "source": "a test",
        "prompts": "raw",
        "average": MEAN,
        "defaults": {"metrics": ["coco-bbox"], "score": "AP", "split": "val"},
        "layouts": {"plain": {"val": {"annotations": "{folder}/val.json", "images": "{folder}/images"}}},
        "datasets": [{"name": "a", "folder": "A", "layout": "plain"}, {"name": "b", "folder": "B", "layout": "plain"}],
    }
    return yaml.safe_dump({key: value for key, value in (content | changes).items() if value is not None})


def write(folder: Path, content: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", list_protocols())
def test_every_protocol_that_comes_with_the_code_can_be_read(name: str) -> None:
    protocol = read_protocol(name)
    assert protocol.name == name
    assert re.fullmatch(r"[0-9a-f]{16}", protocol.hash)


def test_protocols_differ_by_their_hashes() -> None:
    assert len({read_protocol(name).hash for name in list_protocols()}) == len(list_protocols())


def test_comments_and_what_is_only_shown_do_not_change_the_hash(tmp_path: Path) -> None:
    first = read_protocol(write(tmp_path, text())).hash
    row = {"model": "M", "source": "T", "scores": [1.0, 2.0]}
    assert (
        read_protocol(write(tmp_path, f"# a remark\n{text(title='other', source='other', paper=[row])}")).hash == first
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": "manual"},
        {"average": "none"},
        {"defaults": {"metrics": ["coco-bbox"], "score": "AP50", "split": "val"}},
        {"defaults": {"metrics": ["coco-bbox"], "score": "AP", "split": "val", "max_categories": 40}},
        {"layouts": {"plain": {"val": {"annotations": "{folder}/other.json", "images": "{folder}/images"}}}},
        {"datasets": [{"name": "a", "folder": "A", "layout": "plain"}]},
    ],
)
def test_whatever_decides_a_number_changes_the_hash(tmp_path: Path, changes: dict[str, Any]) -> None:
    first = read_protocol(write(tmp_path, text())).hash
    assert read_protocol(write(tmp_path, text(**changes))).hash != first


def test_a_setting_given_as_it_is_by_default_changes_no_hash(tmp_path: Path) -> None:
    first = read_protocol(write(tmp_path, text())).hash
    defaults = {"metrics": ["coco-bbox"], "score": "AP", "split": "val", "max_detections": 100}
    assert read_protocol(write(tmp_path, text(defaults=defaults))).hash == first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"title": None}, "it lacks title"),
        ({"tittle": "x"}, "it has tittle; allowed: average, change"),
        ({"prompts": "both"}, "prompts is 'both', allowed: raw, manual"),
        ({"average": "median"}, "average is 'median', allowed: unweighted mean, none"),
        ({"datasets": []}, "datasets is empty"),
        ({"datasets": [{"name": "a/b", "layout": "plain"}]}, "a data set is called 'a/b'"),
        ({"datasets": {"a": 1}}, "datasets is {'a': 1}; expected a list"),
        ({"datasets": ["a"]}, r"datasets\[0\] is 'a'; expected keys and values"),
        ({"datasets": [{"name": "a", "layout": "plain"}] * 2}, "the data set a is there twice"),
        ({"datasets": [{"name": "a", "layout": "flat"}]}, "a has layout 'flat', allowed: plain"),
        ({"datasets": [{"name": "a", "layout": "plain", "splt": "val"}]}, r"datasets\[0\] has splt; allowed"),
        ({"datasets": [{"name": "a", "layout": "plain", "split": "test"}]}, "a: split is 'test', allowed: val"),
        (
            {"datasets": [{"name": "a", "layout": "plain", "metrics": ["ap"]}]},
            r"a: metrics is \[ap\], allowed: coco-bbox",
        ),
        ({"datasets": [{"name": "a", "layout": "plain", "metrics": ["voc"]}]}, "a: categories is empty"),
        ({"datasets": [{"name": "a", "layout": "plain", "metrics": ["lvis", "voc"]}]}, "read different forms of truth"),
        ({"datasets": [{"name": "a", "layout": "plain", "max_detections": "many"}]}, "max_detections is 'many'"),
        (
            {"datasets": [{"name": "a", "layout": "plain", "wordings": {"cat": {"name": "kitten"}}}]},
            r"a: wordings speak of \['cat'\]",
        ),
        ({"change": {"c": {"split": "val"}}}, "change speaks of c, which is none of the data sets"),
        ({"paper": [{"model": "M", "source": "T", "scores": [1.0]}]}, "paper: M has 1 scores for 2 data sets"),
        ({"same_data_as": "coco2017"}, "same_data_as is 'coco2017', allowed: coco-val2017"),
    ],
)
def test_a_mistake_in_a_protocol_is_told_in_a_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        read_protocol(write(tmp_path, text(**changes)))
    assert str(caught.value).startswith("mine.yaml: ")
    assert "\n" not in str(caught.value)


def test_what_is_no_yaml_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml: it cannot be read as YAML") as caught:
        read_protocol(write(tmp_path, "title: [1,\nsource: }"))
    assert "\n" not in str(caught.value)


def test_an_unknown_protocol_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no protocol 'odinw14', allowed: coco-val2017, .*odinw13"):
        read_protocol("odinw14")


def test_files_are_found_under_the_root_of_the_data(tmp_path: Path) -> None:
    dataset = read_protocol(write(tmp_path, text())).dataset("b")
    assert dataset.place(Path("/data")) == Files(annotations="/data/B/val.json", images="/data/B/images")
    with pytest.raises(ValueError, match="b has no split 'test', allowed: val"):
        dataset.place(Path("/data"), "test")


def test_the_mean_of_the_whole_benchmark_counts_every_data_set_alike() -> None:
    assert mean(scores(), ODINW13) == 6.0


@pytest.mark.parametrize("row", ODINW13.paper, ids=lambda row: row.model)
def test_the_mean_is_the_one_the_paper_prints(row: PaperRow) -> None:
    cells = [replace(score, value=value) for score, value in zip(scores(), row.scores, strict=True)]
    printed = 53.2 if row.model == "GLIPv2-B" else row.mean  # 54.2 is printed; the cells do not give it
    assert mean(cells, ODINW13) == pytest.approx(printed, abs=0.05)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda s: s[:-1], "Thermal is missing"),
        (lambda s: [*s, replace(s[0], dataset="BCCD")], "BCCD is not part of it"),
        (lambda s: [*s, s[2]], "Aquarium is there 2 times"),
        (lambda s: [replace(s[0], split="val"), *s[1:]], "PascalVOC has split val, not test"),
        (lambda s: [replace(x, prompts="raw") for x in s], "has prompts raw, not manual.*10 more faults"),
        (lambda s: [replace(s[0], protocol="0" * 16), *s[1:]], "PascalVOC has protocol 0000"),
        (lambda s: [replace(s[0], value=-1.0), *s[1:]], "PascalVOC has no score"),
        (lambda s: [replace(s[0], value=float("nan")), *s[1:]], "PascalVOC has no score"),
    ],
)
def test_a_mean_over_anything_else_is_refused(wrong: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        mean(wrong(scores()), ODINW13)
    assert "\n" not in str(caught.value)


def test_a_benchmark_of_single_sets_has_no_mean() -> None:
    protocol = read_protocol("miniature")
    with pytest.raises(ValueError, match="miniature has no mean"):
        mean(scores(protocol), protocol)


def test_the_reference_own_evaluation_has_other_splits_and_words_on_the_same_data() -> None:
    raw = read_protocol("odinw13-val-raw")
    assert [d.name for d in raw.datasets] == [d.name for d in ODINW13.datasets]
    assert {d.name: d.split for d in raw.datasets if d.split != "val"} == {"EgoHands": "minival", "Vehicles": "minival"}
    assert (raw.prompts, ODINW13.prompts) == ("raw", "manual")
    assert [d.files for d in raw.datasets] == [d.files for d in ODINW13.datasets]


def test_odinw35_is_odinw13_and_22_more() -> None:
    whole = read_protocol("odinw35")
    assert len(whole.datasets) == 35
    assert [d.name for d in whole.datasets[:13]] == list(odinw())


def test_files_are_those_of_the_public_download(test_data: Path) -> None:
    published = json.loads((test_data / "text" / "names" / "odinw_datasets.json").read_text(encoding="utf-8"))
    known = {entry["test"]["ann_file"]: entry for entry in published.values() if entry["in_35"]}
    for dataset in read_protocol("odinw35").datasets:
        entry = known.pop(f"odinw/{dataset.files['test'].annotations}")
        for split in ("train", "val", "test"):
            place = dataset.place(Path("odinw"), split)
            published_place = entry[split]["ann_file"], entry[split]["img_dir"].rstrip("/")
            assert (place.annotations, place.images) == published_place
    assert list(known) == ["odinw/plantdoc/100x100/test/annotations_without_background.json"]  # not in the list of 35


def test_manual_prompts_are_the_reference_own_to_the_letter(test_data: Path) -> None:
    published = json.loads((test_data / "text" / "names" / "odinw_datasets.json").read_text(encoding="utf-8"))
    prompts = {entry["test"]["ann_file"]: entry.get("caption_prompt") for entry in published.values()}
    words = WordPiece(make_vocabulary([]), 256)
    for dataset in ODINW13.datasets:
        written = prompts[f"odinw/{dataset.files['test'].annotations}"]
        if written is None:
            continue
        parts = yaml.safe_load(written) if isinstance(written, str) else written
        [prompt] = make_prompts(dataset, dataset.categories, words, "manual")
        assert prompt.text == ". ".join(f"{p['prefix']}{p['name']}{p['suffix']}" for p in parts)
        assert [prompt.text[slice(*span)] for span in prompt.spans.values()] == [p["name"] for p in parts]


def dataset(**changes: Any) -> ProtocolDataset:
    given: dict[str, Any] = {
        "name": "a",
        "files": {"val": Files(annotations="a.json", images="a")},
        "split": "val",
        "metrics": ("coco-bbox",),
        "score": "AP",
    }
    return ProtocolDataset(**(given | changes))


def test_raw_prompts_are_cut_where_the_protocol_says() -> None:
    words = WordPiece(make_vocabulary(["cup", "dog", "hat"]), 256)
    names = ["cup", "dog", "hat"] * 30
    assert [len(p.spans) for p in make_prompts(dataset(max_categories=40), names, words)] == [40, 40, 10]
    packed = make_prompts(dataset(), names, words)
    assert len(packed) < 3
    assert [label for prompt in packed for label in prompt.spans] == list(range(90))


def test_wordings_are_for_manual_prompts_only() -> None:
    words = WordPiece(make_vocabulary(["cup", "mug"]), 256)
    worded = dataset(categories=("cup",), wordings={"cup": Wording(prefix="a ", name="mug", suffix=" here")})
    assert [p.text for p in make_prompts(worded, ["cup"], words, "manual")] == ["a mug here"]
    assert [p.text for p in make_prompts(worded, ["cup"], words)] == ["cup"]


def test_a_wording_is_found_whatever_the_capitals_of_a_json() -> None:
    words = WordPiece(make_vocabulary(["cup", "mug"]), 256)
    worded = dataset(categories=("Cup",), wordings={"Cup": Wording(name="mug")})
    assert [p.text for p in make_prompts(worded, ["cUP"], words, "manual")] == ["mug"]
