"""Which examples belong to one conversation, also where their rows do not say so."""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from efficient_empathy.dialogues.types import Example, Turn

_TURN_ID = re.compile(r"(.+)_turn:\d+", re.DOTALL)
"""The id of an example that was cut from a conversation, see ``dialogues.examples_of``."""
_GREETING = 40
"""Characters of a first turn and its answer that say nothing yet, as "Hi" and "Hello! How can I help you?"."""
_log = logging.getLogger(__name__)


def join_conversations(examples: Sequence[Example]) -> list[Example]:
    """The same examples, with one ``dialogue_id`` for those that were cut from one conversation.

    A pair whose row names no conversation is a conversation of its own (``dialogue_id`` is its ``id``). If it is not, a split
    would put one turn of a conversation on one side and the next on the other. Such a pair is joined to the conversation ``X``
    where its id is ``X_turn:n``, and to every example whose context begins with all of its turns, or with all of whose turns its
    own context begins. Conversations that rows name are joined only through such a pair.

    Args:
        examples: labelled or not; each is read once, a digest a turn.

    Returns:
        In the same order; an example that is joined to no other is the very one that came in.
    """
    joined = _Joined()
    unnamed = {example.dialogue_id for example in examples if example.dialogue_id == example.id}
    ends: dict[bytes, set[str]] = {}
    for example in examples:
        *_, whole = _beginnings(example)
        ends.setdefault(whole, set()).add(example.dialogue_id)
        joined.add(example.dialogue_id)
        if example.dialogue_id in unnamed and (match := _TURN_ID.fullmatch(example.id)):
            joined.join(example.dialogue_id, match[1])
    for example in examples:
        *beginnings, _ = _beginnings(example)
        for other in {name for digest in beginnings for name in ends.get(digest, ())}:
            if unnamed & {other, example.dialogue_id}:
                joined.join(other, example.dialogue_id)
    members: dict[str, set[str]] = {}
    for example in examples:
        members.setdefault(joined.root(example.dialogue_id), set()).add(example.dialogue_id)
    found, changed = [], 0
    for example in examples:
        root = joined.root(example.dialogue_id)
        if len(members[root]) > 1 and root != example.dialogue_id:
            example, changed = replace(example, dialogue_id=root), changed + 1
        found.append(example)
    if changed:
        _log.info("%d examples joined to the conversation that they were cut from, by their ids or texts", changed)
    return found


def conversation_name(example: Example) -> str:
    """The conversation of one example, seen by itself; the same for all that were cut from one conversation.

    Where its row names none: ``X`` of an id ``X_turn:n``, else a hash of its beginning: two turns, and more of them while they are
    no longer than a greeting and its answer. Conversations may share it that begin alike. ``join_conversations`` is finer, and
    needs to see all examples together.
    """
    if example.dialogue_id != example.id:
        return example.dialogue_id
    if match := _TURN_ID.fullmatch(example.id):
        return match[1]
    said = [turn for turn in (*example.context, Turn("listener", example.response)) if turn.role != "system"]
    count = 2
    while count < len(said) and sum(len(turn.text) for turn in said[:count]) <= _GREETING:
        count += 2
    beginning = b"".join(_bytes(turn.role, turn.text) for turn in said[:count])
    return f"text:{hashlib.sha256(beginning).hexdigest()[:16]}"


def _beginnings(example: Example) -> Iterator[bytes]:
    """Digest of each beginning of the context that ends with a listener's turn, then of context and response together."""
    running = hashlib.sha256()
    for turn in example.context:
        running.update(_bytes(turn.role, turn.text))
        if turn.role == "listener":
            yield running.digest()
    running.update(_bytes("listener", example.response))
    yield running.digest()


def _bytes(role: str, text: str) -> bytes:
    return f"{role} {len(text)} {text}".encode("utf-8", "surrogatepass")


class _Joined:
    """Names in disjoint sets; the least name of a set stands for it, whatever the order of joining."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def add(self, name: str) -> None:
        self._above.setdefault(name, name)

    def root(self, name: str) -> str:
        while (above := self._above[name]) != name:
            self._above[name] = self._above[above]
            name = above
        return name

    def join(self, one: str, other: str) -> None:
        self.add(one)
        self.add(other)
        first, second = sorted((self.root(one), self.root(other)))
        self._above[second] = first
