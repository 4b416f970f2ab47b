"""What a reader should know before believing a table: said aloud with the figures, in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from efficient_empathy.experts.answer_folders import AnswerFolder
from efficient_empathy.manifest import canonical_json

_NO_MATTER = frozenset({"seed", "batch_size", "batch", "device", "threads", "precision"})
"""Generation options that may differ between systems without making the comparison another one."""
_FEW = 30


def cautions(
    folders: Mapping[str, Sequence[AnswerFolder]],
    scorers: Mapping[str, Any],
    comparisons: int,
    resamples: int,
    conversations: int,
) -> Iterator[str]:
    """One sentence for each thing that makes a figure or a comparison mean less than it seems to.

    Args:
        folders: of each system, aligned.
        scorers: by name, each with its ``digest``.
        comparisons: how many differences were tested.
        resamples: how often conversations were drawn.
        conversations: how many there are.
    """
    yield from _prompts(folders)
    yield from _tokens(folders)
    yield from _twins(folders)
    yield from _empty(folders, bool(scorers))
    yield from _circular(folders, scorers)
    least = comparisons / (resamples + 1)
    if least > 0.05:
        yield (
            f"{comparisons} comparisons with {resamples} resamples: no corrected p-value can be below {min(least, 1):.2g}. "
            f"Name the figures that matter with --compare, or take --resamples {_round_up(20 * comparisons)}."
        )
    if conversations < _FEW:
        yield f"only {conversations} conversations: intervals from fewer than {_FEW} are too narrow."


def _round_up(count: int) -> int:
    return -(-count // 1000) * 1000


def _prompts(folders: Mapping[str, Sequence[AnswerFolder]]) -> Iterator[str]:
    for part, verb, cause in (("renderer", "prompted", "prompt"), ("options", "generated", "decoding")):
        for name, first, own in _others(folders, part):
            keys = [key for key in own.keys() | first[1].keys() if own.get(key) != first[1].get(key)]
            if keys := sorted(set(keys) - _NO_MATTER):
                yield (
                    f"'{name}' and '{first[0]}' were {verb} differently ({', '.join(keys)}): their differences are those of "
                    f"the {cause} as well."
                )


def _others(
    folders: Mapping[str, Sequence[AnswerFolder]], part: str
) -> Iterator[tuple[str, tuple[str, Mapping[str, Any]], Mapping[str, Any]]]:
    """Each system of a folder but the first; the first one's name and that part of its manifest; that part of its own."""
    everyone = [(name, folder) for name, found in folders.items() for folder in found]
    first_name, first = everyone[0]
    for name, folder in everyone[1:]:
        yield name, (first_name, first.manifest.get(part) or {}), folder.manifest.get(part) or {}


def _tokens(folders: Mapping[str, Sequence[AnswerFolder]]) -> Iterator[str]:
    counts = {
        name: [[answer.nll_tokens for answer in folder.answers] for folder in found] for name, found in folders.items()
    }
    measured = {name: lists[0] for name, lists in counts.items() if any(count is not None for count in lists[0])}
    names = list(measured)
    for name in names[1:]:
        pairs = list(zip(measured[names[0]], measured[name], strict=True))
        if any((a is None) != (b is None) for a, b in pairs):
            yield f"the likelihood of '{name}' and '{names[0]}' was not measured on the same references."
        if any(a is not None and b is not None and a != b for a, b in pairs):
            yield (
                f"'{name}' and '{names[0]}' cut texts into other tokens: their perplexities cannot be compared, bits per "
                "byte can."
            )


def _twins(folders: Mapping[str, Sequence[AnswerFolder]]) -> Iterator[str]:
    seen: dict[tuple[str, ...], str] = {}
    for name, found in folders.items():
        for folder in found:
            place = f"{name} ({folder.folder.name})"
            earlier = seen.setdefault(tuple(answer.text for answer in folder.answers), place)
            if earlier != place:
                yield f"{place} gave the same answers as {earlier}, word for word: is it another model?"


def _empty(folders: Mapping[str, Sequence[AnswerFolder]], scored: bool) -> Iterator[str]:
    for name, found in folders.items():
        empty = sum(not answer.text.strip() for folder in found for answer in folder.answers)
        if empty and scored:
            everything = sum(len(folder.answers) for folder in found)
            yield (
                f"{empty} of {everything} answers of '{name}' are empty; scorers were not asked about them, so its scores "
                "are those of the others."
            )


def _circular(folders: Mapping[str, Sequence[AnswerFolder]], scorers: Mapping[str, Any]) -> Iterator[str]:
    for scorer_name, scorer in scorers.items():
        trained = [
            name
            for name, found in folders.items()
            if any(_chosen_by(scorer.digest, folder.manifest) for folder in found)
        ]
        if trained:
            yield (
                f"scorer '{scorer_name}' chose the training data of {', '.join(trained)}: its scores of their answers are "
                "circular. Look at a judge that did not."
            )


def _chosen_by(digest: str, manifest: Mapping[str, Any]) -> bool:
    """Whether a scorer chose what a model was trained on: it split the data, and no control took them from all subsets."""
    control = manifest["model"].get("control", "none")
    return control not in ("random", "full") and digest.encode() in canonical_json(manifest)
