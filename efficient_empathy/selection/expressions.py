"""Yes-or-no expressions over scores, such as ``sensibility > 6 and rationality < 4``: parsed, never run as Python."""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from efficient_empathy.errors import EmpathyError

_MAX_LENGTH = 500
_MAX_DEPTH = 50
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_GRAMMAR = "Allowed are numbers, dimension names, + - * /, < <= > >= == !=, and, or, not, and parentheses"


@dataclass(frozen=True)
class Expression:
    """A checked expression; make one with ``parse``."""

    text: str
    names: tuple[str, ...]
    """The dimensions that it reads, as written in the expression, sorted."""
    tree: ast.expr

    def check(self, dimensions: Sequence[str]) -> None:
        """See that every name is a dimension.

        Raises:
            EmpathyError: a name is none; the message lists the dimensions there are.
        """
        known = name_table(dimensions)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name) and node.id not in known:
                raise _error(self.text, node, f"there is no dimension '{node.id}'; the scorer has: {', '.join(known)}")

    def matches(self, scores: np.ndarray, dimensions: Sequence[str]) -> np.ndarray:
        """Say for each row whether it matches.

        Args:
            scores: float64 (n, d), one column a dimension. Division follows IEEE 754: a division by zero stops nothing.
            dimensions: names of the columns.

        Returns:
            bool (n,).
        """
        self.check(dimensions)
        columns = {name: scores[:, column] for name, column in name_table(dimensions).items()}
        with np.errstate(all="ignore"):
            return np.broadcast_to(_evaluate(self.tree, columns), len(scores)).astype(bool)


def name_table(dimensions: Sequence[str]) -> dict[str, int]:
    """Column of each dimension by the name an expression uses: characters that a name cannot hold are written ``_``.

    Raises:
        EmpathyError: two dimensions would have the same name.
    """
    table = {re.sub(r"\W", "_", name): column for column, name in enumerate(dimensions)}
    if len(table) != len(dimensions):
        raise EmpathyError(
            f"two of the dimensions {', '.join(dimensions)} have the same name in an expression; "
            "rename one in the rubric."
        )
    return table


def parse(text: str) -> Expression:
    """Parse an expression and see that it is one of this small grammar, without running anything.

    Args:
        text: e.g. ``2 < rationality <= 5 and not sensibility + rationality > 12``; up to 500 characters.

    Raises:
        EmpathyError: it is empty, too long, nested too deeply, not of the grammar, or not a yes-or-no question.
    """
    text = " ".join(text.split())
    if not text:
        raise EmpathyError("the expression is empty; write one such as: sensibility > 6 and rationality < 4")
    if len(text) > _MAX_LENGTH:
        raise EmpathyError(f"the expression has {len(text)} characters; at most {_MAX_LENGTH} are read.")
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        place = max((error.offset or 1) - 1, 0)
        hint = " To compare, write == for equal." if re.search(r"(?<![<>=!])=(?!=)", text) else ""
        raise EmpathyError(
            f"cannot read the expression '{text}' at character {place + 1}: {_near(text, place)}.{hint} {_GRAMMAR}."
        ) from None
    except (ValueError, RecursionError, MemoryError):
        raise EmpathyError(f"cannot read the expression '{text[:60]}…'. {_GRAMMAR}.") from None
    if _kind(tree, text, 0) != "truth":
        raise _error(text, tree, "this is a number, not a yes or no; compare it with another, as in: sensibility > 6")
    names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
    return Expression(text, tuple(names), tree)


def _kind(node: ast.expr, text: str, depth: int) -> str:
    """``truth`` or ``number``: what a node gives; raises on whatever is not in the grammar."""
    if depth > _MAX_DEPTH:
        raise _error(text, node, f"it is nested more than {_MAX_DEPTH} deep")
    match node:
        case ast.Constant():
            return _constant_kind(node, text)
        case ast.Name():
            return "number"
        case ast.BoolOp():
            _expect("truth", node.values, text, depth)
            return "truth"
        case ast.UnaryOp(op=ast.Not()):
            _expect("truth", [node.operand], text, depth)
            return "truth"
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            _expect("number", [node.operand], text, depth)
            return "number"
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            _expect("number", [node.left, node.right], text, depth)
            return "number"
        case ast.Compare() if all(type(op) in _COMPARE for op in node.ops):
            _expect("number", [node.left, *node.comparators], text, depth)
            return "truth"
    raise _error(text, node, f"this is not allowed. {_GRAMMAR}")


def _constant_kind(node: ast.Constant, text: str) -> str:
    if type(node.value) not in (int, float):
        raise _error(text, node, "only numbers are allowed here")
    if not math.isfinite(_as_float(node.value)):
        raise _error(text, node, "this number is too large")
    return "number"


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _expect(kind: str, nodes: Sequence[ast.expr], text: str, depth: int) -> None:
    wanted = {
        "truth": "a comparison is expected here, as in: sensibility > 6",
        "number": "a number or a dimension is expected here",
    }
    for node in nodes:
        if _kind(node, text, depth + 1) != kind:
            raise _error(text, node, wanted[kind])


def _evaluate(node: ast.expr, columns: Mapping[str, np.ndarray]) -> Any:
    match node:
        case ast.Constant():
            # Numpy scalars follow IEEE 754 where Python's own would stop the run at a division by zero.
            return np.float64(_as_float(node.value))
        case ast.Name():
            return columns[node.id]
        case ast.BoolOp():
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            truth = _evaluate(node.values[0], columns)
            for value in node.values[1:]:
                truth = join(truth, _evaluate(value, columns))
            return truth
        case ast.UnaryOp():
            operand = _evaluate(node.operand, columns)
            if isinstance(node.op, ast.Not):
                return np.logical_not(operand)
            return -operand if isinstance(node.op, ast.USub) else operand
        case ast.BinOp():
            return _ARITHMETIC[type(node.op)](_evaluate(node.left, columns), _evaluate(node.right, columns))
        case ast.Compare():
            values = [_evaluate(value, columns) for value in (node.left, *node.comparators)]
            truth = np.bool_(True)
            for op, left, right in zip(node.ops, values, values[1:], strict=False):
                truth = np.logical_and(truth, _COMPARE[type(op)](left, right))
            return truth
    raise AssertionError(f"parse let {type(node).__name__} through")


def _error(text: str, node: ast.expr, problem: str) -> EmpathyError:
    # ast counts columns in UTF-8 bytes, people in characters.
    place = len(text.encode()[: node.col_offset].decode(errors="ignore"))
    return EmpathyError(f"in the expression '{text}' at character {place + 1}, {_near(text, place)}: {problem}.")


def _near(text: str, place: int) -> str:
    rest = text[place : place + 20].strip()
    return f"near '{rest}'" if rest else "at its end"
