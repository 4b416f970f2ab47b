"""From a judge's words to scores: the last valid verdict counts, and what cannot be read is never a default."""

import json
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from efficient_empathy.distill.questions import Verdict

if TYPE_CHECKING:
    from efficient_empathy.distill.rubric import Dimension, Rubric

# The verdict stands at the end; a runaway answer is not searched from its beginning.
_LONGEST = 20_000
_NUMBER = re.compile(r"^\s*([-+]?\d{1,9})(?:\.0+)?\s*(?:/\s*(\d{1,9}))?\s*$")

_BEFORE_VERDICT = re.compile(r"\A\s*(?:```\w*)?[\s*_`>#-]*")
_DECODER = json.JSONDecoder()
_MARKS = r"[\s*_`\"']*"
# So that "Verdict: A tie" is not read as A.
_LINE_ENDS = r"[ \t*_`\"'\]).,}]*$"
_WHOLE_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:\s*/\s*\d+)?"
# Neither the 8 of "8-9" nor the 1 of "10".
_NUMBER_ENDS = r"(?![\d.]*\d)(?!\s*(?:-|–|to|or)\s*\d)"


def parse_answer(text: str, rubric: "Rubric", cut_off: bool = False) -> Verdict:
    """Read the scores out of an answer.

    A JSON object anywhere in the text that holds every dimension comes first, then lines such as ``Sensibility: 8``. In
    both, the last verdict that is whole and on the scale counts.

    Args:
        text: the judge's words.
        rubric: the dimensions asked for; their names match in any case.
        cut_off: whether the answer was cut for its length: then it counts only if it begins with its verdict, since one further on
            may be a draft, and a number at its very end may lack digits and is not read.

    Returns:
        The scores by dimension and None, or None and a reason: ``empty-answer``, ``no-verdict``, ``missing-dimension``,
        ``not-an-integer`` or ``out-of-range``.
    """
    text = _without_thoughts(text)
    if not text.strip():
        return Verdict(None, "empty-answer")
    if cut_off:
        candidates = _at_start(text.rstrip("0123456789"), {d.name: _number_lines(d.name) for d in rubric.dimensions})
    else:
        text = text[-_LONGEST:]
        lines = {name: found[-1] for name in rubric.names if (found := re.findall(_number_lines(name), text))}
        candidates = [*([lines] if lines else []), *_objects(text, rubric.names)]
    return _last_valid(candidates, lambda candidate: _scores(candidate, rubric))


def parse_choice(text: str, name: str, offered: str, cut_off: bool = False) -> Verdict:
    """Read which of some verdicts an answer gives.

    A JSON object anywhere in the text that holds the field comes first, then lines such as ``Verdict: A``, ``Verdict: [[A]]``.

    Args:
        text: the judge's words.
        name: of the field, in any case.
        offered: the verdicts, one capital letter each.
        cut_off: as for ``parse_answer``: the first letter of a word that was cut off is no verdict.

    Returns:
        1 for the verdict and 0 for the others, and None; or None and a reason: ``empty-answer``, ``no-verdict`` or
        ``not-offered``.
    """
    text = _without_thoughts(text)
    if not text.strip():
        return Verdict(None, "empty-answer")
    lines = rf"{_label(name)}\[*([A-Za-z]+){_LINE_ENDS}"
    if cut_off:
        candidates = _at_start(text.rstrip(string.ascii_letters), {name: lines})
    else:
        text = text[-_LONGEST:]
        candidates = [*({name: letter} for letter in re.findall(lines, text)), *_objects(text, [name])]

    def read(candidate: Mapping[str, Any]) -> Verdict:
        value = candidate[name]
        letter = value.strip().upper() if isinstance(value, str) else ""
        if len(letter) != 1 or letter not in offered:
            return Verdict(None, "not-offered")
        return Verdict({other: float(other == letter) for other in offered}, None)

    return _last_valid(candidates, read)


def _without_thoughts(text: str) -> str:
    """What follows the thoughts that some servers leave in an answer; nothing where these were not ended."""
    _, ended, rest = text.rpartition("</think>")
    return rest if ended else text.partition("<think>")[0]


def _at_start(text: str, lines: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """The verdict that a cut answer begins with, if it does: whatever comes later may be a draft.

    Args:
        text: the answer.
        lines: by the name of each field, the pattern of a line that gives it.
    """
    start = _BEFORE_VERDICT.sub("", text, count=1)
    if start.startswith("{"):
        fields, _ = _object_at(start, 0, lines)
        return [fields] if fields else []
    if not any(re.match(pattern, start) for pattern in lines.values()):
        return []
    return [{name: found[1] for name, pattern in lines.items() if (found := re.search(pattern, start))}]


def _last_valid(candidates: Sequence[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], Verdict]) -> Verdict:
    """The last candidate that can be read, or what is wrong with the last one."""
    verdicts = [read(candidate) for candidate in reversed(candidates)]
    valid = (verdict for verdict in verdicts if verdict.scores is not None)
    return next(valid, verdicts[0] if verdicts else Verdict(None, "no-verdict"))


def _objects(text: str, wanted: Iterable[str]) -> Iterator[dict[str, Any]]:
    wanted = list(wanted)
    at = text.find("{")
    while at >= 0:
        found, end = _object_at(text, at, wanted)
        if found:
            yield found
        at = text.find("{", end)


def _object_at(text: str, at: int, wanted: Iterable[str]) -> tuple[dict[str, Any], int]:
    """The wanted fields of the JSON object that begins at a place, by their own names, and where to look on."""
    names = {name.lower(): name for name in wanted}
    try:
        value, stop = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):  # not JSON, or a number of more digits than Python reads
        return {}, at + 1
    fields = value.items() if isinstance(value, dict) else ()
    found = {names[key.strip().lower()]: item for key, item in fields if key.strip().lower() in names}
    # What stands inside a verdict is part of it, not another verdict.
    return found, stop if found else at + 1


def _label(name: str) -> str:
    """The start of a line as "Sensibility (0-10): 8" or "**Sensibility**: 8/10" have it."""
    words = re.escape(name).replace("_", "[_ ]")
    return rf"(?im)(?<!\w){words}{_MARKS}(?:\([^)\n]*\))?{_MARKS}[:=]{_MARKS}"


def _number_lines(name: str) -> str:
    return f"{_label(name)}({_WHOLE_NUMBER}){_NUMBER_ENDS}"


def _scores(values: Mapping[str, Any], rubric: "Rubric") -> Verdict:
    if any(d.name not in values for d in rubric.dimensions):
        return Verdict(None, "missing-dimension")
    scores = {}
    for dimension in rubric.dimensions:
        number = _whole_number(values[dimension.name], dimension)
        if number is None:
            return Verdict(None, "not-an-integer")
        if not dimension.low <= number <= dimension.high:
            return Verdict(None, "out-of-range")
        scores[dimension.name] = number
    return Verdict(scores, None)


def _whole_number(value: Any, dimension: "Dimension") -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    match = _NUMBER.match(value if isinstance(value, str) else repr(value))
    if match is None or (match[2] is not None and int(match[2]) != dimension.high):
        # "4/5" on a scale to 10 is another scale: it is not ours to convert.
        return None
    return int(match[1])
