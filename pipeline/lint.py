"""What a list of pairs is like, and what labelling it will cost, before anything is fetched.

One pass over the parquet file of pairs, nothing asked of the network. Memory: 24 bytes per row (three 64-bit hashes, so
16 million rows take 400 MB) and a counter per host. Hashes that are equal by accident would count as duplicates: at
16 million rows the odds of a single one are 1 in 100,000.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glipv2.text.phrases import PhraseConfig, caption_reason, clean_caption, make_parser
from glipv2.text.tokenizer import NUM_AROUND, Tokenizer
from pipeline import schema
from pipeline.lint_report import Expectation, Finding, LintReport, Preview, printable
from pipeline.sources.pairs_file import ROWS_PER_ROW_GROUP
from pipeline.sources.stored import MISSING, StoredReader, is_missing
from pipeline.storage import Place

_HOST = r"(?i)^https?://(?:[^/?#@]*@)?(?P<host>\[[^\]]*\]|[^/?#:\s]+)"
_NUM_TOP = 10
_NUM_MEASURED = 16
"""Stored images read to measure their size."""
_MAX_MEASURED_BYTES = 64 << 20
_BYTES_PER_TOKEN = 1.5
"""No text has more tokens than bytes; lower case makes three bytes of two now and then. Shorter ones surely fit."""


@dataclass(frozen=True, kw_only=True)
class LintConfig:
    """What is looked at, and the rates that hours and bytes are reckoned from."""

    phrases: PhraseConfig = field(default_factory=PhraseConfig)
    """How captions are accepted and cut into phrases; as in labelling."""
    sample_rows: int = 2000
    """Rows whose phrases are looked at."""
    preview_rows: int = 5
    """Rows shown with their phrases."""
    seed: int = 0
    """Decides which rows are sampled."""
    images_per_s: float = 150.0
    """Images an actor fetches and decodes per second; as measured on one core and a near server."""
    num_actors: int = 1
    """Actors that fetch."""
    requests_per_host: int = 8
    """Requests in flight to one host."""
    request_s: float = 0.5
    """Seconds a host takes to answer."""
    labels_per_s: float = 10.0
    """Captions a teacher labels per second. An assumption; teachers differ a hundredfold, so time yours."""
    num_teachers: int = 1
    """Teachers side by side."""
    alive: float = 0.8
    """Share of the addresses that still give an image. An assumption."""
    image_bytes: int = 70_000
    """Bytes of an image as stored, short side 384 px; of images that lie there already, a few are measured."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        for name in ("images_per_s", "num_actors", "requests_per_host", "labels_per_s", "num_teachers", "sample_rows"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)} but must be above 0; leave it out for the default")
        for name in ("request_s", "image_bytes", "preview_rows"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)} but must be 0 or more; leave it out for the default")
        if not 0 <= self.alive <= 1:
            raise ValueError(f"alive is {self.alive}; give a share between 0 and 1")


def lint(pairs: Place | Path, config: LintConfig, tokenizer: Tokenizer | None = None) -> LintReport:
    """Read a file of pairs once and tell what is in it.

    Args:
        pairs: One parquet file of `schema.PAIRS`.
        config: What is looked at, and rates.
        tokenizer: The teacher's; without one, captions that are too long for it are not counted.

    Raises:
        ValueError: the file is no file of pairs.
    """
    place = Place.of(pairs)
    try:
        with place.open_input() as stream, pq.ParquetFile(stream) as file:
            if missing := set(schema.PAIRS.names) - set(file.schema_arrow.names):
                raise ValueError(f"{place} has no columns {sorted(missing)}; give a file of pairs, see pairs.py")
            scan = _Scan(file.metadata.num_rows, config, tokenizer)
            for batch in file.iter_batches(ROWS_PER_ROW_GROUP, columns=schema.PAIRS.names):
                scan.add(batch)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{place} cannot be read ({' '.join(str(error).split())}); give a file of pairs") from error
    return scan.report(str(place))


