"""From a judge's words to scores: the last valid verdict counts, and what cannot be read is never a default number."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from efficient_empathy.distill.rubric import Dimension, Rubric

# The verdict stands at the end; a runaway answer is not searched from its beginning.
_LONGEST = 20_000
_NUMBER = re.compile(r"^\s*([-+]?\d+)(?:\.0+)?\s*(?:/\s*(\d+))?\s*$")

_MARKS = r"[\s*_`\"']*"

Verdict = tuple[dict[str, int] | None, str | None]


def parse_answer(text: str, rubric: Rubric, cut_off: bool = False) -> Verdict:
    """Read the scores out of an answer.

    A JSON object anywhere in the text that holds every dimension comes first, then lines such as ``Sensibility: 8``. In
    both, the last verdict that is whole and on the scale counts.

    Args:
        text: the judge's words.
        rubric: the dimensions asked for; their names match in any case.
        cut_off: whether the answer was cut for its length: then a number at its very end may lack digits and is not read.

    Returns:
        The scores by dimension and None, or None and a reason: ``empty-answer``, ``no-verdict``, ``missing-dimension``,
        ``not-an-integer`` or ``out-of-range``.
    """
    text = text[-_LONGEST:]
    if cut_off:
        text = text.rstrip("0123456789")
    if not text.strip():
        return None, "empty-answer"
    reason = "no-verdict"
    for candidate in reversed(list(_objects(text, rubric))):
        scores, problem = _verdict(candidate, rubric)
        if scores is not None:
            return scores, None
        reason = problem if reason == "no-verdict" and problem is not None else reason
    lines = {d.name: value for d in rubric.dimensions if (value := _last_line(text, d)) is not None}
    if lines:
        scores, problem = _verdict(lines, rubric)
        if scores is not None:
            return scores, None
        reason = problem if reason == "no-verdict" and problem is not None else reason
    return None, reason


def _objects(text: str, rubric: Rubric) -> Iterator[dict[str, Any]]:
    names = {name.lower(): name for name in rubric.names}
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        end = at + 1
        try:
            value, stop = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            value = None
        if isinstance(value, dict):
            found = {names[key.strip().lower()]: item for key, item in value.items() if key.strip().lower() in names}
            if found:
                # What stands inside a verdict is part of it, not another verdict.
                end = stop
                yield found
        at = text.find("{", end)


def _last_line(text: str, dimension: Dimension) -> str | None:
    name = re.escape(dimension.name).replace("_", "[_ ]")
    # "Sensibility (0-10): 8" or "**Sensibility**: 8/10", but neither the 8 of "8-9" nor the 1 of "10".
    label = rf"(?<!\w){name}{_MARKS}(?:\([^)\n]*\))?{_MARKS}[:=]{_MARKS}"
    pattern = rf"(?i){label}([-+]?\d+(?:\.\d+)?(?:\s*/\s*\d+)?)(?![\d.]*\d)(?!\s*(?:-|–|to|or)\s*\d)"
    found = re.findall(pattern, text)
    return found[-1] if found else None


def _verdict(values: Mapping[str, Any], rubric: Rubric) -> Verdict:
    if any(d.name not in values for d in rubric.dimensions):
        return None, "missing-dimension"
    scores = {}
    for dimension in rubric.dimensions:
        number = _whole_number(values[dimension.name], dimension)
        if number is None:
            return None, "not-an-integer"
        if not dimension.low <= number <= dimension.high:
            return None, "out-of-range"
        scores[dimension.name] = number
    return scores, None


def _whole_number(value: Any, dimension: Dimension) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    match = _NUMBER.match(value if isinstance(value, str) else repr(value))
    if match is None or (match[2] is not None and int(match[2]) != dimension.high):
        # "4/5" on a scale to 10 is another scale: it is not ours to convert.
        return None
    return int(match[1])
