"""The simple scorers that a distilled one has to beat, fitted on the same rows and calibrated as it is."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.calibration import calibrate
from efficient_empathy.scorer.artifact import Scale

_RIDGE_ALPHAS = np.logspace(-2, 4, 13)


def mean_scores(labels: np.ndarray, rows: int) -> np.ndarray:
    """The training labels' mean for every row, float (rows, d)."""
    return np.tile(labels.mean(0), (rows, 1))


def tfidf_ridge(
    train: Sequence[Example], labels: np.ndarray, test: Sequence[Example], scales: tuple[Scale, ...]
) -> np.ndarray:
    """TF-IDF of response and context, words and pairs of words apart, into ridge regression; float (len(test), d)."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    def vectorise(texts: list[str], unseen: list[str]) -> tuple[Any, Any]:
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        try:
            return vectorizer.fit_transform(texts), vectorizer.transform(unseen)
        except ValueError:  # no term is in two texts: there are no contexts, or a script without spaces
            return csr_matrix((len(texts), 1)), csr_matrix((len(unseen), 1))

    responses = vectorise([e.response for e in train], [e.response for e in test])
    contexts = vectorise([_context(e) for e in train], [_context(e) for e in test])
    both = [hstack([responses[part], contexts[part]]).tocsr() for part in (0, 1)]
    return ridge(both[0], labels, both[1], scales)


def ridge(train: Any, labels: np.ndarray, test: Any, scales: tuple[Scale, ...]) -> np.ndarray:
    """Ridge regression, strength by cross-validation inside the training rows, each dimension its own; float (n, d).

    Predictions crowd round the mean, and a threshold would call too few of them high or low. Where they tell anything of rows that
    were left out, they are calibrated by these: a scorer that is calibrated for its decision is compared with its like.
    """
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict

    folds = KFold(5, shuffle=True, random_state=0)
    left_out, found = np.zeros_like(labels, dtype=np.float64), np.zeros((test.shape[0], labels.shape[1]))
    for column, wanted in enumerate(labels.T):
        model = RidgeCV(_RIDGE_ALPHAS, cv=folds).fit(train, wanted)
        left_out[:, column] = cross_val_predict(Ridge(model.alpha_), train, wanted, cv=folds)
        found[:, column] = model.predict(test)
    calibrated = calibrate(left_out, labels, left_out, labels[None], scales).apply(found)
    tells = [np.cov(some, wanted)[0, 1] > 0 for some, wanted in zip(left_out.T, labels.T, strict=True)]
    return np.where(tells, calibrated, found)


def _context(example: Example) -> str:
    return " ".join(turn.text for turn in example.context)
