"""The tokenizer that runs: tokie where it is installed and gives the ids of ``tokenizers``, else ``tokenizers``."""

import logging
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from efficient_empathy.errors import EmpathyError, MissingExtraError

TOKENIZERS = ("auto", "tokie", "tokenizers")
_log = logging.getLogger(__name__)

# A text with a control character other than tab and line ends goes to ``tokenizers``: tokie 0.1.4 makes an unknown token
# of a lone DEL, where ``tokenizers`` makes nothing.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_WORDS = "the dog I'm you'll don't DON'T can’t it’s o'clock rock'n'roll re-read e-mail naïve café Zoë façade ﬁne ²x Ⅷ ½"
_SCRIPTS = "你好，世界。 東京タワー こんにちは 한국어 텍스트 Привет мир שלום עולם مرحبا बहुत धन्यवाद ไทย Ελληνικά ñandú İstanbul ıßſ"
_SIGNS = "😂❤️👍🏽 👨‍👩‍👧 🏳️‍🌈 ¯\\_(ツ)_/¯ … — – “quoted” ‘so’ «là» !!! ?!?! ... $5.99 50% #tag @name a/b a_b C++ <b> </s> & 1e-6"
PROBES = (
    "",
    " ",
    "  leading, trailing and  double  spaces  ",
    "tabs\tand\nlines\r\nand\u00a0other\u2003blanks\u3000here\u2028there\u200bnone\ufeff",
    "control\x00characters\x07in\x1b[0mbetween\x7f\x85",
    "\x7f",
    "\u0301 e\u0301 n\u0303 a\u0308\u0304 \u0915\u093f",
    "[UNK] [CLS] [SEP] [PAD] [MASK] <s> <pad> <unk> <mask> ##ing [unused1] [ UNK ] [unk]",
    "x" * 99 + " " + "y" * 100 + " " + "z" * 101 + " " + "q" * 500,
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "https://example.org/a?b=c&d=%20#e mail@example.org 2026-01-02T03:04:05Z +44 20 7946 0000",
    "😭" * 40,
    "你" * 200,
    "\U0001d49c\U0001d4d1 \U00010348 \ue000 \ufffd \U000e0041",
    "aAbBcC MiXeD CaSe ALL CAPS, sOOOO happyyyy!!!! nooooo :-( :) <3 xD",
    "I'm so sorry to hear that. When did it happen? You must have been devastated,comma without a space.",
    *_WORDS.split(),
    _WORDS,
    *_SCRIPTS.split(),
    _SCRIPTS,
    *_SIGNS.split(),
    _SIGNS,
)
"""Texts on which tokenizers have been seen to differ, written for this purpose."""


class Tokenises(Protocol):
    """What the encoder needs of a tokenizer; ``tokenizers.Tokenizer`` is one."""

    def encode_batch_fast(self, input: list[str], add_special_tokens: bool = True) -> Sequence[Any]:
        """Tokenise texts: for each an object with ``ids``."""

    def no_padding(self) -> None:
        """Switch padding off."""

    def no_truncation(self) -> None:
        """Switch cutting off."""


class TokieTokenizer:
    """tokie, with ``tokenizers`` behind it for the texts that it is not trusted with."""

    def __init__(self, fast: Any, reference: Tokenizer) -> None:
        self._fast = fast
        self._reference = reference
        self.no_padding()
        self.no_truncation()

    def encode_batch_fast(self, input: list[str], add_special_tokens: bool = True) -> Sequence[Any]:
        """Tokenise texts: for each an object with ``ids``."""
        encodings = self._fast.encode_batch(input, add_special_tokens=add_special_tokens)
        if odd := _odd(input):
            texts = [input[place] for place in odd]
            again = self._reference.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
            for place, encoding in zip(odd, again, strict=True):
                encodings[place] = encoding
        return encodings

    def flat_ids(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """As the function ``flat_ids``, without an object for each text."""
        if _odd(texts):
            return _gathered(self.encode_batch_fast(texts, add_special_tokens=False))
        ids, lengths = self._fast.encode_batch_flat(texts, add_special_tokens=False)
        return ids.astype(np.int64), lengths.astype(np.int64)

    def no_padding(self) -> None:
        """Switch padding off."""
        self._fast.no_padding()
        self._reference.no_padding()

    def no_truncation(self) -> None:
        """Switch cutting off."""
        self._fast.no_truncation()
        self._reference.no_truncation()


def flat_ids(tokenizer: Tokenises, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokenise texts into one array, without the ids that frame a text.

    Returns:
        The ids of all texts, one text after another, int64; the number of tokens of each text, int64 (n,).
    """
    if isinstance(tokenizer, TokieTokenizer):
        return tokenizer.flat_ids(texts)
    return _gathered(tokenizer.encode_batch_fast(texts, add_special_tokens=False))


def _gathered(encodings: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    ids = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum())), lengths


def _odd(texts: Sequence[str]) -> list[int]:
    """Places of the texts that tokie is not trusted with."""
    # isprintable is quick and says no to every control character; the search then tells line ends and such apart.
    return [place for place, text in enumerate(texts) if not text.isprintable() and _CONTROL.search(text)]


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json`` with ``tokenizers``.

    Raises:
        EmpathyError: the file is not a tokenizer.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise EmpathyError(f"'{path}' is not a tokenizer file: {error}. Distil the scorer again.") from error


def choose_tokenizer(path: Path, wanted: str = "auto") -> tuple[Tokenises, str]:
    """Read a ``tokenizer.json`` with the fastest library that gives the right ids.

    Args:
        path: the file.
        wanted: ``tokenizers``; ``tokie``, which fails where that cannot be used; ``auto``, which takes tokie where it is
            installed and gives identical ids for every text of ``PROBES``.

    Returns:
        The tokenizer, and the name of the library.

    Raises:
        EmpathyError: the file is not a tokenizer, or tokie was asked for and gives other ids.
        MissingExtraError: tokie was asked for and is not installed.
    """
    check_tokenizer(wanted)
    reference = load_tokenizer(path)
    if wanted == "tokenizers":
        return reference, "tokenizers"
    fast, fault = _tokie(path, reference)
    if fast is not None:
        return fast, "tokie"
    if wanted == "tokie":
        raise fault
    _log.debug("%s", fault)
    return reference, "tokenizers"


def check_tokenizer(wanted: str) -> None:
    """Raise EmpathyError for a name that is none of ``TOKENIZERS``."""
    if wanted not in TOKENIZERS:
        raise EmpathyError(f"tokenizer must be one of {', '.join(TOKENIZERS)}, not '{wanted}'.")


def _tokie(path: Path, reference: Tokenizer) -> tuple[TokieTokenizer | None, EmpathyError]:
    """Tokie's tokenizer; or None, and why."""
    try:
        import tokie
    except ModuleNotFoundError:
        return None, MissingExtraError("tokie is not installed. Install it with: pip install tokie")
    try:
        fast = TokieTokenizer(tokie.Tokenizer.from_json(str(path)), reference)
    except tokie.TokieError as error:
        return None, EmpathyError(f"tokie cannot read '{path}': {error}. Use --tokenizer auto.")
    probes = list(PROBES)
    expected = reference.encode_batch_fast(probes, add_special_tokens=False)
    found = fast.encode_batch_fast(probes, add_special_tokens=False)
    for text, right, other in zip(probes, expected, found, strict=True):
        if list(right.ids) != list(other.ids):
            return None, EmpathyError(
                f"tokie gives other ids than tokenizers, for example for {text[:40]!r}. Use --tokenizer auto."
            )
    return fast, EmpathyError("")
