"""The metrics of answers: the paper's under the paper's definitions, comparable ones beside them, and simple counts.

The paper's metrics follow ``empathy/metrics.py`` of its released code, all times 100. Their names say what they are: figures
called BLEU by others are often another thing.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from efficient_empathy.dialogues.types import Turn
from efficient_empathy.experts.measures import Measure, distinct_measures, mean_measure, sum_measure
from efficient_empathy.experts.word_tokens import (
    PaperNormaliser,
    asks,
    copied_share,
    need,
    ngrams,
    nltk_tokens,
    words,
)

LIKELIHOOD, PAPER, COMPARABLE, FORM = "likelihood of the references", "paper", "comparable", "form"
EAD_VOCABULARY = 50257
"""V of EAD: one size for all systems, that of GPT-2's tokenizer. The figure means nothing beside one with another V."""
_EPSILON = 1e-12


@dataclass(frozen=True)
class Texts:
    """What the metrics of one set of answers look at, row by row."""

    contexts: Sequence[Sequence[Turn]]
    references: Sequence[str | None]
    """What a person answered; None where it is not known."""
    answers: Sequence[str | None]
    """None where there is nothing to measure; an empty answer is an answer."""

    def pairs(self) -> list[tuple[str, str] | None]:
        """Answer and reference of each row that has both, None for the others."""
        return [
            None if answer is None or reference is None else (answer, reference)
            for answer, reference in zip(self.answers, self.references, strict=True)
        ]


def text_measures(texts: Texts) -> list[Measure]:
    """All figures of answers and references; those without a row that counts are left out."""
    return [*overlap_measures(texts), *diversity_measures(texts), *form_measures(texts)]


def likelihood_measures(
    nll: Sequence[float | None], tokens: Sequence[int | None], references: Sequence[str | None]
) -> list[Measure]:
    """Perplexity of the references, exp(sum of nll / sum of tokens), and bits per byte, sum of nll / ln 2 / UTF-8 bytes.

    Args:
        nll: nats of each reference with its end of turn; None where it was not measured.
        tokens: tokens that the nats are summed over.
        references: the texts.
    """
    rows = [
        (np.nan,) * 3 if nats is None or not count or text is None else (nats, count, len(text.encode()))
        for nats, count, text in zip(nll, tokens, references, strict=True)
    ]
    statistics = np.array(rows, np.float64)

    def perplexity(sums: np.ndarray) -> np.ndarray:
        return np.exp(sums[:, 0] / np.maximum(sums[:, 1], 1))

    def bits_per_byte(sums: np.ndarray) -> np.ndarray:
        return sums[:, 0] / np.log(2) / np.maximum(sums[:, 2], 1)

    return [
        *sum_measure("perplexity", LIKELIHOOD, statistics, perplexity, "likelihood"),
        *sum_measure("bits_per_byte", LIKELIHOOD, statistics, bits_per_byte, "likelihood"),
    ]


def overlap_measures(texts: Texts) -> list[Measure]:
    """What an answer shares with its reference.

    ``bleu1_nltk_m1`` to ``bleu4_nltk_m1``: NLTK's ``corpus_bleu``, uniform weights, smoothing method 1 with epsilon 1e-12, on
    the tokens of ``nltk_tokens``. ``rouge1_f1``, ``rouge2_f1``, ``rougeL_f1``: mean F1 of rouge-score on the tokens of
    ``PaperNormaliser``. ``f1_words``: 2PR / (P + R) of the tokens shared as bags, precision and recall over the whole corpus.
    ``sacrebleu``: sacreBLEU's corpus score on the texts as they are, see ``sacrebleu_signature``.
    """
    pairs = texts.pairs()
    bleu = _rows((bleu_statistics(*map(nltk_tokens, pair)) if pair else None for pair in pairs), 10)
    f1 = _rows((_bag_statistics(*map(nltk_tokens, pair)) if pair else None for pair in pairs), 3)
    sacre = _rows((_sacrebleu_statistics(*pair) if pair else None for pair in pairs), 10)
    rouge = _rows((_rouge(*pair) if pair else None for pair in pairs), 3)
    measures = []
    for n in range(1, 5):
        measures += sum_measure(f"bleu{n}_nltk_m1", PAPER, bleu, partial(nltk_bleu, order=n), "bleu_nltk_m1")
    for column, name in enumerate(("rouge1_f1", "rouge2_f1", "rougeL_f1")):
        measures += mean_measure(name, PAPER, rouge[:, column], 100)
    measures += sum_measure("f1_words", PAPER, f1, _f1)
    return measures + sum_measure("sacrebleu", COMPARABLE, sacre, _sacrebleu)


def bleu_statistics(answer: Sequence[str], reference: Sequence[str]) -> list[int]:
    """What one row adds to BLEU: matched n-grams for n of 1 to 4, n-grams for n of 1 to 4, both lengths.

    NLTK counts at least one n-gram a row, also where the answer is shorter than n.
    """
    matched, total = [], []
    for n in range(1, 5):
        own = Counter(ngrams(answer, n))
        matched.append((own & Counter(ngrams(reference, n))).total())
        total.append(max(1, own.total()))
    return [*matched, *total, len(answer), len(reference)]