class _Hashes:
    """Counts duplicates among many values in 8 bytes each."""

    def __init__(self, size: int) -> None:
        self._hashes = np.empty(size, np.uint64)
        self._used = 0

    def add(self, hashes: np.ndarray) -> None:
        self._hashes[self._used : self._used + len(hashes)] = hashes
        self._used += len(hashes)

    def duplicates(self) -> int:
        """Count the values that another one equalled before. Spoils the order, so ask once."""
        used = self._hashes[: self._used]
        used.sort()
        return int((used[1:] == used[:-1]).sum())


def _hash(texts: Iterable[str], size: int) -> np.ndarray:
    # Python's own hash of a str is 64 bits, fast, and salted: nobody can make a list that collides.
    return np.fromiter(map(hash, texts), np.int64, size).view(np.uint64)


class _Scan:
    """The counts so far."""

    def __init__(self, rows: int, config: LintConfig, tokenizer: Tokenizer | None) -> None:
        self._config, self._tokenizer, self._parse = config, tokenizer, make_parser(config.phrases)
        self._rows, self._done = rows, 0
        wanted = random.Random(config.seed).sample(range(rows), min(rows, config.sample_rows))
        self._wanted, self._shown = frozenset(wanted), frozenset(wanted[: config.preview_rows])
        self._urls, self._captions, self._both = _Hashes(rows), _Hashes(rows), _Hashes(rows)
        self._counts: Counter[str] = Counter()
        self._rejects: Counter[str] = Counter()
        self._hosts: Counter[str] = Counter()
        self._phrases: Counter[str] = Counter()
        self._previews: list[Preview] = []
        self._measured: list[str] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch."""
        hosts = pc.utf8_lower(pc.struct_field(pc.extract_regex(batch["url"], _HOST), "host"))
        kept: list[tuple[str, str]] = []
        asked: list[str] = []
        for row, host in zip(batch.to_pylist(), hosts.to_pylist(), strict=True):
            caption = clean_caption(row["caption"])
            reason = _address_reason(row, host) or caption_reason(caption, self._config.phrases)
            if reason:
                self._rejects[reason] += 1
            else:
                kept.append((row["stored"] or row["url"], caption))
                self._counts["stored"] += row["stored"] is not None
                self._counts["not_text"] += "\ufffd" in caption
                asked += [] if row["stored"] else [host]
            if self._done in self._wanted:
                self._look(row, caption, reason)
            self._done += 1
        self._hosts.update(asked)
        self._compare(kept)
        self._count_cut(caption for _, caption in kept)

    def _compare(self, kept: list[tuple[str, str]]) -> None:
        urls, captions = (_hash((row[i] for row in kept), len(kept)) for i in (0, 1))
        self._urls.add(urls)
        self._captions.add(captions)
        self._both.add(urls + captions)

    def _count_cut(self, captions: Iterable[str]) -> None:
        if self._tokenizer is None:
            return
        room = self._tokenizer.max_tokens - NUM_AROUND
        long = [caption for caption in captions if len(caption.encode()) * _BYTES_PER_TOKEN > room]
        self._counts["cut"] += sum(encoding.cut for encoding in self._tokenizer(long)) if long else 0

    def _look(self, row: dict[str, Any], caption: str, reason: str | None) -> None:
        """Look closer at a sampled row."""
        phrases = () if reason else tuple(phrase.text for phrase in self._parse(caption))
        if not reason:
            self._counts["sampled"] += 1
            self._counts["without_phrase"] += not phrases
            self._phrases.update(phrase.lower() for phrase in phrases)
            if row["stored"] and len(self._measured) < _NUM_MEASURED:
                self._measured.append(row["stored"])
        if self._done in self._shown:
            url = row["url"] or row["stored"] or ""
            self._previews.append(
                Preview(key=row["key"], url=url, caption=caption, phrases=phrases, reason=reason or "")
            )

    def report(self, pairs: str) -> LintReport:
        """Sum up."""
        sampled = self._counts["sampled"]
        usable = self._rows - self._rejects.total()
        return LintReport(
            pairs=pairs,
            rows=self._rows,
            usable=usable,
            stored=self._counts["stored"],
            rejects=dict(self._rejects.most_common()),
            findings=tuple(sorted(self._findings(), key=lambda finding: -finding.rows)),
            num_hosts=len(self._hosts),
            top_hosts=tuple(self._hosts.most_common(_NUM_TOP)),
            sampled=sampled,
            without_phrase=self._counts["without_phrase"],
            phrases_per_caption=self._phrases.total() / max(sampled, 1),
            top_phrases=tuple(self._phrases.most_common(2 * _NUM_TOP)),
            hours=tuple(sorted(self._hours(usable), key=lambda part: -part.amount)),
            disk=self._disk(usable),
            previews=tuple(self._previews),
        )

    def _findings(self) -> Iterator[Finding]:
        yield Finding(
            name="same image",
            rows=self._urls.duplicates(),
            meaning="its address was there before",
        )
        yield Finding(
            name="same caption", rows=self._captions.duplicates(), meaning="its caption was there before, word for word"
        )
        yield Finding(
            name="same image and caption", rows=self._both.duplicates(), meaning="adds nothing to the rows before"
        )
        yield Finding(name="was no UTF-8", rows=self._counts["not_text"], meaning="caption holds U+FFFD in its place")
        if self._tokenizer:
            limit = self._tokenizer.max_tokens
            meaning = f"longer than the teacher's {limit} tokens; the rest goes unseen"
            yield Finding(name="token overflow", rows=self._counts["cut"], meaning=meaning)

    def _hours(self, usable: int) -> Iterator[Expectation]:
        cfg, stored = self._config, self._counts["stored"]
        to_fetch = usable - stored
        if to_fetch:
            host, most = self._hosts.most_common(1)[0]
            fetched = f"{to_fetch:,} images, {cfg.num_actors} x {cfg.images_per_s:g}/s"
            waited = (
                f"{most:,} images of {printable(host)}, {cfg.requests_per_host} at a time, {cfg.request_s:g} s each"
            )
            rate = cfg.num_actors * cfg.images_per_s
            yield Expectation(name="fetch", amount=to_fetch / rate / 3600, because=fetched)
            seconds = most * cfg.request_s / cfg.requests_per_host
            yield Expectation(name="wait for busiest host", amount=seconds / 3600, because=waited)
        labelled = stored + round(to_fetch * cfg.alive)
        found = f", {cfg.alive:.0%} of addresses alive" if to_fetch else ""
        because = f"{labelled:,} captions, {cfg.num_teachers} x {cfg.labels_per_s:g}/s{found}"
        seconds = labelled / cfg.num_teachers / cfg.labels_per_s
        yield Expectation(name="label", amount=seconds / 3600, because=because)

    def _disk(self, usable: int) -> Expectation:
        cfg, stored = self._config, self._counts["stored"]
        reader = StoredReader(_MAX_MEASURED_BYTES)
        sizes = [len(data) for data in map(reader.read, self._measured) if isinstance(data, bytes)]
        measured = sum(sizes) / len(sizes) if sizes else cfg.image_bytes
        to_fetch = round((usable - stored) * cfg.alive)
        reasons = [f"{to_fetch:,} images of {cfg.image_bytes / 1e3:g} kB"] if to_fetch else []
        if stored:
            how = f"measured on {len(sizes)}, before shrinking" if sizes else "assumed"
            reasons.append(f"{stored:,} stored images of {measured / 1e3:,.0f} kB ({how})")
        return Expectation(
            name="disk", amount=to_fetch * cfg.image_bytes + stored * measured, because=" and ".join(reasons)
        )


def _address_reason(row: dict[str, Any], host: str | None) -> str | None:
    """Say why the image of a row cannot be had, in the words of the run."""
    if row["stored"]:
        return MISSING if is_missing(row["stored"]) else None
    if not row["url"]:
        return "bad_line"
    if host is None:
        return "bad_url" if row["url"].lower().startswith(("http://", "https://")) else "bad_scheme"
    return None
