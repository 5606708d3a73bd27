import contextlib
import io
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from PIL import Image

from pipeline import schema
from pipeline.guards import GuardConfig, GuardJob, guard, guard_alone, guard_table, hash_picture, judge, load_index
from pipeline.neighbours import Neighbourhood, losers
from pipeline.shards import Manifest, count_rejects, describe_files, read_manifest, write_manifest, write_table
from pipeline.sources.coco import CocoSource, read_coco
from pipeline.sources.store import store_source
from pipeline.tracking import Input

NOTHING = GuardConfig()


def picture(seed: int) -> Image.Image:
    """Draw a picture unlike that of any other seed."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((96, 72), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def image_row(key: int, encoded: bytes, **changed: object) -> dict[str, object]:
    digest, perceptual = hash_picture(encoded)
    row = {
        "key": key,
        "url": f"http://host{key}.example/{key}.jpg",
        "caption": f"picture {key}",
        "status": schema.SUCCESS,
        "image": {"bytes": encoded, "path": None},
        "width": 96,
        "height": 72,
        "sha256": digest,
        "source_sha256": digest,
        "phash": perceptual,
    }
    return row | changed


def failed_row(key: int) -> dict[str, object]:
    return {"key": key, "url": "http://x.example", "status": schema.FAILED_TO_DOWNLOAD, "reason": "http_404"}


def finish(folder: Path, files: dict[str, list[dict[str, object]]], table: pa.Schema, good: str) -> Path:
    """Write a finished directory."""
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_table(schema.to_table(rows, table), folder / name)
    kept, rejects = count_rejects(folder, good)
    total = sum(map(len, files.values()))
    described = describe_files(folder)
    write_manifest(
        folder,
        Manifest(stage="made", config_hash="c", rows_in=total, rows_out=kept, rejects=rejects, files=described),
    )
    return folder


def finish_images(folder: Path, *files: list[dict[str, object]]) -> Path:
    named = {f"{number:05d}.parquet": rows for number, rows in enumerate(files)}
    return finish(folder, named, schema.IMAGES, schema.SUCCESS)


def read_rows(folder: Path) -> dict[int, dict[str, Any]]:
    manifest = read_manifest(folder)
    assert manifest is not None
    files = [str(folder / str(file["path"])) for file in manifest.files]
    return {row["key"]: row for row in pads.dataset(files, partitioning=None).to_table().to_pylist()}


def reasons(folder: Path, cfg: GuardConfig, tmp_path: Path) -> list[str]:
    verdicts = judge(folder, cfg, load_index(cfg, tmp_path / "index.parquet"))
    return [verdicts.reasons[code] for code in verdicts.codes]


@pytest.fixture
def evaluation(tmp_path: Path) -> Callable[..., GuardConfig]:
    def build(**sets: dict[str, bytes]) -> GuardConfig:
        for name, files in sets.items():
            for file, content in files.items():
                (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name / file).write_bytes(content)
        return GuardConfig(eval_images=tuple(f"{name}={tmp_path / name}" for name in sets))

    return build


CHANGES = {
    "compressed": lambda image: Image.open(io.BytesIO(jpeg(image, 30))),
    "smaller": lambda image: image.resize((image.width // 2, image.height // 2)),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.LANCZOS),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_of_an_evaluation_picture_leaks(
    change: str, evaluation: Callable[..., GuardConfig], tmp_path: Path
) -> None:
    index = load_index(evaluation(val={"deep/a.png": jpeg(picture(1)), "b.jpg": jpeg(picture(2))}), tmp_path / "i")
    rows = [image_row(0, jpeg(CHANGES[change](picture(1)))), image_row(1, jpeg(picture(3)))]
    assert guard_table(schema.to_table(rows, schema.IMAGES), index) == ["leaks:val", None]


def test_photographs_are_known_again_and_told_apart(test_data: Path, tmp_path: Path) -> None:
    photos = sorted((test_data / "captioned_photos" / "images").glob("*.jpg"))[:40]
    for photo in photos[::2]:
        (tmp_path / "val" / photo.name).parent.mkdir(exist_ok=True)
        shutil.copy(photo, tmp_path / "val")
    index = load_index(GuardConfig(eval_images=(f"val={tmp_path / 'val'}",)), tmp_path / "index.parquet")
    found = []
    for photo in photos:
        with Image.open(photo) as image:
            small = image.convert("RGB").resize((image.width * 2 // 3, image.height * 2 // 3))
        digest, perceptual = hash_picture(jpeg(small, 70))
        found.append(index.lookup(perceptual, digest))
    assert found == ["val" if number % 2 == 0 else None for number in range(len(photos))]


def test_blank_pictures_leak_only_by_their_bytes(evaluation: Callable[..., GuardConfig], tmp_path: Path) -> None:
    white = Image.new("RGB", (96, 72), "white")
    index = load_index(evaluation(val={"white.jpg": jpeg(white)}), tmp_path / "i")
    others = (jpeg(white), jpeg(white.resize((50, 50))), jpeg(Image.new("RGB", (96, 72), "navy")))
    rows = schema.to_table([image_row(key, encoded) for key, encoded in enumerate(others)], schema.IMAGES)
    assert guard_table(rows, index) == ["leaks:val", None, None]


def test_a_picture_with_a_broken_turn_of_the_camera_is_hashed_upright() -> None:
    upright, stream, exif = picture(4), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", quality=95, exif=exif)
    turned, straight = hash_picture(stream.getvalue())[1], hash_picture(jpeg(upright))[1]
    assert turned is not None
    assert straight is not None
    assert ((turned ^ straight) & (2**64 - 1)).bit_count() <= 4


def test_a_picture_of_two_sets_is_told_for_the_first(evaluation: Callable[..., GuardConfig], tmp_path: Path) -> None:
    index = load_index(
        evaluation(first={"a.jpg": jpeg(picture(1))}, second={"b.jpg": jpeg(picture(1))}), tmp_path / "i"
    )
    digest, perceptual = hash_picture(jpeg(picture(1)))
    assert index.lookup(None, digest) == index.lookup(perceptual, None) == "first"


def test_a_broken_evaluation_picture_is_known_by_its_bytes(
    evaluation: Callable[..., GuardConfig], tmp_path: Path
) -> None:
    index = load_index(evaluation(val={"a.jpg": jpeg(picture(1))[:200], "b.jpg": jpeg(picture(2))}), tmp_path / "i")
    assert index.lookup(None, hash_picture(jpeg(picture(1))[:200])[0]) == "val"


def test_evaluation_pictures_are_hashed_once(
    evaluation: Callable[..., GuardConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = evaluation(val={"a.jpg": jpeg(picture(1))})
    load_index(cfg, tmp_path / "i")
    monkeypatch.setattr("pipeline.guards.hash_picture", lambda _: pytest.fail("hashed again"))
    digest, perceptual = hash_picture(jpeg(picture(1)))
    assert load_index(cfg, tmp_path / "i").lookup(perceptual, digest) == "val"


def test_a_picture_added_to_a_folder_is_noticed(evaluation: Callable[..., GuardConfig], tmp_path: Path) -> None:
    cfg = evaluation(val={"a.jpg": jpeg(picture(1))}, other={"a.jpg": jpeg(picture(2))})
    load_index(cfg, tmp_path / "i")
    evaluation(val={"b.jpg": jpeg(picture(3))})
    assert load_index(cfg, tmp_path / "i").lookup(None, hash_picture(jpeg(picture(3)))[0]) == "val"


def test_an_index_travels_to_workers(evaluation: Callable[..., GuardConfig], tmp_path: Path) -> None:
    index = load_index(evaluation(val={"a.jpg": jpeg(picture(1))}), tmp_path / "i")
    assert pickle.loads(pickle.dumps(index)).lookup(*reversed(hash_picture(jpeg(picture(1))))) == "val"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"eval_images": ("/abs/dir",)}, "give name=/abs/dir"),
        ({"eval_images": ("coco=here",)}, "give name=/abs/dir"),
        ({"eval_images": ("a=/b", "a=/c")}, "every name once"),
        ({"max_distance": 30}, "give 0 to 16 bits"),
    ],
)
def test_a_wrong_guard_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GuardConfig(**given)


def test_an_evaluation_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        load_index(GuardConfig(eval_images=(f"val={tmp_path / 'val'}",)), tmp_path / "i")


def test_of_the_same_bytes_the_lowest_key_stays(tmp_path: Path) -> None:
    same, other = jpeg(picture(1)), jpeg(picture(2))
    images = finish_images(tmp_path / "images", [image_row(7, same), image_row(8, other)], [image_row(3, same)])
    assert reasons(images, NOTHING, tmp_path) == ["duplicate_content", "", ""]


def test_of_pictures_that_look_alike_the_lowest_key_stays(tmp_path: Path) -> None:
    rows = [image_row(key, jpeg(picture(1), quality)) for key, quality in ((2, 90), (1, 70), (3, 50))]
    images = finish_images(tmp_path / "images", [*rows, image_row(0, jpeg(picture(2)))])
    assert reasons(images, NOTHING, tmp_path) == ["", "", "", ""]
    assert reasons(images, GuardConfig(duplicates="alike"), tmp_path) == ["near_duplicate", "", "near_duplicate", ""]


def test_another_caption_saves_a_repeated_picture_if_wanted(tmp_path: Path) -> None:
    same, alike = jpeg(picture(1)), jpeg(picture(1), 60)
    captions = ("a", "b", "a", "b")
    rows = [
        image_row(k, p, caption=c) for k, (p, c) in enumerate(zip((same, same, same, alike), captions, strict=True))
    ]
    cfg = GuardConfig(duplicates="alike", same_caption=True)
    images = finish_images(tmp_path / "images", rows)
    assert reasons(images, cfg, tmp_path) == ["", "", "duplicate_content", "near_duplicate"]


def test_a_failed_row_saves_no_one_from_staying(tmp_path: Path) -> None:
    failed = image_row(0, jpeg(picture(1)), status=schema.FAILED_TO_RESIZE, reason="too_small")
    images = finish_images(tmp_path / "images", [failed, failed_row(1), image_row(2, jpeg(picture(1)))])
    assert reasons(images, GuardConfig(duplicates="alike"), tmp_path) == ["", "", ""]


def human_labelled(tmp_path: Path, pictures: dict[str, bytes]) -> Path:
    """Store pictures as the rows of an imported set, which carry no hashes."""
    entries = [
        {"id": number, "file_name": name, "width": 96, "height": 72} for number, name in enumerate(pictures, start=1)
    ]
    (tmp_path / "train").mkdir()
    for name, encoded in pictures.items():
        (tmp_path / "train" / name).write_bytes(encoded)
    annotations = tmp_path / "train.json"
    annotations.write_text(json.dumps({"images": entries, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}))
    source = CocoSource(annotations=annotations, images=tmp_path / "train", source="set", split="train")
    store_source(read_coco(source), tmp_path / "set", name="set", inputs={})
    return tmp_path / "set"


@pytest.mark.parametrize("rows_per_group", [2, 128])
def test_human_labelled_rows_are_known_by_the_pictures_they_store(
    rows_per_group: int, evaluation: Callable[..., GuardConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "ROWS_PER_ROW_GROUP", rows_per_group)
    monkeypatch.setattr("pipeline.rewrite._ROWS_AT_ONCE", 3)
    given = {
        "new.jpg": jpeg(picture(1)),
        "broken.jpg": jpeg(picture(2))[:200],
        "same.jpg": jpeg(picture(3)),
        "compressed.jpg": jpeg(picture(4), 60),
        "again.jpg": jpeg(picture(1)),
        "alike.jpg": jpeg(picture(1), 60),
        "other.jpg": jpeg(picture(5)),
    }
    cfg = replace(evaluation(val={"a.jpg": given["same.jpg"], "b.jpg": jpeg(picture(4))}), duplicates="alike")
    found = reasons(human_labelled(tmp_path, given), cfg, tmp_path)
    assert found == ["", "", "leaks:val", "leaks:val", "duplicate_content", "near_duplicate", ""]


def test_only_pictures_without_hashes_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = jpeg(picture(1))
    images = finish_images(tmp_path / "images", [image_row(0, same)], [failed_row(1), image_row(2, same)])
    index = load_index(NOTHING, tmp_path / "i")
    monkeypatch.setattr("pipeline.guards._hash_stored", lambda *_: pytest.fail("opened"))
    assert judge(images, NOTHING, index).codes.tolist() == [0, 0, 1]


def test_every_row_of_a_guarded_directory_is_accounted_for(
    evaluation: Callable[..., GuardConfig], tmp_path: Path
) -> None:
    rows = [
        image_row(0, jpeg(picture(1))),
        failed_row(1),
        image_row(2, jpeg(picture(2))),
        image_row(3, jpeg(picture(2))),
    ]
    images = finish_images(tmp_path / "images", rows, [image_row(4, jpeg(picture(3)))])
    cfg = evaluation(val={"a.jpg": jpeg(picture(1), 60)})
    manifest = guard(cfg, images, tmp_path / "out", load_index(cfg, tmp_path / "i"))
    assert (manifest.rows_in, manifest.rows_out) == (5, 2)
    assert manifest.rejects == {"duplicate_content": 1, "failed_to_download:http_404": 1, "leaks:val": 1}
    written = read_rows(tmp_path / "out")
    assert sorted(written) == [0, 1, 2, 3, 4]
    assert {key for key, row in written.items() if row["image"] is None} == {0, 1, 3}
    assert (written[0]["status"], written[0]["url"]) == (schema.REJECTED, "http://host0.example/0.jpg")
    assert written[2] == rows[2] | {name: None for name in schema.IMAGES.names if name not in rows[2]}


def test_shards_that_nobody_has_to_leave_are_copied_as_they_are(tmp_path: Path) -> None:
    rows = [image_row(0, jpeg(picture(1)))], [image_row(1, jpeg(picture(1)))]
    images = finish_images(tmp_path / "images", *rows)
    guard(NOTHING, images, tmp_path / "out", load_index(NOTHING, tmp_path / "i"))
    first, second = (Path("00000.parquet"), Path("00001.parquet"))
    assert (images / first).read_bytes() == (tmp_path / "out" / first).read_bytes()
    assert (images / second).read_bytes() != (tmp_path / "out" / second).read_bytes()
    described = read_manifest(tmp_path / "out")
    assert described is not None
    assert described.files == describe_files(tmp_path / "out")


def test_a_guarded_directory_is_not_made_twice_nor_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = finish_images(tmp_path / "images", [image_row(0, jpeg(picture(1)))])
    index = load_index(NOTHING, tmp_path / "i")
    made = guard(NOTHING, images, tmp_path / "out", index)
    monkeypatch.setattr("pipeline.guards.judge", lambda *_: pytest.fail("judged again"))
    assert guard(NOTHING, images, tmp_path / "out", index) == made
    with pytest.raises(ValueError, match="another configuration"):
        guard(replace(NOTHING, duplicates="none"), images, tmp_path / "out", index)


def test_a_guard_that_was_killed_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = finish_images(tmp_path / "images", [image_row(k, jpeg(picture(1))) for k in range(3)])
    index = load_index(NOTHING, tmp_path / "i")
    with monkeypatch.context() as broken:
        broken.setattr("pipeline.rewrite.count_rejects", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            guard(NOTHING, images, tmp_path / "out", index)
    assert read_manifest(tmp_path / "out") is None
    assert guard(NOTHING, images, tmp_path / "out", index).rows_out == 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_unfinished_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        guard(NOTHING, tmp_path / "images", tmp_path / "out", load_index(NOTHING, tmp_path / "i"))


class Recorder:
    """Stands for an MLflow run, whose store takes seconds to make."""

    def __init__(self) -> None:
        self.run_id, self.seen = "run-7", dict[str, Any]()

    def metrics(self, values: dict[str, float]) -> None:
        self.seen |= values

    def tags(self, values: dict[str, str]) -> None:
        self.seen |= values

    def inputs(self, given: list[Input]) -> None:
        self.seen |= {f"input {one.role}": (one.place, one.hash) for one in given}

    def artifact(self, path: Path, folder: str) -> None:
        self.seen[folder] = read_manifest(path.parent)


def test_the_job_counts_what_it_kept_out_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Recorder()
    monkeypatch.setattr("pipeline.guards.open_run", lambda *_: contextlib.nullcontext(run))
    images = finish_images(tmp_path / "images", [image_row(k, jpeg(picture(1))) for k in range(3)])
    told = guard_alone(GuardJob(source=images, out=tmp_path / "out"))
    assert "1 of 3 rows stay" in told
    assert "2  duplicate_content" in told
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.run_id == "run-7"
    source = read_manifest(images)
    assert source is not None
    made = {"stage": "guard", "place": str(tmp_path / "out"), "run_id": "run-7", "inputs": manifest.inputs}
    assert json.loads(run.seen.pop("made.out")) == made
    assert run.seen == {
        "input images": (str(images), source.content_hash),
        "guard/rows_in": 3,
        "guard/rows_out": 1,
        "guard/rejects/duplicate_content": 2,
        "guard/seconds": manifest.seconds,
        "content_hash.out": manifest.content_hash,
        "manifests/out": manifest,
    }


@pytest.mark.parametrize("max_distance", [0, 3, 8, 12])
def test_neighbours_are_those_a_full_comparison_finds(max_distance: int) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 400, dtype=np.uint64)
    for number in range(200):  # copies with some bits flipped
        for bit in rng.choice(64, number % 14, replace=False):
            hashes[number] = hashes[number + 200] ^ (np.uint64(1) << np.uint64(bit))
    distances = np.bitwise_count(hashes[:, None] ^ hashes)
    pairs = Neighbourhood(hashes, max_distance).pairs(hashes)
    assert {pair for asked, found in pairs for pair in zip(asked.tolist(), found.tolist(), strict=True)} == set(
        zip(*(place.tolist() for place in np.nonzero(distances <= max_distance)), strict=True)
    )


def test_differences_in_every_piece_of_a_hash_are_found() -> None:
    spread = np.array([0, sum(1 << bit for bit in range(0, 64, 8))], dtype=np.uint64)
    assert losers(spread, 8).tolist() == [False, True]


def test_a_chain_of_small_differences_removes_only_what_is_near_one_that_stays() -> None:
    chain = np.array([0, 0b11, 0b1111, 0b111111], dtype=np.uint64)
    assert losers(chain, 2).tolist() == [False, True, False, True]
