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
    {"key": 0, "url": "http://h/a.jpg", "caption": "a cat", "stored": None},
    {"key": 1, "url": "http://h/ü b.jpg", "caption": "zwölf", "stored": None},
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


def test_a_folder_of_parquet_files_is_one_list(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        pq.write_table(pa.table({"url": [row["url"]], "caption": [row["caption"]]}), tmp_path / f"{number}.parquet")
    assert import_pairs(PairsConfig(path=tmp_path), tmp_path / "out" / "pairs.parquet") == 2
    assert read(tmp_path / "out" / "pairs.parquet") == ROWS


def test_bytes_in_parquet_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": [b"http://h"], "caption": [b"caf\xe9"]}), tmp_path / "list.parquet")
    import_pairs(PairsConfig(path=tmp_path / "list.parquet"), tmp_path / "pairs.parquet")
    assert read(tmp_path / "pairs.parquet")[0]["caption"] == "caf\ufffd"


def test_columns_name_a_file_without_header(tmp_path: Path) -> None:
    rows = imported(tmp_path / "list.tsv", "7\tcc3m\thttp://h\n", columns=("width", "caption", "url"))
    assert rows == [{"key": 0, "url": "http://h", "caption": "cc3m", "stored": None}]


@pytest.mark.parametrize("ending", [".tsv", ".tsv.gz", ".csv"])
@pytest.mark.parametrize("order", [("caption", "url"), ("url", "caption")])
def test_the_column_of_addresses_of_a_file_without_header_is_found(
    tmp_path: Path, order: tuple[str, ...], ending: str
) -> None:
    sign = "," if ending == ".csv" else "\t"
    content = "".join(sign.join(str(row[name]) for name in order) + "\n" for row in ROWS)
    assert imported(tmp_path / f"list{ending}", content) == ROWS


def test_columns_given_overrule_what_is_found(tmp_path: Path) -> None:
    rows = imported(tmp_path / "list.tsv", "http://a\tb\n", columns=("caption", "url"))
    assert rows[0]["url"] == "b"


@pytest.mark.parametrize("line", ["http://a\thttp://b", "http://a\tcaption\t640\t480", "cat\thttp://b\tdog"])
def test_a_file_that_does_not_tell_its_columns_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match="do not tell which column is which; give the names"):
        imported(tmp_path / "list.tsv", f"{line}\n" * 3)


@pytest.mark.parametrize(
    "content",
    [
        "http://h/0\ta\tb\nhttp://h/1\tc\nhttp://h/2\td\n",
        "a\tb\thttp://h/0\nc\thttp://h/1\nd\thttp://h/2\n",
        "url\tcaption\nhttp://h/0\ta\tb\nhttp://h/1\tc\nhttp://h/2\td\n",
    ],
)
def test_tabs_belong_to_the_caption(tmp_path: Path, content: str) -> None:
    rows = imported(tmp_path / "list.tsv", content)
    assert [(row["url"], row["caption"]) for row in rows] == [
        ("http://h/0", "a\tb"),
        ("http://h/1", "c"),
        ("http://h/2", "d"),
    ]


@pytest.mark.parametrize("nothing", ["", "  ", "NaN", "nan", "None", "null"])
def test_words_for_nothing_are_nothing(tmp_path: Path, nothing: str) -> None:
    rows = imported(tmp_path / "list.tsv", f"url\tcaption\nu\t{nothing}\n{nothing}\tc\n")
    assert [(row["url"], row["caption"]) for row in rows] == [("u", None), (None, "c")]


def test_json_values_that_are_no_text_are_nothing(tmp_path: Path) -> None:
    rows = imported(tmp_path / "list.jsonl", '{"url":"u","caption":NaN}\n{"url":"u","caption":7}\n{"url":"u"}\n')
    assert [row["caption"] for row in rows] == [None, None, None]


def test_sbu_as_json_of_two_arrays_is_read(tmp_path: Path) -> None:
    content = json.dumps({"image_urls": [r["url"] for r in ROWS], "captions": [r["caption"] for r in ROWS]})
    assert imported(tmp_path / "sbu.json", content) == ROWS


@pytest.mark.parametrize("given", ["SBU_photo_urls.txt", "SBU_photo_captions.txt"])
def test_sbu_as_two_text_files_is_read(tmp_path: Path, given: str) -> None:
    for name in ("url", "caption"):
        (tmp_path / f"SBU_photo_{name}s.txt").write_text("".join(f"{row[name]}\n" for row in ROWS))
    import_pairs(PairsConfig(path=tmp_path / given), tmp_path / "pairs.parquet")
    assert read(tmp_path / "pairs.parquet") == ROWS


