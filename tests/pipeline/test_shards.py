import json
from pathlib import Path

import pytest

from pipeline import schema, shards
from pipeline.shards import Manifest


def row(key: int, status: str = schema.LABELLED, reason: str | None = None) -> dict[str, object]:
    return {
        "sample_id": f"s/train/{key}",
        "source": "s",
        "split": "train",
        "kind": schema.DETECTION,
        "image": {"bytes": b"picture", "path": None},
        "boxes": [[0.0, 1.0, 2.0, 3.0]],
        "status": status,
        "reason": reason,
        "schema_version": schema.SCHEMA_VERSION,
    }


def finish(folder: Path, wanted: str) -> Manifest:
    shards.write_rows([row(0)], folder, schema.GROUNDING)
    manifest = Manifest(stage="s", config_hash=wanted, rows_in=1, rows_out=1, files=shards.describe_files(folder))
    shards.write_manifest(folder, manifest)
    return manifest


def test_finished_directory_is_reused(tmp_path: Path) -> None:
    assert shards.begin(tmp_path / "out", "a") is None
    finish(tmp_path / "out", "a")
    found = shards.begin(tmp_path / "out", "a")
    assert found is not None
    assert found.rows_out == 1


def test_directory_of_another_configuration_is_refused_and_kept(tmp_path: Path) -> None:
    shards.begin(tmp_path / "out", "a")
    finish(tmp_path / "out", "a")
    with pytest.raises(ValueError, match="made by another configuration"):
        shards.begin(tmp_path / "out", "b")
    assert shards.read_manifest(tmp_path / "out") is not None


def test_unfinished_directory_is_made_again(tmp_path: Path) -> None:
    shards.begin(tmp_path / "out", "a")
    (tmp_path / "out" / "half.parquet").write_bytes(b"half a shard")
    assert shards.begin(tmp_path / "out", "a") is None
    assert not (tmp_path / "out" / "half.parquet").exists()


def test_strangers_files_are_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not ours"):
        shards.begin(tmp_path, "a")
    assert (tmp_path / "thesis.tex").exists()


def test_manifest_refuses_an_account_that_loses_rows() -> None:
    with pytest.raises(ValueError, match="10 rows in, but 8 out and 1 rejected"):
        Manifest(stage="s", config_hash="a", rows_in=10, rows_out=8, rejects={"why": 1})


def test_rejects_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [row(0), row(1, schema.REJECTED, "no_box"), row(2, schema.REJECTED, "no_box"), row(3, "failed", "http_404")]
    shards.write_rows(rows, tmp_path, schema.GROUNDING, rows_per_file=3)
    assert shards.count_rejects(tmp_path, schema.LABELLED) == (1, {"failed:http_404": 1, "no_box": 2})


def test_shards_carry_the_hugging_face_image_type(tmp_path: Path) -> None:
    shards.write_rows([row(0)], tmp_path, schema.GROUNDING)
    found = shards.open_rows(tmp_path).schema
    assert found.equals(schema.GROUNDING)
    assert json.loads(found.metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}


def test_misspelt_column_is_refused() -> None:
    with pytest.raises(ValueError, match="boxs"):
        schema.to_table([{**row(0), "boxs": []}], schema.GROUNDING)


def test_hash_does_not_depend_on_the_order_of_keys_or_sets() -> None:
    words = [f"word{i}" for i in range(50)]
    first = shards.config_hash({"a": 1, "b": frozenset(words), "c": Path("/x")})
    assert first == shards.config_hash({"c": Path("/x"), "b": frozenset(reversed(words)), "a": 1})


def test_hash_refuses_what_has_no_stable_text() -> None:
    with pytest.raises(TypeError, match="no place in a configuration"):
        shards.config_hash({"a": object()})
