import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glipv2.text.phrases import PhraseConfig
from glipv2.text.tokenizer import WordPiece, make_vocabulary
from pipeline import lint as lint_module
from pipeline import schema
from pipeline.lint import LintConfig, lint
from pipeline.lint_report import LintReport
from pipeline.sources.pairs import PairsConfig, import_pairs
from pipeline.sources.stored import locate_file, locate_missing
from pipeline.storage import Place

GOOD = {"url": "http://one.example/1.jpg", "caption": "a red cat on a table"}


def linted(folder: Path, *rows: dict[str, Any], tokenizer: WordPiece | None = None, **options: Any) -> LintReport:
    keyed: list[dict[str, object]] = [{"key": key, **row} for key, row in enumerate(rows)]
    pq.write_table(schema.to_table(keyed, schema.PAIRS), folder / "pairs.parquet")
    return lint(folder / "pairs.parquet", LintConfig(**options), tokenizer)


def found(report: LintReport) -> dict[str, int]:
    return {finding.name: finding.rows for finding in report.findings}


def hours(report: LintReport) -> dict[str, float]:
    return {part.name: part.amount for part in report.hours}


def page(number: int, host: str = "one.example", caption: str = "a red cat") -> dict[str, Any]:
    return {"url": f"http://{host}/{number}.jpg", "caption": caption}


def test_bad_rows_are_counted_by_the_reason_the_run_will_give(tmp_path: Path) -> None:
    report = linted(
        tmp_path,
        GOOD,
        {},
        {"url": "ftp://h/a.jpg", "caption": "a cat"},
        {"url": "http:///a.jpg", "caption": "a cat"},
        {"url": "http://h/b", "caption": None},
        {"url": "http://h/c", "caption": "<br>"},
        {"url": "http://h/d", "caption": "cat"},
        {"url": "http://h/e", "caption": "cat " * 100},
        {"url": "http://h/f", "caption": "a cat", "stored": locate_missing(Place.of("/d/0.tar"))},
        phrases=PhraseConfig(min_words=2, max_chars=50),
    )
    assert report.rejects == {
        "empty_caption": 2,
        "bad_line": 1,
        "bad_scheme": 1,
        "bad_url": 1,
        "caption_too_short": 1,
        "caption_too_long": 1,
        "stored_missing": 1,
    }
    assert report.rows == report.usable + sum(report.rejects.values()) == 9


def test_duplicates_are_counted_over_all_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint_module, "ROWS_PER_ROW_GROUP", 2)
    rows = [page(1, caption="a cat"), page(1, caption="a dog"), page(2, caption="a cat"), page(1, caption="a cat")]
    report = found(linted(tmp_path, *rows, {}, {}))
    assert report == {"same image": 2, "same caption": 2, "same image and caption": 1, "was no UTF-8": 0}


def test_hosts_are_counted_without_port_case_or_credentials(tmp_path: Path) -> None:
    urls = [
        "http://a.example/x",
        "HTTPS://A.example:8080/y",
        "http://me:pw@a.example?z",
        "http://[::1]:80/",
        "http://b",
    ]
    report = linted(tmp_path, *({"url": url, "caption": "a cat"} for url in urls))
    assert report.num_hosts == 3
    assert report.top_hosts == (("a.example", 3), ("[::1]", 1), ("b", 1))


def test_captions_longer_than_the_teacher_reads_are_counted(tmp_path: Path) -> None:
    tokenizer = WordPiece(make_vocabulary(["cat"]), max_tokens=8)
    captions = ["cat " * 6, "cat " * 7, "abcdefg", "cat"]
    report = linted(tmp_path, *(page(i, caption=text) for i, text in enumerate(captions)), tokenizer=tokenizer)
    assert found(report)["token overflow"] == 2


def test_captions_that_were_no_text_are_counted(tmp_path: Path) -> None:
    assert found(linted(tmp_path, page(1, caption="a caf\ufffd"), GOOD))["was no UTF-8"] == 1


