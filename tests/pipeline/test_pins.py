import json
from pathlib import Path

import pytest

from pipeline.pins import check_pins, files_hash, pictures_hash


def test_hashes_are_noted_at_first_use_and_hold_afterwards(tmp_path: Path) -> None:
    pins = tmp_path / "pins.json"
    check_pins({"a.json": "1"}, [pins])
    check_pins({"b.json": "2"}, [pins])
    check_pins({"a.json": "1"}, [pins])
    assert json.loads(pins.read_text(encoding="utf-8")) == {"a.json": "1", "b.json": "2"}


def test_a_changed_file_is_named_and_refused(tmp_path: Path) -> None:
    pins = tmp_path / "pins.json"
    check_pins({"a.json": "1", "b.json": "2"}, [pins])
    with pytest.raises(ValueError, match=r"b\.json is not what was first used .*delete .*pins\.json") as caught:
        check_pins({"a.json": "1", "b.json": "3"}, [pins])
    assert "\n" not in str(caught.value)


def test_where_the_data_cannot_be_written_the_next_place_is_used(tmp_path: Path) -> None:
    no_folder = tmp_path / "file"
    no_folder.touch()
    places = [no_folder / "pins.json", tmp_path / "out" / "pins.json"]
    check_pins({"a.json": "1"}, places)
    with pytest.raises(ValueError, match=r"a\.json is not what"):
        check_pins({"a.json": "2"}, places)
    assert places[1].is_file()


def test_pins_that_cannot_be_read_are_not_overwritten(tmp_path: Path) -> None:
    pins = tmp_path / "pins.json"
    pins.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be read as pins"):
        check_pins({"a.json": "1"}, [pins])
    assert pins.read_text(encoding="utf-8") == "{"


def test_content_of_annotations_and_sizes_of_images_are_what_counts(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(b"123")
    text, pictures = files_hash(files), pictures_hash(files)
    files[1].write_bytes(b"321")
    assert files_hash(files) != text
    assert pictures_hash(files) == pictures
    files[1].write_bytes(b"1234")
    assert pictures_hash(files) != pictures


def test_images_are_not_pinned_before_all_are_there(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert pictures_hash([tmp_path / "a", tmp_path / "b"]) is None
