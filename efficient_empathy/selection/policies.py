"""Which subset an example goes to, decided by its scores."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from efficient_empathy.errors import EmpathyError
from efficient_empathy.selection.expressions import Expression, name_table, parse

POLICIES = ("paper", "released-script")
DISCARDED = "discarded"
_RESERVED = {"rejected"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class PaperPolicy:
    """The paper's rule at a threshold T, on dimensions named ``sensibility`` (S) and ``rationality`` (R).

    sensibility = {R < T and S > T}; discarded = {R > T and S < T}; rationality = all other examples, with those at T.
    Strict on both sides, so the three sets partition the data (Sun et al. 2024, arXiv 2407.01937, released with T = 5).
    """

    threshold: float = 5.0
    """T, on the scale of the scores; the published counts barely move between 4 and 7."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise EmpathyError(f"threshold must be a finite number, not {self.threshold}.")

    @property
    def name(self) -> str:
        """What ``--policy`` calls it."""
        return "paper"

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets; ``decide`` gives indices into them."""
        return "sensibility", "rationality", DISCARDED

    @property
    def _cold_subset(self) -> str:
        """Where {R > T and S < T} goes."""
        return DISCARDED

    @property
    def _rest_subset(self) -> str:
        return "rationality"

    def check(self, dimensions: Sequence[str], scales: Mapping[str, tuple[float, float]] | None = None) -> None:
        """See that the policy can be applied to a scorer, before any work.

        Raises:
            EmpathyError: one of its two dimensions is missing, or the threshold lies outside their scale.
        """
        missing = [name for name in ("sensibility", "rationality") if name not in dimensions]
        if missing:
            example = f"--keep 'kept={next(iter(name_table(dimensions)))}>6'"
            raise EmpathyError(
                f"the policy '{self.name}' needs the dimensions sensibility and rationality, but the scorer has: "
                f"{', '.join(dimensions)}. Say what to keep by those instead, e.g. {example}"
            )
        for name in ("sensibility", "rationality"):
            low, high = (scales or {}).get(name, (-math.inf, math.inf))
            if not low < self.threshold < high:
                raise EmpathyError(
                    f"threshold {self.threshold:g} is not inside the scale of {name}, {low:g} to {high:g}."
                )

    def decide(self, scores: np.ndarray, dimensions: Sequence[str]) -> np.ndarray:
        """Choose the subset of each row.

        Args:
            scores: (n, d), one column a dimension.
            dimensions: names of the columns.

        Returns:
            int64 (n,), indices into ``subsets``.
        """
        sensibility, rationality = _two_columns(scores, dimensions)
        t = self.threshold
        decision = np.full(len(scores), self.subsets.index(self._rest_subset), np.int64)
        decision[(rationality < t) & (sensibility > t)] = self.subsets.index("sensibility")
        decision[(rationality > t) & (sensibility < t)] = self.subsets.index(self._cold_subset)
        return decision

    def tally(self, scores: np.ndarray, dimensions: Sequence[str]) -> dict[str, int]:
        """Count what the rule treats in a way worth knowing: ties at T, and rows low on both dimensions."""
        sensibility, rationality = _two_columns(scores, dimensions)
        t = self.threshold
        return {
            "ties_at_threshold": int(((sensibility == t) | (rationality == t)).sum()),
            "low_on_both": int(((sensibility < t) & (rationality < t)).sum()),
        }

    def describe(self) -> dict[str, Any]:
        """What the manifest says of the policy."""
        t = f"{self.threshold:g}"
        return {
            "name": self.name,
            "threshold": float(self.threshold),
            "rules": {
                "sensibility": f"rationality < {t} and sensibility > {t}",
                self._cold_subset: f"rationality > {t} and sensibility < {t}",
                self._rest_subset: "all other examples",
            },
        }


@dataclass(frozen=True)
class ReleasedScriptPolicy(PaperPolicy):
    """The naming of the authors' released script, which swaps the last two sets of the paper's rule.

    rationality = {R > T and S < T}; discarded = all other examples. Their released data follows ``PaperPolicy``.
    """

    @property
    def name(self) -> str:
        """What ``--policy`` calls it."""
        return "released-script"

    @property
    def _cold_subset(self) -> str:
        return "rationality"

    @property
    def _rest_subset(self) -> str:
        return DISCARDED


@dataclass(frozen=True)
class ExpressionPolicy:
    """Subsets of the user's own: the first expression that matches wins, the rest goes to ``discarded``."""

    expressions: Mapping[str, str] = field(default_factory=dict)
    """Expression of each subset by its name, in the order they are tried."""

    def __post_init__(self) -> None:
        if not self.expressions:
            raise EmpathyError(
                "an expression policy needs at least one NAME=EXPRESSION, e.g. --keep 'calm=sensibility>6'."
            )
        for name in self.expressions:
            check_subset_name(name)
        if len({name.lower() for name in self.subsets}) != len(self.subsets):
            raise EmpathyError(f"subset names must differ in more than capital letters: {', '.join(self.subsets)}.")
        _ = self._parsed  # a mistake in an expression is said when the policy is made

    @cached_property
    def _parsed(self) -> dict[str, Expression]:
        return {name: parse(text) for name, text in self.expressions.items()}

    @property
    def name(self) -> str:
        """What the manifest calls it."""
        return "expressions"

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets; ``decide`` gives indices into them."""
        return tuple(dict.fromkeys([*self.expressions, DISCARDED]))

    def check(self, dimensions: Sequence[str], scales: Mapping[str, tuple[float, float]] | None = None) -> None:
        """See that every expression speaks of the scorer's dimensions only, before any work.

        Raises:
            EmpathyError: one names a dimension that the scorer does not have.
        """
        for expression in self._parsed.values():
            expression.check(dimensions)

    def decide(self, scores: np.ndarray, dimensions: Sequence[str]) -> np.ndarray:
        """Choose the subset of each row: int64 (n,), indices into ``subsets``, from scores (n, d)."""
        decision = np.full(len(scores), self.subsets.index(DISCARDED), np.int64)
        # Backwards, so that the first expression that matches is written last and stays.
        for name, expression in reversed(self._parsed.items()):
            decision[expression.matches(scores, dimensions)] = self.subsets.index(name)
        return decision

    def tally(self, scores: np.ndarray, dimensions: Sequence[str]) -> dict[str, int]:
        """Count the rows that more than one expression matches."""
        matches = np.stack([expression.matches(scores, dimensions) for expression in self._parsed.values()])
        return {"matched_by_several": int((matches.sum(axis=0) > 1).sum())}

    def describe(self) -> dict[str, Any]:
        """What the manifest says of the policy."""
        rules = [{"subset": name, "expression": expression.text} for name, expression in self._parsed.items()]
        return {"name": self.name, "rules": rules, "otherwise": DISCARDED}


Policy = PaperPolicy | ReleasedScriptPolicy | ExpressionPolicy


def check_subset_name(name: str) -> None:
    """See that a subset's name can be a folder's name everywhere.

    Raises:
        EmpathyError: it cannot, or it has a meaning of its own.
    """
    if not _NAME.fullmatch(name):
        raise EmpathyError(
            f"'{name}' cannot name a subset; use up to 64 letters, digits, - and _, beginning with a letter or digit, "
            "as in: --keep 'calm=sensibility>6 and rationality<4'"
        )
    if name.lower() in _RESERVED:
        raise EmpathyError(f"'{name}' cannot name a subset: rows that cannot be read go there. Choose another name.")


def make_policy(name: str | None = None, threshold: float | None = None, keep: Sequence[str] = ()) -> Policy:
    """Make the policy that the command line asks for.

    Args:
        name: ``paper`` (the default) or ``released-script``.
        threshold: T of those two; 5 when None.
        keep: expressions as ``NAME=EXPRESSION``; they take the place of a named policy.

    Raises:
        EmpathyError: the name is unknown, an expression cannot be read, or both kinds are asked for at once.
    """
    if keep:
        if name is not None or threshold is not None:
            raise EmpathyError("--keep takes the place of --policy and --threshold: give one or the other.")
        return ExpressionPolicy(_split_expressions(keep))
    if name not in (None, *POLICIES):
        raise EmpathyError(
            f"there is no policy '{name}'; there are: {', '.join(POLICIES)}, or expressions with --keep."
        )
    policy = ReleasedScriptPolicy if name == "released-script" else PaperPolicy
    return policy() if threshold is None else policy(threshold)


def _split_expressions(keep: Sequence[str]) -> dict[str, str]:
    expressions: dict[str, str] = {}
    for item in keep:
        name, equals, text = item.partition("=")
        name = name.strip()
        if not equals:
            raise EmpathyError(f"--keep '{item}' has no name; write NAME=EXPRESSION, as in: --keep 'calm={item}'")
        if name in expressions:
            raise EmpathyError(f"--keep names '{name}' twice; join the two expressions with: or")
        expressions[name] = text
    return expressions


def _two_columns(scores: np.ndarray, dimensions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    names = list(dimensions)
    return scores[:, names.index("sensibility")], scores[:, names.index("rationality")]
