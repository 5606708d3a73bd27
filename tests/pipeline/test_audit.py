from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.audit import Account, AuditError, FileAccount, account_file, superfluous, take_account
from pipeline.storage import Place
from tests.pipeline.engine_steps import TABLE

RUN_TABLE = TABLE.append(pa.field("run_id", pa.string()))


def row(key: int, **changes: object) -> dict[str, Any]:
    rejected = key % 3 == 0
    return {
        "key": key,
        "value": str(key),
        "boxes": [[0.0, 0.0, key + 0.1, 1.0]],
        "status": schema.REJECTED if rejected else schema.LABELLED,
        "reason": "multiple" if rejected else None,
        "run_id": "first",
        **changes,
    }


def write(folder: Path, *shards: list[dict[str, Any]]) -> Account:
    """Write shards and take their account as a task does."""
    place = Place.of(folder)
    folder.mkdir(parents=True)
    for number, rows in enumerate(shards):
        pq.write_table(pa.Table.from_pylist(rows, RUN_TABLE), folder / f"{number}.parquet")
    return Account(files=[account_file(path, place, schema.LABELLED) for path in place.files(".parquet")])


def account(*keys: list[int]) -> Account:
    return Account(
        files=[
            FileAccount(path=str(i), bytes=1, sha256="", keys=np.array(k, np.int64), kept=len(k), rejects={}, digest=0)
            for i, k in enumerate(keys)
        ]
    )


ROWS = [row(key) for key in range(6)]


def test_an_account_adds_up(tmp_path: Path) -> None:
    found = write(tmp_path / "a", ROWS[:4], ROWS[4:])
    assert found.kept == 4
    assert found.rejects == {"multiple": 2}
    assert found.times_seen(6).tolist() == [1] * 6
    assert [(file.path, file.entry["rows"]) for file in found.files] == [("0.parquet", 4), ("1.parquet", 2)]


def test_the_digest_knows_neither_order_nor_files_nor_run(tmp_path: Path) -> None:
    one = write(tmp_path / "a", ROWS)
    other = write(tmp_path / "b", ROWS[:1:-1], [], [{**row, "run_id": "second"} for row in ROWS[1::-1]])
    assert one.digest == other.digest


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": [[0.0, 0.0, 1.11, 1.0]]},
        {"boxes": []},
        {"boxes": None},
        {"status": schema.REJECTED},
        {"reason": "other"},
        {"key": 7},
        {"value": "2"},
    ],
    ids=str,
)
def test_the_digest_knows_every_other_difference(tmp_path: Path, change: dict[str, Any]) -> None:
    one = write(tmp_path / "a", ROWS)
    other = write(tmp_path / "b", [ROWS[0], {**ROWS[1], **change}, *ROWS[2:]])
    assert one.digest != other.digest


def test_the_digest_counts_rows(tmp_path: Path) -> None:
    assert write(tmp_path / "a", ROWS).digest != write(tmp_path / "b", ROWS, ROWS[:1], ROWS[:1]).digest


def test_statuses_that_are_neither_good_nor_rejected_stand_before_their_reason(tmp_path: Path) -> None:
    failed = row(1, status=schema.FAILED_TO_DOWNLOAD, reason="http_404")
    assert write(tmp_path / "a", [failed]).rejects == {"failed_to_download:http_404": 1}


def test_rows_that_were_never_given_are_refused() -> None:
    for keys in ([0, 6], [-1]):
        with pytest.raises(AuditError, match="beyond the 6 given"):
            account(keys).times_seen(6)


def test_rows_there_twice_are_counted_twice() -> None:
    assert account([0, 1], [1, 2], [1]).times_seen(4).tolist() == [1, 3, 1, 0]


def chosen(found: Account, num_rows: int = 10) -> list[str]:
    return [file.path for file in superfluous(found, found.times_seen(num_rows))]


def test_a_file_is_superfluous_if_all_of_it_is_elsewhere() -> None:
    assert chosen(account([0, 1, 2, 3], [1, 2], [4])) == ["1"]
    assert chosen(account([0, 1], [2, 3], [1, 2])) == ["2"]


def test_of_twins_one_stays() -> None:
    assert len(chosen(account([0, 1], [0, 1]))) == 1
    assert len(chosen(account([0, 1], [0, 1], [0, 1]))) == 2


def test_a_file_with_one_row_of_its_own_stays() -> None:
    assert chosen(account([0, 1, 2], [2, 3], [])) == []


def test_leaving_out_superfluous_files_loses_no_row() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        found = account(*[sorted(random.choice(12, size=4, replace=False).tolist()) for _ in range(6)])
        left = found.times_seen(12).astype(int)
        for file in superfluous(found, found.times_seen(12)):
            left[file.keys] -= 1
        assert ((left > 0) == (found.times_seen(12) > 0)).all()


@pytest.mark.ray
def test_every_file_that_cannot_be_read_is_named(ray_session: None, tmp_path: Path) -> None:
    write(tmp_path / "out", ROWS[:2], ROWS[2:])
    whole = (tmp_path / "out" / "0.parquet").read_bytes()
    (tmp_path / "out" / "torn.parquet").write_bytes(whole[:-9])
    (tmp_path / "out" / "empty.parquet").write_bytes(b"")
    (tmp_path / "out" / "flipped.parquet").write_bytes(whole[: len(whole) // 3] + whole[len(whole) // 3 + 1 :])
    pq.write_table(pa.table({"other": [1]}), tmp_path / "out" / "strange.parquet")
    found = take_account(Place.of(tmp_path / "out"), schema.LABELLED)
    assert [line.split(":")[0] for line in found.unreadable] == [
        "empty.parquet",
        "flipped.parquet",
        "strange.parquet",
        "torn.parquet",
    ]
    assert [file.path for file in found.files] == ["0.parquet", "1.parquet"]
    assert all("\n" not in line for line in found.unreadable)
