"""Reading answers folders: each file checked against its manifest, systems checked against each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from efficient_empathy.dialogues.types import Example, Turn
from efficient_empathy.distill.conversations import conversation_name
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import check_unchanged, manifest_digest, read_manifest

KIND = "answers"
ANSWERS_FILE = "answers.jsonl"


@dataclass(frozen=True)
class Answer:
    """One row of an answers folder."""

    id: str
    dialogue_id: str
    context: tuple[Turn, ...]
    reference: str | None
    """What a person answered, where that is known."""
    text: str
    """What the system answered; may be empty."""
    cut: bool
    """Whether the answer ended for want of room, not with the end of the turn."""
    nll: float | None
    """Nats of the reference under the system, summed over its tokens."""
    nll_tokens: int | None


@dataclass(frozen=True)
class AnswerFolder:
    """The answers of one system, or of one of its training seeds."""

    folder: Path
    answers: tuple[Answer, ...]
    manifest: Mapping[str, Any]
    digest: str
    """SHA-256 of the manifest, which holds the hash of the answers."""


def read_answers(folder: Path) -> AnswerFolder:
    """Read a folder that ``ee-cli generate`` wrote.

    Raises:
        EmpathyError: it is no such folder, a file is not as it was written, a row lacks a field, or an id stands twice.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, KIND)
    if ANSWERS_FILE not in manifest["files"]:
        raise EmpathyError(f"the manifest of '{folder}' does not vouch for {ANSWERS_FILE}; generate the answers again.")
    check_unchanged(folder, "Generate the answers again.")
    answers = tuple(_rows(folder / ANSWERS_FILE))
    if not answers:
        raise EmpathyError(f"'{folder}' holds no answers; there is nothing to evaluate.")
    seen: set[str] = set()
    for answer in answers:
        if answer.id in seen:
            raise EmpathyError(f"'{folder}' holds the id '{answer.id}' twice; give each context an id of its own.")
        seen.add(answer.id)
    return AnswerFolder(folder, answers, manifest, manifest_digest(folder))


def _rows(path: Path) -> Iterator[Answer]:
    for line, raw in enumerate(path.read_bytes().splitlines(), 1):
        try:
            yield _answer(orjson.loads(raw))
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise EmpathyError(
                f"'{path}', line {line} is no row of answers ({type(error).__name__}: {error}); generate the answers again."
            ) from error


def _answer(row: Mapping[str, Any]) -> Answer:
    context = tuple(Turn(turn["role"], turn["text"]) for turn in row["context"])
    asked = Example(row["id"], row["dialogue_id"], len(context), context, row["reference"] or "")
    return Answer(
        id=asked.id,
        dialogue_id=conversation_name(asked),
        context=context,
        reference=row["reference"],
        text=row["answer"],
        cut=row["finish"] == "length",
        nll=row["nll"],
        nll_tokens=row["nll_tokens"],
    )


def aligned(folders: Sequence[AnswerFolder]) -> list[AnswerFolder]:
    """The folders with their answers in the order of the first one.

    Raises:
        EmpathyError: they do not answer the same ids, or an id has another context or reference in one of them.
    """
    first = folders[0]
    order = [answer.id for answer in first.answers]
    found = []
    for other in folders:
        by_id = {answer.id: answer for answer in other.answers}
        if by_id.keys() != set(order):
            missing, extra = len(set(order) - by_id.keys()), len(by_id.keys() - set(order))
            raise EmpathyError(
                f"'{other.folder}' and '{first.folder}' do not answer the same contexts: {missing} of {len(order)} ids are "
                f"missing in the first-named, {extra} are only there. Generate both from the same file."
            )
        found.append(replace(other, answers=tuple(by_id[name] for name in order)))
        _same_questions(first, found[-1])
    return found


def _same_questions(first: AnswerFolder, other: AnswerFolder) -> None:
    def question(answer: Answer) -> tuple[Any, ...]:
        return answer.context, answer.reference, answer.dialogue_id

    differing = [a.id for a, b in zip(first.answers, other.answers, strict=True) if question(a) != question(b)]
    if differing:
        raise EmpathyError(
            f"'{other.folder}' and '{first.folder}' give the same ids to other texts: {len(differing)} rows differ in "
            f"context, reference or dialogue_id (the first is '{differing[0]}'). Generate both from the same file."
        )
