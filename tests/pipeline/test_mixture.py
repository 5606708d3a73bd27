"""The order of samples: every row once per epoch, whatever the readers; and what is wrong with shards."""

import json
import pickle
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import mixture as mixture_module
from pipeline import row_index, schema
from pipeline.mixture import Mixture, OrderConfig
from pipeline.row_index import SourceConfig, check_sources
from pipeline.selection import SelectionConfig
from pipeline.sources.store import store_source

ROWS = 40


def rows(name: str, count: int = ROWS) -> list[dict[str, Any]]:
    return [
        {
            "sample_id": f"{name}/train/{number:03d}",
            "source": name,
            "split": "train",
            "kind": schema.CAPTION,
            "text": "a red ring " * (1 + number % 3 * 10),
            "width": 40 if number % 2 else 20,
            "height": 30,
            "boxes": [[2.0, 2.0, 20.0, 20.0]],
            "phrase_index": [0],
            "tokens_positive": [[[2, 10]]],
            "category_id": [-1],
            "score": [0.9],
            "status": schema.LABELLED,
            "schema_version": schema.SCHEMA_VERSION,
        }
        for number in range(count)
    ]


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "ROWS_PER_ROW_GROUP", 4)


@pytest.fixture
def source(tmp_path: Path) -> SourceConfig:
    store_source(rows("a"), tmp_path / "a", name="a", inputs={})
    return SourceConfig(path=tmp_path / "a")


def mix(sources: list[SourceConfig], **order: int) -> Mixture:
    return Mixture(sources, SelectionConfig(), OrderConfig(**order), 0)


def ids(mixed: Mixture, steps: range, size: int) -> list[list[str]]:
    return [[mixed.read(s, n)["sample_id"] for _, s, n, _ in mixed.batch(step, size)] for step in steps]


def flat(batches: list[list[str]]) -> list[str]:
    return list(chain.from_iterable(batches))


@pytest.mark.parametrize("order", [{}, {"window_rows": 6}, {"window_rows": 6, "bucket_batches": 2}])
def test_an_epoch_holds_every_row_once_and_the_next_in_another_order(
    source: SourceConfig, order: dict[str, int]
) -> None:
    mixed = mix([source], **order)
    samples = [sample for step in range(10) for sample in mixed.batch(step, 8)]
    epochs = [[mixed.read(s, n)["sample_id"] for epoch, s, n, _ in samples if epoch == wanted] for wanted in (0, 1)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(row["sample_id"] for row in rows("a"))] * 2
    assert epochs[0] != epochs[1]


def test_copies_come_as_often_as_said(source: SourceConfig) -> None:
    found = Counter(flat(ids(mix([replace(source, copies=3)], window_rows=6), range(15), 8)))
    assert set(found.values()) == {3}


def test_every_copy_comes_once_per_epoch_wherever_its_row_lies(source: SourceConfig, tmp_path: Path) -> None:
    mixed = mix([replace(source, copies=3)])
    samples = Counter(sample for step in range(15) for sample in mixed.batch(step, 8))
    assert samples == Counter((0, 0, number, copy) for number in range(ROWS) for copy in range(3))
    store_source(reversed(rows("a")), tmp_path / "b", name="a", inputs={})
    other = mix([SourceConfig(path=tmp_path / "b", copies=3)])
    assert [copy for *_, copy in other.batch(0, 120)] == [copy for *_, copy in mixed.batch(0, 120)]


def test_a_share_takes_some_samples_and_a_smaller_one_some_of_those(source: SourceConfig) -> None:
    taken = [{row["sample_id"] for _, row in mix([replace(source, share=share)])} for share in (0.25, 0.5, 1.0)]
    assert taken[0] < taken[1] < taken[2]
    assert 12 <= len(taken[1]) <= 28


def test_the_last_batch_of_an_epoch_is_filled_from_the_next(source: SourceConfig) -> None:
    batches = [mix([source], window_rows=6).batch(step, 16) for step in range(5)]
    epochs = [epoch for batch in batches for epoch, *_ in batch]
    assert epochs == [0] * 40 + [1] * 40