COCO = {
    "images": [{"id": 9, "file_name": "b.jpg", "coco_url": "http://h/b"}, {"id": 5, "file_name": "../a.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": "x"},
        {"id": 2, "image_id": 9, "caption": "y"},
        {"id": 3, "image_id": 5, "caption": "z"},
    ],
}


def test_coco_captions_give_a_pair_for_each_caption(tmp_path: Path) -> None:
    rows = imported(tmp_path / "captions_val.json", json.dumps(COCO))
    assert [(row["url"], row["caption"], row["stored"]) for row in rows] == [
        ("http://h/b", "x", None),
        ("http://h/b", "y", None),
        (None, "z", None),
    ]


def test_images_that_lie_in_a_folder_are_located_but_never_outside_of_it(tmp_path: Path) -> None:
    rows = imported(tmp_path / "captions_val.json", json.dumps(COCO), images=Path("/d/o"))
    assert [row["stored"] for row in rows] == ["file:///d/o/b.jpg", "file:///d/o/b.jpg", None]


def test_a_list_of_file_names_needs_no_addresses(tmp_path: Path) -> None:
    content = "caption\tfile\na cat\ta#1.jpg\n"
    [row] = imported(tmp_path / "list.tsv", content, images="s3://bucket/photos", file_column="file")
    assert row == {"key": 0, "url": None, "caption": "a cat", "stored": "s3://bucket/photos/a%231.jpg"}


def test_mixing_moves_rows_with_their_keys_and_always_alike(tmp_path: Path) -> None:
    content = "url\tcaption\n" + "".join(f"u{i}\tc\n" for i in range(50))
    first, second = (imported(tmp_path / "list.tsv", content, mix_rows=50) for _ in range(2))
    assert first == second
    assert [row["key"] for row in first] != list(range(50))
    assert sorted((row["key"], row["url"]) for row in first) == [(i, f"u{i}") for i in range(50)]


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
        ("list.tsv", "url\tcaption\nu0\ta\nonly one\nanother\n\nu4\te\n"),
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
    monkeypatch.setattr("pipeline.sources.pairs_file.ROWS_PER_ROW_GROUP", 2)
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
        ("list.tsv", Path.mkdir, "is a folder without .parquet files"),
        ("list.parquet", write_parquet_stub, "cannot be read as .parquet"),
        ("list.tsv.gz", write_cut_gzip, "cannot be read as .tsv"),
        ("list.tsv.gz", lambda path: path.write_text("plain"), "cannot be read as .tsv"),
        ("list.json", lambda path: path.write_text('[{"url": '), "cannot be read as .json"),
        ("list.json", lambda path: path.write_text('{"url": "u", "caption": "c"}'), "arrays of lengths {}"),
        ("list.json", lambda path: path.write_text('{"url": ["u"], "caption": []}'), "arrays of lengths"),
        ("list.json", lambda path: path.write_text('{"images": [], "annotations": [{}]}'), "have no caption"),
        ("list.json", lambda path: path.write_text('"text"'), "holds a str; give an array"),
        ("list.txt", lambda path: path.write_text("http://h"), "addresses or captions alone"),
        ("x_urls.txt", lambda path: path.write_text("http://h"), "cannot be read as .txt .*x_captions.txt"),
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
def test_an_unknown_ending_is_refused_before_the_file_is_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"no known ending; allowed are \.tsv"):
        import_pairs(PairsConfig(path=tmp_path / name), tmp_path / "pairs.parquet")


@pytest.mark.parametrize(
    ("name", "columns"), [("list.tsv", ("url", "text")), ("list.jsonl", ("url", "caption")), ("folder", ("url",))]
)
def test_columns_that_contradict_the_file_are_refused(name: str, columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="column"):
        PairsConfig(path=Path(name), columns=columns)


def test_real_lists_keep_every_line(test_data: Path, tmp_path: Path) -> None:
    for path in (test_data / "text").glob("*_caption_url.tsv.gz"):
        lines = gzip.decompress(path.read_bytes()).split(b"\n")
        header = b"http" not in lines[0]
        rows = import_pairs(PairsConfig(path=path), tmp_path / "pairs.parquet")
        urls = pq.read_table(tmp_path / "pairs.parquet")["url"].to_pylist()
        assert rows == len(lines) - 1 - header
        assert all(str(url).startswith("http") for url in urls)
