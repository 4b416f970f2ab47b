"""How texts are cut into tokens for the metrics: as the paper's script did, and into plain words."""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from efficient_empathy.errors import require

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_PUNCTUATION = re.compile(r"""[!"#$%&()*+,\-./:;<=>?@\[\]\\^`{|}~_']""")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_QUESTION = re.compile(r"""\?[!?"'”’)\]*]*(?:\s|$)""")


def need(module: str) -> Any:
    """Import a package of the ``experts`` extra, or say how to install it."""
    return require(module, "experts", "evaluating answers")


@cache
def _word_tokenizer() -> Any:
    return need("nltk.tokenize.destructive").NLTKWordTokenizer()


@lru_cache(maxsize=1 << 16)
def nltk_tokens(text: str) -> tuple[str, ...]:
    """The tokens of the lower-cased text, by NLTK's word tokenizer.

    The paper's script calls ``nltk.word_tokenize``, which finds sentences by a model that has to be downloaded, and then
    runs this tokenizer on each. Here a sentence ends at a full stop, question or exclamation mark before a blank. The two
    differ after abbreviations ("dr. may": there one token "dr.", here "dr" and ".").
    """
    pieces = _SENTENCE_END.split(text.lower().strip())
    return tuple(token for piece in pieces for token in _word_tokenizer().tokenize(piece))


class PaperNormaliser:
    """The tokenizer of the paper's ROUGE, as rouge-score takes one: articles and punctuation dropped, no stemming.

    The text is cut by ``nltk_tokens`` first, as there. A text with nothing left has no tokens (the script gives it one
    empty token, so that two such texts match).
    """

    def tokenize(self, text: str) -> list[str]:
        """The tokens that ROUGE compares."""
        plain = _PUNCTUATION.sub(" ", " ".join(nltk_tokens(text)))
        return _ARTICLES.sub(" ", plain).split()


@lru_cache(maxsize=1 << 16)
def words(text: str) -> tuple[str, ...]:
    """Lower-cased runs of letters and digits; an apostrophe inside a word does not end it."""
    return tuple(_WORD.findall(text.lower()))


def asks(text: str) -> bool:
    """Whether a sentence of the text ends with a question mark; other marks, closing quotes and brackets may follow it."""
    return _QUESTION.search(text) is not None


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def copied_share(text: str, context: Sequence[str]) -> float:
    """Share of the text's word 3-grams that stand in one of the context's turns; nan where it has no 3-gram."""
    own = ngrams(words(text), 3)
    if not own:
        return float("nan")
    known = {ngram for turn in context for ngram in ngrams(words(turn), 3)}
    return sum(ngram in known for ngram in own) / len(own)