def test_each_row_group_is_read_once_per_epoch(source: SourceConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed, read = mix([source], window_rows=8), Counter[int]()
    real = mixture_module.open_shard

    class Counting:
        def __init__(self, place: Any) -> None:
            self.file = real(place)

        def read_row_group(self, number: int, **options: Any) -> Any:
            read[number] += 1
            return self.file.read_row_group(number, **options)

    monkeypatch.setattr(mixture_module, "open_shard", Counting)
    ids(mixed, range(10), 4)
    assert read == dict.fromkeys(range(10), 1)


def test_rows_are_forgotten_when_their_turn_is_over(source: SourceConfig) -> None:
    mixed = mix([source], window_rows=4)
    ids(mixed, range(10), 4)
    assert sum(map(len, mixed._groups.values())) <= 2 * 4 + 2 * 4


def test_a_mixture_of_one_window_does_not_depend_on_its_shards(source: SourceConfig, tmp_path: Path) -> None:
    store_source(reversed(rows("a")), tmp_path / "b", name="a", inputs={})
    other = SourceConfig(path=tmp_path / "b")
    assert ids(mix([source]), range(5), 8) == ids(mix([other]), range(5), 8)


def test_batches_formed_together_hold_alike_samples(source: SourceConfig) -> None:
    def kinds(order: dict[str, int]) -> float:
        mixed = mix([source], **order)
        batches = [[mixed.read(s, n) for _, s, n, _ in mixed.batch(step, 4)] for step in range(10)]
        return sum(len({_shape(mixed, r) for r in batch}) for batch in batches) / len(batches)

    def _shape(mixed: Mixture, row: dict[str, Any]) -> tuple[int, bool]:
        number = int(row["sample_id"][-3:])
        return number % 3, bool(number % 2)

    assert kinds({"bucket_batches": 10}) < 0.7 * kinds({})


def test_another_process_goes_on_the_same(source: SourceConfig) -> None:
    mixed = mix([source], window_rows=6)
    before = ids(mixed, range(3), 4)
    assert ids(pickle.loads(pickle.dumps(mixed)), range(3), 4) == before


def test_only_rows_with_a_box_worth_training_on_are_taken(tmp_path: Path) -> None:
    given = rows("a", 6)
    changes: list[dict[str, Any]] = [
        {},
        {"score": [0.1]},
        {"status": schema.REJECTED, "reason": "no_box"},
        {"boxes": [], "score": [], "phrase_index": [], "tokens_positive": [], "category_id": []},
        {"kind": schema.GROUND, "score": [0.1], "iscrowd": [True]},
        {"kind": schema.GROUND, "score": [0.1], "iscrowd": None},
    ]
    store_source([row | c for row, c in zip(given, changes, strict=True)], tmp_path / "a", name="a", inputs={})
    mixed = mix([SourceConfig(path=tmp_path / "a")])
    assert [row["sample_id"][-1] for _, row in mixed] == ["0", "5"]


def test_captions_of_all_sources_are_there_to_be_packed_once_each(source: SourceConfig) -> None:
    assert list(mix([source]).captions) == ["a red ring " * n for n in (1, 11, 21)]


def damage_hash(folder: Path) -> None:
    file = folder / "00000.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def damage_version(folder: Path) -> None:
    file = folder / "00000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({"glipv2_schema_version": "1"}), file)
    content = json.loads((folder / "manifest.json").read_text())
    content["files"][0]["bytes"] = file.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(content))


DAMAGES: dict[str, tuple[Any, str]] = {
    "missing": (lambda folder: (folder / "00000.parquet").unlink(), "is missing, but the manifest lists it"),
    "short": (lambda folder: (folder / "00000.parquet").write_bytes(b"PAR1"), "has 4 bytes, not"),
    "changed": (damage_hash, "another hash than when it was written"),
    "version": (damage_version, "schema version 1, but this program reads"),
    "unfinished": (lambda folder: (folder / "manifest.json").unlink(), "holds no finished shards"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_source_is_one_line(source: SourceConfig, damage: Any, message: str) -> None:
    check_sources([source])
    row_index.open_shard.cache_clear()
    assert isinstance(source.path, Path)
    damage(source.path)
    with pytest.raises(ValueError, match=message) as caught:
        check_sources([source])
    assert "\n" not in str(caught.value)


def test_sizes_alone_are_compared_where_that_is_wished(source: SourceConfig) -> None:
    assert isinstance(source.path, Path)
    damage_hash(source.path)
    check_sources([source], check_hashes=False)
