"""The simple scorers that a distilled one is measured against."""

import numpy as np
import pytest

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.baselines import mean_scores, ridge, tfidf_ridge
from efficient_empathy.distill.quality import spearman
from efficient_empathy.scorer.artifact import Scale

SCALES = (Scale("sensibility", 0.0, 10.0), Scale("rationality", 0.0, 10.0))


def test_the_mean_is_the_training_labels():
    assert mean_scores(np.array([[1.0, 4.0], [3.0, 6.0]]), 3).tolist() == [[2.0, 5.0]] * 3


def test_ridge_finds_a_line_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    x, unseen = rng.normal(size=(200, 5)), rng.normal(size=(100, 5))
    labels = np.stack([3 + 2 * x[:, 0], rng.normal(size=200)], axis=1)
    found = ridge(x, labels, unseen, SCALES)
    np.testing.assert_allclose(found[:, 0], 3 + 2 * unseen[:, 0], atol=0.2)
    assert np.abs(found[:, 1]).max() < 0.5  # the spread of the noise is 1, and it is not stretched to that


def test_what_is_half_known_is_given_the_spread_of_the_labels():
    rng = np.random.default_rng(1)
    x, unseen = rng.normal(size=(400, 3)), rng.normal(size=(2000, 3))
    labels = (5 + x[:, 0] + 2 * rng.normal(size=400))[:, None]
    found = ridge(x, labels, unseen, SCALES[:1])
    # The line explains a fifth of the variance, so plain predictions have under half of the labels' spread.
    assert found.std() == pytest.approx(labels.std(), rel=0.1)
    assert found.mean() == pytest.approx(labels.mean(), abs=0.25)
    assert spearman(found[:, 0], unseen[:, 0]) > 0.95


def test_words_that_decide_are_found(make_synthetic):
    examples, scores = make_synthetic(200)
    unseen, expected = make_synthetic(100, seed=1)
    found = tfidf_ridge(examples, scores, unseen, SCALES)
    assert min(spearman(found[:, d], expected[:, d]) for d in (0, 1)) > 0.6


def test_labels_that_follow_nothing_are_not_found(make_synthetic):
    examples, scores = make_synthetic(200)
    unseen, expected = make_synthetic(200, seed=1)
    shuffled = np.random.default_rng(0).permutation(scores)
    found = tfidf_ridge(examples, shuffled, unseen, SCALES)
    assert max(abs(spearman(found[:, d], expected[:, d])) for d in (0, 1)) < 0.35


@pytest.mark.parametrize("script", ["words", "no spaces"])
def test_texts_without_a_common_word_get_the_mean(script):
    # No contexts at all; and a script whose sentences are one "word" each, none of which comes twice.
    responses = [f"word{n} other{n}" if script == "words" else "很难过" + chr(0x4E00 + n) for n in range(40)]
    examples = [Example(f"{n}", f"{n}", 0, (), response) for n, response in enumerate(responses)]
    labels = np.arange(40.0)[:, None]
    found = tfidf_ridge(examples[:30], labels[:30], examples[30:], (Scale("warmth", 0.0, 40.0),))
    np.testing.assert_allclose(found, labels[:30].mean(), atol=1e-6)


def test_what_they_are_measured_by_stays_within_the_scale(tiny_bert, make_synthetic, monkeypatch):
    from efficient_empathy.distill import measuring
    from efficient_empathy.distill.backbone import open_backbone
    from efficient_empathy.distill.students import Split

    examples, _ = make_synthetic(8)
    scores = np.tile([[10.0, 0.0]], (8, 1))
    split = Split(examples, scores, np.arange(4), np.arange(4, 8))
    # 2 points beyond each end: 2 off the judge's 10 and 0 as they are, none once they are held within the scale.
    monkeypatch.setattr(measuring, "ridge", lambda *_: np.tile([[12.0, -2.0]], (4, 1)))
    monkeypatch.setattr(measuring, "tfidf_ridge", lambda *_: np.tile([[12.0, -2.0]], (4, 1)))
    systems = measuring.measure({"scorer": scores[:4]}, split, SCALES, open_backbone(str(tiny_bert), 64))["systems"]
    for name in ("frozen encoder + linear", "TF-IDF + ridge"):
        assert systems[name]["mae/sensibility"]["value"] == systems[name]["mae/rationality"]["value"] == 0.0
