"""Tokenizers with character offsets: BERT's WordPiece and CLIP's byte-pair encoding behind one interface."""

import json
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from tokenizers import BertWordPieceTokenizer, Regex, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Engine
from tokenizers.models import BPE
from tokenizers.models import WordPiece as WordPieceModel
from tokenizers.trainers import WordPieceTrainer

CharSpan = tuple[int, int]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
START, END = "<|startoftext|>", "<|endoftext|>"
NUM_AROUND = 2
"""Tokens around every text: its start and its end."""
CLIP_MASK_ID = 49404
"""CLIP never learned a mask token; the reference re-uses this one, an emoji that captions hardly ever hold."""
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP takes for a word: an English ending, letters, one digit, or anything else up to the next blank."""

VOCABULARY, BPE_VOCABULARY, MERGES = "vocab.txt", "vocab.json", "merges.txt"
WHOLE, SETTINGS = "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Tokens of one text, start and end tokens included, without padding."""

    ids: list[int]
    """Vocabulary ids."""
    offsets: list[CharSpan]
    """Per token, the ``[begin, end)`` characters it came from; ``(0, 0)`` for start and end tokens."""
    cut: bool = False
    """Whether the text was too long and lost its last tokens."""


@runtime_checkable
class Tokenizer(Protocol):
    """What everything else knows of a tokenizer."""

    pad_id: int
    """Fills short texts of a batch; never read, as the mask hides it."""
    mask_id: int
    """Stands for a hidden word."""
    vocab_size: int
    """Every id is below it."""
    max_tokens: int
    """Longest encoding, start and end tokens included; longer text is cut."""

    def __call__(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenize texts, each on its own."""
        ...

    def save(self, directory: Path) -> None:
        """Write what `load_tokenizer` needs into an existing directory."""
        ...


class WordPiece:
    """BERT's uncased WordPiece over a vocabulary given line by line (``vocab.txt``)."""

    def __init__(self, vocabulary: Sequence[str], max_tokens: int) -> None:
        """Build the tokenizer.

        Args:
            vocabulary: one token per line of ``vocab.txt``, its position being its id.
            max_tokens: longest encoding, start and end tokens included; longer text is cut.

        Raises:
            ValueError: a special token is missing, or no word fits.
        """
        self.vocabulary = tuple(vocabulary)
        ids = {token: number for number, token in enumerate(self.vocabulary)}
        if missing := [token for token in SPECIAL_TOKENS if token not in ids]:
            raise ValueError(f"the vocabulary of {len(ids)} tokens lacks {missing}; give a BERT-style vocab.txt")
        self._engine = BertWordPieceTokenizer(vocab=ids, lowercase=True)
        self.max_tokens = _limit(self._engine, max_tokens)
        self.pad_id, self.mask_id = ids["[PAD]"], ids["[MASK]"]
        self.vocab_size = len(self.vocabulary)

    def __call__(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenize texts, each on its own."""
        return _encode(self._engine, texts)

    def save(self, directory: Path) -> None:
        """Write ``vocab.txt``."""
        (directory / VOCABULARY).write_text("\n".join(self.vocabulary) + "\n", encoding="utf-8")


class ClipBPE:
    """CLIP's lower-cased byte-pair encoding over its ``vocab.json`` and ``merges.txt``.

    CLIP first repairs broken encodings and HTML entities, which would shift every character; that is left to whoever
    cleans the captions. All else it does to a text (composing accents, lower case, dropping blanks) keeps the offsets.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        max_tokens: int,
        mask_id: int = CLIP_MASK_ID,
    ) -> None:
        """Build the tokenizer.

        Args:
            vocabulary: id by token.
            merges: pairs of tokens in the order of their merging.
            max_tokens: longest encoding, start and end tokens included; longer text is cut.
            mask_id: token that stands for a hidden word. A vocabulary too small to hold it takes its last ordinary
                token, the one merged last and so the rarest.

        Raises:
            ValueError: a special token is missing, a merge makes a token that is not in the vocabulary, no word fits.
        """
        if missing := [token for token in (START, END) if token not in vocabulary]:
            raise ValueError(f"the vocabulary of {len(vocabulary)} tokens lacks {missing}; give CLIP's vocab.json")
        unmade = (f"{a} {b}" for a, b in merges if not {a, b, a + b} <= vocabulary.keys())
        if (pair := next(unmade, None)) is not None:
            raise ValueError(
                f"the merge {pair!r} is not in the vocabulary; give vocab.json and merges.txt of one model"
            )
        self._engine = _clip_engine(dict(vocabulary), list(merges))
        self.max_tokens = _limit(self._engine, max_tokens)
        # Any id would do, as padding is never read. The end token is what CLIP's users pad with, and unlike id 0 (an
        # exclamation mark) it is no word.
        self.pad_id = vocabulary[END]
        self.mask_id = min(mask_id, max(number for token, number in vocabulary.items() if token not in (START, END)))
        self.vocab_size = max(vocabulary.values()) + 1

    def __call__(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenize texts, each on its own."""
        return _encode(self._engine, texts)

    def save(self, directory: Path) -> None:
        """Write ``vocab.json``, ``merges.txt`` and, with the mask token in it, ``tokenizer_config.json``."""
        self._engine.model.save(str(directory))
        settings = json.dumps({"mask_token": self._engine.id_to_token(self.mask_id)})
        (directory / SETTINGS).write_text(settings, encoding="utf-8")


def tokenizer_files(source: Path) -> tuple[Path, ...]:
    """List the files a tokenizer is read from; ``source`` is a folder of them, or a WordPiece vocabulary itself."""
    if source.is_file():
        return (source,)
    for names in ((VOCABULARY,), (BPE_VOCABULARY, MERGES), (WHOLE,)):
        if all((source / name).is_file() for name in names):
            return tuple(source / name for name in (*names, SETTINGS) if (source / name).is_file())
    raise ValueError(f"no tokenizer at {source}; give a {VOCABULARY}, or a folder with it, {BPE_VOCABULARY} or {WHOLE}")


def load_tokenizer(source: Path, max_tokens: int) -> Tokenizer:
    """Read a tokenizer: ``vocab.txt``, ``vocab.json`` with ``merges.txt``, or ``tokenizer.json``, or a folder of these.

    The last is CLIP's, as transformers writes it; its vocabulary and merges are read, its other steps are ours.

    Raises:
        ValueError: there is none, or its files are damaged.
    """
    files = {path.name: path for path in tokenizer_files(source)}
    if not files.keys() & {BPE_VOCABULARY, WHOLE}:
        # Not splitlines: real vocabularies hold characters it takes for line breaks.
        words = next(iter(files.values())).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return WordPiece(words, max_tokens)
    try:
        vocabulary, merges = _read_bpe(files)
        settings = json.loads(files[SETTINGS].read_text(encoding="utf-8")) if SETTINGS in files else {}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} holds no CLIP tokenizer that can be read: {error}; save it again") from error
    mask = settings.get("mask_token")
    return ClipBPE(vocabulary, merges, max_tokens, vocabulary.get(str(mask), CLIP_MASK_ID))


def _read_bpe(files: Mapping[str, Path]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    if MERGES in files:
        vocabulary = json.loads(files[BPE_VOCABULARY].read_text(encoding="utf-8"))
        lines = files[MERGES].read_text(encoding="utf-8").removesuffix("\n").split("\n")
        pairs = [line.split(" ") for line in lines if not line.startswith("#version")]
    else:
        model = json.loads(files[WHOLE].read_text(encoding="utf-8"))["model"]
        vocabulary = model["vocab"]
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return vocabulary, [(first, second) for first, second in pairs]


def _clip_engine(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Engine:
    engine = Engine(BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END))
    engine.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(token, vocabulary[token]) for token in (START, END)]
    )
    return engine


def _limit(engine: Engine | BertWordPieceTokenizer, max_tokens: int) -> int:
    if max_tokens <= NUM_AROUND:
        raise ValueError(f"max_tokens is {max_tokens}; give at least {NUM_AROUND + 1}: a start, a word and an end")
    engine.enable_truncation(max_length=max_tokens)
    return max_tokens


def _encode(engine: Engine | BertWordPieceTokenizer, texts: Sequence[str]) -> list[Encoding]:
    encoded = engine.encode_batch(list(texts))
    return [Encoding(ids=e.ids, offsets=e.offsets, cut=bool(e.overflowing)) for e in encoded]


def make_vocabulary(words: Iterable[str]) -> list[str]:
    """Build a small WordPiece vocabulary that knows ``words`` and spells every other word letter by letter.

    For a world whose words are known beforehand; `train_vocabulary` finds them in a corpus.
    """
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in string.ascii_lowercase + string.digits)]
    return [*pieces, *sorted({w.lower() for w in words} - set(pieces))]


def train_vocabulary(texts: Iterable[str], size: int) -> tuple[str, ...]:
    """Learn a WordPiece vocabulary from a corpus; the same texts in any order give the same vocabulary.

    Args:
        texts: captions and category names.
        size: entries at most; fewer if the corpus has no more pieces that occur twice.

    Raises:
        ValueError: ``size`` does not even hold the letters.
    """
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = Counter(w for t in texts for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(t)))
    letters = {c for w in words for c in w}
    pieces = make_vocabulary([*letters, *(f"##{c}" for c in letters)])
    if size < len(pieces):
        raise ValueError(f"size is {size} but single letters take {len(pieces)}; give more, or cleaner texts")
    # The trainer numbers continued letters as it meets them, in the random order of a hash table, and breaks ties by
    # number: two runs differ. Here all letters come numbered, which leaves nothing to that order.
    trainer = WordPieceTrainer(vocab_size=size, min_frequency=2, special_tokens=pieces, show_progress=False)
    engine = Engine(WordPieceModel(unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.train_from_iterator(words.elements(), trainer)
    ids = engine.get_vocab(with_added_tokens=False)
    return tuple(sorted(ids, key=lambda piece: ids[piece]))