def nltk_bleu(sums: np.ndarray, order: int) -> np.ndarray:
    """BLEU times 100 from the sums of ``bleu_statistics``, (r, 10) to (r,), over n-grams of up to ``order`` tokens."""
    matched, total, length, wanted = sums[:, :order], sums[:, 4 : 4 + order], sums[:, 8], sums[:, 9]
    precision = np.where(matched > 0, matched, _EPSILON) / np.maximum(total, 1)
    with np.errstate(divide="ignore", over="ignore"):
        penalty = np.where(length > wanted, 1.0, np.where(length > 0, np.exp(1 - wanted / length), 0.0))
    return 100 * np.where(matched[:, 0] > 0, penalty * np.exp(np.log(precision).mean(axis=1)), 0.0)


def _bag_statistics(answer: Sequence[str], reference: Sequence[str]) -> list[int]:
    return [(Counter(answer) & Counter(reference)).total(), len(answer), len(reference)]


def _f1(sums: np.ndarray) -> np.ndarray:
    # 2PR / (P + R) with P = shared / answer and R = shared / reference.
    return 200 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1)


@cache
def _rouge_scorer() -> Any:
    scorer = need("rouge_score.rouge_scorer").RougeScorer
    return scorer(["rouge1", "rouge2", "rougeL"], tokenizer=PaperNormaliser())


def _rouge(answer: str, reference: str) -> list[float]:
    return [score.fmeasure for score in _rouge_scorer().score(reference, answer).values()]


@cache
def _sentence_bleu() -> Any:
    # Effective order quiets a warning about sentences; the counts that are taken from it do not depend on it.
    return need("sacrebleu").BLEU(effective_order=True)


def _sacrebleu_statistics(answer: str, reference: str) -> list[int]:
    score = _sentence_bleu().sentence_score(answer, [reference])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def _sacrebleu(sums: np.ndarray) -> np.ndarray:
    compute = need("sacrebleu").BLEU.compute_bleu
    rows = sums.astype(np.int64).tolist()
    return np.array([compute(row[:4], row[4:8], row[8], row[9], smooth_method="exp").score for row in rows])


def sacrebleu_signature() -> str:
    """How sacreBLEU made the score, in its own words; to be given with the figure."""
    scorer = need("sacrebleu").BLEU()
    scorer.corpus_score(["a"], [["a"]])
    return str(scorer.get_signature())


def diversity_measures(texts: Texts) -> list[Measure]:
    """How many different n-grams the answers hold together, times 100.

    ``dist1``, ``dist2``: different / all n-grams of the whole corpus, 1e-5 added to both (Li et al. 2016, as the paper computes
    it). It falls with the length of the answers and with their number. ``ead1``, ``ead2``: expectation-adjusted, different
    n-grams / (V (1 - ((V - 1) / V) ** C)), C all n-grams and V ``EAD_VOCABULARY``: the denominator is how many different ones C
    draws from V equally likely ones give (Liu et al. 2022, "Rethinking and Refining the Distinct Metric").
    """
    measures = []
    for n in (1, 2):
        grams = [None if answer is None else ngrams(nltk_tokens(answer), n) for answer in texts.answers]
        measures += distinct_measures(f"ngrams{n}", grams, [(f"dist{n}", PAPER, _dist), (f"ead{n}", COMPARABLE, _ead)])
    return measures


def _dist(unique: np.ndarray, total: np.ndarray) -> np.ndarray:
    return 100 * (unique + 1e-5) / (total + 1e-5)


def _ead(unique: np.ndarray, total: np.ndarray) -> np.ndarray:
    expected = -EAD_VOCABULARY * np.expm1(total * np.log1p(-1 / EAD_VOCABULARY))
    return 100 * np.divide(unique, expected, out=np.zeros(len(unique)), where=expected > 0)


def form_measures(texts: Texts) -> list[Measure]:
    """Simple counts that catch what other figures hide.

    ``words``: mean number. In percent of the answers: ``question_rate``, a sentence ends with a question mark;
    ``empty_rate``, nothing but blanks. ``copy_rate``: mean percentage of an answer's word 3-grams that stand in a turn of its
    context, over answers of three words or more.
    """
    answers = texts.answers
    copied = [
        np.nan if answer is None else copied_share(answer, [turn.text for turn in context])
        for answer, context in zip(answers, texts.contexts, strict=True)
    ]
    return [
        *mean_measure("words", FORM, _column(None if a is None else len(words(a)) for a in answers)),
        *mean_measure("question_rate", FORM, _column(None if a is None else asks(a) for a in answers), 100),
        *mean_measure("copy_rate", FORM, np.array(copied, np.float64), 100),
        *mean_measure("empty_rate", FORM, _column(None if a is None else not a.strip() for a in answers), 100),
    ]


def _column(values: Iterable[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else float(value) for value in values], np.float64)


def _rows(values: Iterable[Sequence[float] | None], width: int) -> np.ndarray:
    return np.array([(np.nan,) * width if value is None else value for value in values], np.float64).reshape(-1, width)