def test_phrases_are_counted_in_a_sample(tmp_path: Path) -> None:
    report = linted(tmp_path, *(page(i, caption="a cat and a Cat") for i in range(9)), page(9, caption="running fast"))
    assert (report.sampled, report.without_phrase, report.phrases_per_caption) == (10, 1, 1.8)
    assert report.top_phrases == (("cat", 18),)


def test_the_sample_is_the_same_each_time_and_differs_by_seed(tmp_path: Path) -> None:
    rows = [page(i) for i in range(200)]
    first, again, other = (linted(tmp_path, *rows, seed=seed, preview_rows=3, sample_rows=3) for seed in (0, 0, 1))
    assert len(first.previews) == 3
    assert first == again
    assert first.previews != other.previews


def test_hours_follow_from_the_rates(tmp_path: Path) -> None:
    rows = [page(i) for i in range(90)] + [page(i, host="two.example") for i in range(10)]
    report = linted(
        tmp_path, *rows, images_per_s=2.0, num_actors=5, requests_per_host=3, request_s=1.0, labels_per_s=4.0, alive=0.5
    )
    seconds = {name: round(amount * 3600, 6) for name, amount in hours(report).items()}
    assert seconds == {"wait for busiest host": 30.0, "label": 12.5, "fetch": 10.0}
    assert next(iter(seconds)) == "wait for busiest host"


def test_bytes_of_images_to_fetch_are_assumed(tmp_path: Path) -> None:
    report = linted(tmp_path, *(page(i) for i in range(10)), alive=0.5, image_bytes=1000)
    assert report.disk.amount == 5000


def test_bytes_of_stored_images_are_measured_and_they_are_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(1234))
    row = {"caption": "a cat", "stored": locate_file(Place.of(tmp_path / "a.jpg"))}
    report = linted(tmp_path, row, row)
    assert report.disk.amount == 2 * 1234
    assert report.stored == 2
    assert list(hours(report)) == ["label"]


def test_the_text_shows_what_counts(tmp_path: Path) -> None:
    text = str(linted(tmp_path, *(page(i) for i in range(1500)), {}, page(0)))
    for part in ("Rows", "1,502", "bad_line", "same image", "one.example", "red cat", "label", "GB"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120


def test_nothing_a_list_holds_commands_the_terminal(tmp_path: Path) -> None:
    text = str(linted(tmp_path, {"url": "http://h\x1b[2J/\x07", "caption": "a \x1b[31mcat"}))
    assert all(char.isprintable() or char == "\n" for char in text)


def test_a_list_without_a_usable_row_has_a_report(tmp_path: Path) -> None:
    report = linted(tmp_path, {})
    assert report.usable == 0
    assert "bad_line" in str(report)


def test_the_report_goes_into_json(tmp_path: Path) -> None:
    report = linted(tmp_path, GOOD)
    assert json.loads(json.dumps(report.as_dict()))["previews"][0]["phrases"] == ["red cat", "table"]


@pytest.mark.parametrize(
    "make", [lambda path: None, Path.touch, lambda path: pq.write_table(pa.table({"a": [1]}), path)]
)
def test_what_is_no_file_of_pairs_is_refused_in_one_line(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match="give a file of pairs") as caught:
        lint(tmp_path / "pairs.parquet", LintConfig())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"labels_per_s": 0.0}, {"alive": 1.5}, {"image_bytes": -1}])
def test_rates_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give a share|leave it out"):
        LintConfig(**options)


def test_real_lists_are_usable_but_for_few_rows(test_data: Path, tmp_path: Path) -> None:
    for path in (test_data / "text").glob("*_caption_url.tsv.gz"):
        rows = import_pairs(PairsConfig(path=path), tmp_path / "pairs.parquet")
        report = lint(tmp_path / "pairs.parquet", LintConfig(sample_rows=200))
        assert report.usable > 0.95 * rows
        assert 1 < report.phrases_per_caption < 6
