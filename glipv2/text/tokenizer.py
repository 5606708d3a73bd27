"""WordPiece tokenizer with character offsets."""

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import BertWordPieceTokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CharSpan = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Tokens of one text, start and end tokens included, without padding."""

    ids: list[int]
    """Vocabulary ids."""
    offsets: list[CharSpan]
    """Per token, the ``[begin, end)`` characters it came from; ``(0, 0)`` for start and end tokens."""


class WordPiece:
    """BERT's uncased WordPiece over a vocabulary given line by line (``vocab.txt``)."""

    def __init__(self, vocabulary: Sequence[str], max_tokens: int) -> None:
        """Build the tokenizer.

        Args:
            vocabulary: one token per line of ``vocab.txt``, its position being its id.
            max_tokens: longest encoding, start and end tokens included; longer text is cut.

        Raises:
            ValueError: a special token is missing.
        """
        self.vocabulary = tuple(vocabulary)
        ids = {token: number for number, token in enumerate(self.vocabulary)}
        if missing := [token for token in SPECIAL_TOKENS if token not in ids]:
            raise ValueError(f"the vocabulary of {len(ids)} tokens lacks {missing}; give a BERT-style vocab.txt")
        self._tokenizer = BertWordPieceTokenizer(vocab=ids, lowercase=True)
        self._tokenizer.enable_truncation(max_length=max_tokens)
        self.pad_id = ids["[PAD]"]

    def __call__(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenize texts, each on its own."""
        return [Encoding(ids=e.ids, offsets=e.offsets) for e in self._tokenizer.encode_batch(list(texts))]


def make_vocabulary(words: Iterable[str]) -> list[str]:
    """Build a small vocabulary that knows ``words`` and spells every other word letter by letter.

    For models trained from nothing; released models bring their own ``vocab.txt``.
    """
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in string.ascii_lowercase + string.digits)]
    return [*pieces, *sorted({w.lower() for w in words} - set(pieces))]
