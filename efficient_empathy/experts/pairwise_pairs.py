"""The pairs that a judge is shown: which contexts, whose answers, and the file of verdicts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from efficient_empathy.dialogues.types import Example, Turn
from efficient_empathy.distill.asking import Outcome
from efficient_empathy.distill.choosing import choose_examples
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.answer_folders import AnswerFolder, aligned, read_answers
from efficient_empathy.experts.pairwise_criteria import ShownPair, winner
from efficient_empathy.experts.pairwise_figures import NOT_ASKED, JudgedPair
from efficient_empathy.manifest import atomic_open, canonical_json

Systems = Mapping[str, Sequence[Path | AnswerFolder]]
"""The answers folders of each system by its name: one, or one a training seed."""
Comparison = tuple[str, str]
"""Two systems' names: wins are the first one's."""


@dataclass(frozen=True)
class Pair:
    """Two systems' replies to one context."""

    id: str
    dialogue_id: str
    context: tuple[Turn, ...]
    first: str
    second: str

    @property
    def questions(self) -> tuple[ShownPair, ...]:
        """The pair in both orders; none where the replies are the same."""
        if self.first == self.second:
            return ()
        return (
            ShownPair(self.id, self.context, self.first, self.second),
            ShownPair(self.id, self.context, self.second, self.first),
        )


def draw_pairs(systems: Systems, baseline: str | None, count: int, seed: int) -> dict[Comparison, list[Pair]]:
    """Pair each system's answers with the baseline's, on the same contexts for all of them.

    Contexts are drawn as examples are for labelling, by their own text and the seed, whatever the answers say: one of each
    conversation before a second of any. Of a system with several training seeds, one answers the first context drawn, the
    next one the second, and so on in turn.

    Args:
        systems: at least two.
        baseline: the system that the others are compared with; None takes the first.
        count: contexts to draw, at most.
        seed: changes every lot.

    Raises:
        EmpathyError: there are fewer than two systems, no such baseline, or they do not answer the same contexts.
    """
    baseline = baseline or next(iter(systems), "")
    if len(systems) < 2 or not all(systems.values()):
        raise EmpathyError("a judge compares the answers of at least two systems; name two answers folders or more.")
    if baseline not in systems:
        raise EmpathyError(f"there is no system '{baseline}' to be the baseline; there are: {', '.join(systems)}.")
    folders = aligned([_read(folder) for found in systems.values() for folder in found])
    taken = iter(folders)
    texts = {name: [[a.text.strip() for a in next(taken).answers] for _ in found] for name, found in systems.items()}
    answers = folders[0].answers
    rows = {answer.id: row for row, answer in enumerate(answers)}
    contexts = [Example(a.id, a.dialogue_id, 0, a.context, "") for a in answers]
    drawn = [rows[example.id] for example in choose_examples(contexts, count, seed)]

    def of(name: str, place: int, row: int) -> str:
        return texts[name][place % len(texts[name])][row]

    return {
        (name, baseline): [
            Pair(
                answers[row].id, answers[row].dialogue_id, answers[row].context, of(name, i, row), of(baseline, i, row)
            )
            for i, row in enumerate(drawn)
        ]
        for name in systems
        if name != baseline
    }


def _read(folder: Path | AnswerFolder) -> AnswerFolder:
    return folder if isinstance(folder, AnswerFolder) else read_answers(folder)


def judged(pair: Pair, outcome: Outcome) -> JudgedPair:
    """A pair with what became of its questions."""
    verdicts, reasons, shares = [], [], []
    for swapped, question in enumerate(pair.questions):
        stored = outcome.answers.get(question.digest)
        found = None if stored is None else stored.answer.scores
        reason = outcome.failures.get(question.digest, NOT_ASKED) if stored is None else stored.answer.reason
        verdicts.append(None if found is None else winner(found, bool(swapped)))
        reasons.append(reason)
        names = ("second", "first") if swapped else ("first", "second")
        shares.append(None if found is None else dict(zip((*names, "tie"), (found[k] for k in "ABC"), strict=True)))
    return JudgedPair(
        id=pair.id,
        dialogue_id=pair.dialogue_id,
        lengths=(len(pair.first), len(pair.second)),
        identical=not pair.questions,
        verdicts=tuple(verdicts),
        reasons=tuple(reasons),
        shares=tuple(shares),
    )


def write_pairs(path: Path, comparisons: Mapping[Comparison, Sequence[JudgedPair]]) -> None:
    """Write one JSON line a pair, with its outcome; equal verdicts give equal bytes."""
    with atomic_open(path) as file:
        for (first, second), pairs in comparisons.items():
            for pair in pairs:
                row = {"first": first, "second": second, **asdict(pair), "outcome": pair.outcome}
                file.write(canonical_json(row) + b"\n")


def read_pairs(path: Path) -> dict[Comparison, list[JudgedPair]]:
    """Read what ``write_pairs`` wrote; ``summarise`` gives the figures again.

    Raises:
        EmpathyError: the file cannot be read, or a line is no such row.
    """
    comparisons: dict[Comparison, list[JudgedPair]] = {}
    for line, row in enumerate(_rows(path), 1):
        try:
            pair = JudgedPair(
                id=row["id"],
                dialogue_id=row["dialogue_id"],
                lengths=(row["lengths"][0], row["lengths"][1]),
                identical=row["identical"],
                verdicts=tuple(row["verdicts"]),
                reasons=tuple(row["reasons"]),
                shares=tuple(row["shares"]),
            )
            comparisons.setdefault((row["first"], row["second"]), []).append(pair)
        except (KeyError, TypeError, IndexError) as error:
            raise EmpathyError(
                f"'{path}', line {line} is no row of verdicts ({error!r}); judge the pairs again."
            ) from error
    return comparisons


def _rows(path: Path) -> Iterator[Any]:
    try:
        for line in Path(path).read_bytes().splitlines():
            yield orjson.loads(line)
    except (OSError, orjson.JSONDecodeError) as error:
        raise EmpathyError(f"cannot read the verdicts '{path}': {error}.") from error
