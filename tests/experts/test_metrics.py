"""Every metric by hand and against the libraries, on all rows and on resamples of them."""

import math
from itertools import chain

import numpy as np
import pytest
import sacrebleu
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

from efficient_empathy.dialogues.types import Turn
from efficient_empathy.experts.metrics import (
    EAD_VOCABULARY,
    Texts,
    likelihood_measures,
    sacrebleu_signature,
    text_measures,
)
from efficient_empathy.experts.statistics import draw
from efficient_empathy.experts.word_tokens import PaperNormaliser, asks, copied_share, nltk_tokens, words

ANSWERS = ["I am so sorry.", "That is great! What will you do now?", "Oh no", "", "I am so sorry to hear that."]
REFERENCES = ["I am very sorry.", "That sounds great! What now?", "Oh yes, no.", "I see.", "Sorry to hear that."]
GROUPS = ["a", "a", "b", "c", "d"]


def figures(answers, references, groups=None, contexts=None, resamples=0):
    texts = Texts(contexts or [()] * len(answers), references, answers)
    draws = draw(groups or [str(row) for row in range(len(answers))], resamples)
    return {measure.name: measure.values(draws) for measure in text_measures(texts)}


def test_tokens_are_those_of_the_papers_script():
    # As nltk.word_tokenize gives them: each sentence's full stop is a token, and "can't" is two.
    assert nltk_tokens("I'm sorry. Can't you? Yes!") == ("i", "'m", "sorry", ".", "ca", "n't", "you", "?", "yes", "!")
    assert PaperNormaliser().tokenize("The dog, a cat -- an owl's!") == ["dog", "cat", "owl", "s"]
    assert nltk_tokens("  ") == ()


def test_overlap_by_hand():
    # Tokens i am so sorry / i am very sorry: unigrams 3 of 4, bigrams 1 of 3, none longer; the longest common run is 3.
    found = figures(["I am so sorry"], ["I am very sorry"])
    assert found["bleu1_nltk_m1"][0] == pytest.approx(75)
    assert found["bleu2_nltk_m1"][0] == pytest.approx(100 * math.sqrt(3 / 4 * 1 / 3))
    assert found["bleu3_nltk_m1"][0] == pytest.approx(100 * (3 / 4 * 1 / 3 * 1e-12 / 2) ** (1 / 3))
    assert found["rouge1_f1"][0] == pytest.approx(75)
    assert found["rouge2_f1"][0] == pytest.approx(100 / 3)
    assert found["rougeL_f1"][0] == pytest.approx(75)
    assert found["f1_words"][0] == pytest.approx(75)


def test_f1_is_that_of_the_whole_corpus():
    # Shared 1 + 0, answers 1 + 3 words, references 2 + 2: P 1/4, R 1/4.
    assert figures(["a", "x y z"], ["a b", "c d"])["f1_words"][0] == pytest.approx(25)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_is_nltks(order):
    method1 = SmoothingFunction(epsilon=1e-12).method1
    references = [[nltk_tokens(text)] for text in REFERENCES]
    expected = corpus_bleu(references, [*map(nltk_tokens, ANSWERS)], [1 / order] * order, smoothing_function=method1)
    assert figures(ANSWERS, REFERENCES)[f"bleu{order}_nltk_m1"][0] == pytest.approx(100 * expected)
    nothing = corpus_bleu([[nltk_tokens("a b")]], [nltk_tokens("c")], [1 / order] * order, smoothing_function=method1)
    assert figures(["c"], ["a b"])[f"bleu{order}_nltk_m1"][0] == 100 * nothing == 0


