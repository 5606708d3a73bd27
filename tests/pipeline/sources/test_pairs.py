import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.sources.pairs import PairsConfig, import_pairs

ROWS = [
    {"key": 0, "url": "http://h/a.jpg", "caption": "a cat"},
    {"key": 1, "url": "http://h/ü b.jpg", "caption": "zwölf"},
]


def read(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return rows


def imported(path: Path, content: str | bytes, **options: Any) -> list[dict[str, Any]]:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    out = path.parent / "out" / "pairs.parquet"
    rows = import_pairs(PairsConfig(path=path, **options), out)
    table = read(out)
    assert rows == len(table)
    return table


def as_tsv(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{row['url']}\t{row['caption']}\n" for row in rows)


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.tsv", "url\tcaption\n" + as_tsv(ROWS)),
        ("list.csv", 'caption,url\na cat,http://h/a.jpg\n"zwölf",http://h/ü b.jpg\n'),
        ("list.json", json.dumps(ROWS)),
        ("list.jsonl", as_jsonl(ROWS)),
    ],
)
def test_every_text_format_gives_the_same_rows(tmp_path: Path, name: str, content: str, ending: str) -> None:
    assert imported(tmp_path / f"{name}{ending}", content) == ROWS


def test_parquet_with_other_column_names_and_types_is_read(tmp_path: Path) -> None:
    captions = pa.array([row["caption"] for row in ROWS]).dictionary_encode()
    urls = pa.array([row["url"] for row in ROWS], pa.large_string())
    pq.write_table(pa.table({"TEXT": captions, "extra": [1, 2], "URL": urls}), tmp_path / "list.parquet")
    config = PairsConfig(path=tmp_path / "list.parquet", url_column="URL", caption_column="TEXT")
    import_pairs(config, tmp_path / "pairs.parquet")
    assert read(tmp_path / "pairs.parquet") == ROWS


def test_the_file_written_has_the_schema_of_pairs(tmp_path: Path) -> None:
    imported(tmp_path / "list.tsv", "url\tcaption\n" + as_tsv(ROWS))
    assert pq.read_schema(tmp_path / "out" / "pairs.parquet").equals(schema.PAIRS, check_metadata=True)


@pytest.mark.parametrize(
    ("columns", "line"), [(("caption", "url"), "cc3m\thttp://h"), (("url", "caption"), "http://h\tcc3m")]
)
def test_columns_name_a_file_without_header(tmp_path: Path, columns: tuple[str, ...], line: str) -> None:
    rows = imported(tmp_path / "list.tsv", line + "\n", header=False, columns=columns)
    assert rows == [{"key": 0, "url": "http://h", "caption": "cc3m"}]


def test_a_quotation_mark_in_a_tsv_swallows_no_line(tmp_path: Path) -> None:
    rows = imported(tmp_path / "list.tsv", 'url\tcaption\nu0\t"5 inch\nu1\tb\nu2\tc"\n')
    assert [row["caption"] for row in rows] == ['"5 inch', "b", 'c"']


def test_a_carriage_return_inside_a_caption_splits_no_line(tmp_path: Path) -> None:
    rows = imported(tmp_path / "list.tsv", "url\tcaption\r\nu0\ta\rb\r\n")
    assert [row["caption"] for row in rows] == ["a\rb"]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert imported(tmp_path / "list.csv", "\ufeffurl,caption\nu,c\n")[0]["url"] == "u"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.tsv", "url\tcaption\nu0\ta\nonly one\nu2\tc\td\n\nu4\te\n"),
        ("list.csv", "url,caption\nu0,a\nonly one\nu2,c,d\n\nu4,e\n"),
        ("list.jsonl", '{"url":"u0","caption":"a"}\n{"url"\n[]\n\n{"url":"u4","caption":"e"}\n'),
    ],
)
def test_a_bad_line_keeps_its_row_without_an_address(tmp_path: Path, name: str, content: str) -> None:
    rows = imported(tmp_path / name, content)
    assert [row["url"] for row in rows] == ["u0", None, None, None, "u4"]
    assert [row["key"] for row in rows] == [0, 1, 2, 3, 4]


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    rows = imported(tmp_path / "list.tsv", b"url\tcaption\nu0\tcaf\xe9\nu1\tb\n")
    assert [row["caption"] for row in rows] == ["caf\ufffd", "b"]


def test_half_a_surrogate_pair_in_json_is_replaced(tmp_path: Path) -> None:
    rows = imported(tmp_path / "list.jsonl", '{"url":"u","caption":"x\\ud83d"}\n')
    assert rows[0]["caption"] == "x?"


def test_keys_go_on_over_the_chunks_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.pairs._ROWS_PER_WRITE", 2)
    rows = imported(tmp_path / "list.tsv", "url\tcaption\n" + "u\tc\n" * 5)
    assert [row["key"] for row in rows] == [0, 1, 2, 3, 4]


def write_parquet_stub(path: Path) -> None:
    path.write_bytes(b"PAR1 and no more")


def write_cut_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b"url\tcaption\n" + b"u\tc\n" * 9999)[:40])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("list.tsv", lambda path: None, "does not exist"),
        ("list.tsv", Path.mkdir, "is a folder"),
        ("list.parquet", write_parquet_stub, "cannot be read as .parquet"),
        ("list.tsv.gz", write_cut_gzip, "cannot be read as .tsv"),
        ("list.tsv.gz", lambda path: path.write_text("plain"), "cannot be read as .tsv"),
        ("list.json", lambda path: path.write_text('[{"url": '), "cannot be read as .json"),
        ("list.json", lambda path: path.write_text('{"url": "u", "caption": "c"}'), "holds a dict, not an array"),
        (
            "list.csv",
            lambda path: path.write_text("link,caption\nu,c\n"),
            r"no column 'url', only \['link', 'caption'\]",
        ),
        (
            "list.jsonl",
            lambda path: path.write_text('{"url": "u", "text": "c"}'),
            r"no column 'caption', only \['url', 'text'\]",
        ),
        ("list.tsv", lambda path: path.write_text("url\tcaption\n"), "has no rows"),
        ("list.tsv", lambda path: path.write_text(""), "has no rows"),
    ],
)
def test_a_file_that_cannot_serve_is_refused_in_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message) as caught:
        import_pairs(PairsConfig(path=tmp_path / name), tmp_path / "out" / "pairs.parquet")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name", ["list.xlsx", "list", "list.parquet.gz"])
def test_an_unknown_ending_is_refused_before_the_file_is_opened(name: str) -> None:
    with pytest.raises(ValueError, match=r"no known ending; allowed are \.tsv"):
        PairsConfig(path=Path(name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("list.tsv", {"header": False}),
        ("list.tsv", {"columns": ("url", "caption")}),
        ("list.tsv", {"header": False, "columns": ("url", "text")}),
        ("list.jsonl", {"header": False, "columns": ("url", "caption")}),
    ],
)
def test_columns_that_contradict_the_file_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="column"):
        PairsConfig(path=Path(name), **options)


@pytest.mark.parametrize("name", ["cc3m_val_caption_url.tsv.gz"])
def test_a_real_list_keeps_every_line(test_data: Path, tmp_path: Path, name: str) -> None:
    path = test_data / "text" / name
    config = PairsConfig(path=path, header=False, columns=("caption", "url"))
    rows = import_pairs(config, tmp_path / "pairs.parquet")
    assert rows == gzip.decompress(path.read_bytes()).count(b"\n")
    assert None not in pq.read_table(tmp_path / "pairs.parquet")["url"].to_pylist()
