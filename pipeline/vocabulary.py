"""A vocabulary of one's own: learned from the texts a model will be trained on, without a download and without Ray."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow.parquet as pq

from glipv2.text.prompts import clean_name
from glipv2.text.tokenizer import train_vocabulary
from pipeline.ingest import category_names
from pipeline.paths import NOT_GIVEN, require
from pipeline.shards import file_sha256, open_rows, write_atomically
from pipeline.sources.pairs import PairsConfig, import_pairs


@dataclass(frozen=True, kw_only=True)
class VocabularyJob:
    """Texts in, ``vocab.txt`` out."""

    pairs: tuple[Path, ...] = ()
    """Lists of URLs and captions, absolute: tsv, csv, json, jsonl or parquet, also gzipped; no URL is opened."""
    sources: tuple[Path, ...] = ()
    """Finished directories of grounding shards, absolute; a category's name counts once for every box of it."""
    url_column: str = "url"
    """Column of the address."""
    caption_column: str = "caption"
    """Column of the caption."""
    columns: tuple[str, ...] = ()
    """Names of the columns of files without a header line: ``caption url`` for CC3M, ``url caption`` for CC12M."""
    size: int = 8192
    """Entries at most; fewer if the texts have no more pieces that occur twice."""
    out: Path = NOT_GIVEN
    """File to write, absolute."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        given = {"pairs": self.pairs, "sources": self.sources}
        require(out=self.out, **{f"{name}.{i}": p for name, paths in given.items() for i, p in enumerate(paths)})
        if not self.pairs and not self.sources:
            raise ValueError("--pairs and --sources are missing; give files of captions, finished shards, or both")


def learn_vocabulary(cfg: VocabularyJob) -> str:
    """Write the vocabulary and tell where it is; the same texts, in any order, give the same file.

    Raises:
        ValueError: a file or directory cannot be read, there is no text, ``size`` is too small for the letters, or
            ``out`` holds another vocabulary.
    """
    texts = _texts(cfg)
    if (first := next(texts, None)) is None:
        raise ValueError(f"no text in {', '.join(map(str, (*cfg.pairs, *cfg.sources)))}; give captions or categories")
    pieces = train_vocabulary(chain([first], texts), cfg.size)
    vocabulary = "\n".join(pieces) + "\n"
    if cfg.out.exists() and (not cfg.out.is_file() or cfg.out.read_text(encoding="utf-8") != vocabulary):
        raise ValueError(f"{cfg.out} already holds something else; give another --out, as a model may depend on it")
    cfg.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cfg.out, vocabulary)
    return f"vocabulary {cfg.out}\n{len(pieces)} entries, sha256 {file_sha256(cfg.out)}"


def _texts(cfg: VocabularyJob) -> Iterator[str]:
    for path in cfg.pairs:
        yield from _captions(cfg, path)
    for source in cfg.sources:
        yield from map(clean_name, category_names(source).values())
        for batch in open_rows(source).to_batches(columns=["text", "category"]):
            yield from filter(None, batch["text"].to_pylist())
            yield from (clean_name(name) for names in batch["category"].to_pylist() for name in names or () if name)


def _captions(cfg: VocabularyJob, path: Path) -> Iterator[str]:
    pairs = PairsConfig(
        path=path,
        url_column=cfg.url_column,
        caption_column=cfg.caption_column,
        columns=cfg.columns,
    )
    with tempfile.TemporaryDirectory() as folder:
        import_pairs(pairs, Path(folder) / "pairs.parquet")
        with pq.ParquetFile(Path(folder) / "pairs.parquet") as file:
            for batch in file.iter_batches(columns=["caption"]):
                yield from filter(None, batch["caption"].to_pylist())