def test_sacrebleu_is_sacrebleus():
    expected = sacrebleu.corpus_bleu(ANSWERS, [REFERENCES]).score
    assert figures(ANSWERS, REFERENCES)["sacrebleu"][0] == pytest.approx(expected)
    assert sacrebleu_signature().startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_dist_by_hand():
    # Tokens a b a / b c: 3 different of 5; bigrams ab ba bc: 3 of 3.
    found = figures(["a b a", "b c"], [None, None])
    assert found["dist1"][0] == pytest.approx(100 * 3.00001 / 5.00001)
    assert found["dist2"][0] == pytest.approx(100)
    v = EAD_VOCABULARY
    assert found["ead1"][0] == pytest.approx(100 * 3 / (v * (1 - ((v - 1) / v) ** 5)), rel=1e-6)
    assert not any(name.startswith(("bleu", "rouge", "sacre", "f1")) for name in found)


def test_length_lowers_dist_more_than_ead():
    rng = np.random.default_rng(0)
    vocabulary = [f"w{index}" for index in range(EAD_VOCABULARY)]
    short, long = (figures([" ".join(rng.choice(vocabulary, n))], [None]) for n in (2000, 40000))
    assert short["dist1"][0] - long["dist1"][0] > 20
    assert abs(short["ead1"][0] - long["ead1"][0]) < 2  # drawn evenly from the vocabulary, both are all they can be


def test_a_resample_gives_what_its_rows_give_from_the_start():
    contexts = [(Turn("speaker", "I am so sorry to be late"),)] * 5
    draws = draw(GROUPS, 20, 1)
    measures = text_measures(Texts(contexts, REFERENCES, ANSWERS))
    found = {measure.name: measure.values(draws) for measure in measures}
    for resample, times in enumerate(draws.times):
        rows = list(chain(*([row] * times[group] for row, group in enumerate(draws.group_of_row))))
        again = figures(
            [ANSWERS[row] for row in rows], [REFERENCES[row] for row in rows], contexts=[contexts[row] for row in rows]
        )
        for name, values in found.items():
            expected = again[name][0] if name in again else math.nan
            assert values[resample] == pytest.approx(expected, nan_ok=True), name


def test_rows_without_a_reference_or_an_answer_do_not_count():
    with_gap = figures(["I am so sorry", "x y z"], ["I am very sorry", None])
    assert with_gap["bleu1_nltk_m1"][0] == pytest.approx(75)
    assert with_gap["rouge1_f1"][0] == pytest.approx(75)
    assert with_gap["words"][0] == 3.5
    assert figures(["one two", None], [None, None])["words"][0] == 2


def test_likelihood_by_hand():
    # ln 4 + ln 16 nats over 4 tokens: 64 ** (1/4); 2 + 4 bits over 2 + 2 bytes ("é" has two).
    nll = [math.log(4), math.log(16), None]
    found = {m.name: m for m in likelihood_measures(nll, [2, 2, None], ["ab", "é", "unmeasured"])}
    draws = draw(["x", "y", "z"], 5)
    assert found["perplexity"].values(draws)[0] == pytest.approx(64**0.25)
    assert found["bits_per_byte"].values(draws)[0] == pytest.approx(1.5)
    assert found["perplexity"].rows == 2
    assert likelihood_measures([None], [None], ["a"]) == []


def test_form_by_hand():
    context = (Turn("speaker", "I am so sorry to hear it"),)
    found = figures(["So sorry to hear that?", " "], [None, None], contexts=[context, context])
    assert found["words"][0] == 2.5
    assert found["question_rate"][0] == 50
    assert found["empty_rate"][0] == 50
    assert found["copy_rate"][0] == pytest.approx(200 / 3)  # two of three 3-grams; the empty answer has none


def test_copied_grams_do_not_span_turns():
    assert copied_share("one two three", ["one two", "three"]) == 0
    assert copied_share("one two three", ["zero one two three"]) == 1
    assert math.isnan(copied_share("one two", ["one two"]))


def test_words_and_questions():
    assert words("It's 5 o'clock -- isn't it?") == ("it's", "5", "o'clock", "isn't", "it")
    assert asks("Why?! I see.")
    assert asks('He said "why?"')
    assert not asks("a?b and no more")
    assert not asks("I wonder why.")
