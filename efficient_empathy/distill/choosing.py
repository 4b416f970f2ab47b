"""Which examples to have judged: at random by seed, spread over conversations, whatever order they come in."""

import bisect
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from efficient_empathy.dialogues.types import Example

# Spare room, since equal texts are told apart only at the end, and so that pruning is rare.
_SPARE = 2


@dataclass(order=True)
class _Drawn:
    lot: bytes
    identity: tuple[str, str]
    """Settles which of two equal texts stands for both, so that it does not depend on the order."""
    example: Example = field(compare=False)


def choose_examples(examples: Iterable[Example], budget: int, seed: int) -> list[Example]:
    """Draw examples, one of each conversation before a second of any.

    Each example draws a lot: a hash of seed and text. Within its conversation it is ranked by its lot; overall by that
    rank, then by its lot. The first ``budget`` are taken. So the same seed gives the same examples in whatever order
    the dialogues come, a greater budget keeps all that a smaller one took, and no more than ``4 × budget`` examples are
    in memory.

    Args:
        examples: all there are; two with the same text count once.
        budget: how many to take at most.
        seed: changes every lot.

    Returns:
        The examples in the order of their lots' ranks. Where more than half of the drawn texts are duplicates of one
        another there may be fewer than ``budget``.
    """
    groups: dict[str, list[_Drawn]] = {}
    held = 0
    for example in examples:
        lot = hashlib.sha256(f"{seed}:{example.digest}".encode()).digest()
        drawn = _Drawn(lot, (example.dialogue_id, example.id), example)
        group = groups.setdefault(example.dialogue_id, [])
        place = bisect.bisect_left(group, lot, key=lambda other: other.lot)
        if place < len(group) and group[place].lot == lot:
            group[place] = min(group[place], drawn)
            continue
        group.insert(place, drawn)
        held += 1
        if held >= 2 * _SPARE * budget:
            groups, held = _prune(groups, _SPARE * budget)
    chosen: dict[str, Example] = {}
    for _, drawn in _ranked(groups):
        if len(chosen) == budget:
            break
        chosen.setdefault(drawn.example.digest, drawn.example)
    return list(chosen.values())


def _ranked(groups: dict[str, list[_Drawn]]) -> list[tuple[int, _Drawn]]:
    return sorted((rank, drawn) for group in groups.values() for rank, drawn in enumerate(group))


def _prune(groups: dict[str, list[_Drawn]], keep: int) -> tuple[dict[str, list[_Drawn]], int]:
    """Drop what can no longer be taken: whatever comes later, the places of those before it only fill up further."""
    kept: dict[str, list[_Drawn]] = {}
    ranked = _ranked(groups)[:keep]
    for _, drawn in ranked:
        kept.setdefault(drawn.example.dialogue_id, []).append(drawn)
    return kept, len(ranked)
