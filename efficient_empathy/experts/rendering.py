"""One way from turns to tokens: training, perplexity, generation and judging all see the same prompt."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from efficient_empathy.dialogues.types import Example, Turn
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import canonical_json, sha256_bytes

DEFAULT_SYSTEM = "Reply to the speaker in one or two short sentences, as a good listener would."
"""Said before every dialogue, to the untrained base model too, so that it is compared at its best."""
_FORMAT = 1
"""Raised when the same turns would give other tokens: by 4, for two kinds of templates have had a change of their own."""
_DATED = 1
"""More for templates that ask what day it is, which were given the day on which they were rendered."""
_LISTENER_LATER = 2
"""More for templates that refuse a listener who begins: later instructions were not joined to the first."""
_DAY = datetime(2024, 7, 26)
"""What such templates are told, so that their prompts do not change over night: the day that Llama 3.1's own takes unasked."""
_LEAST_PROMPT = 16
"""Tokens that must be left for the prompt beside a response."""
_ROLES = {"speaker": "user", "listener": "assistant", "system": "system"}
_PROBE = "probe"
UNFINISHED = "\ufffd"
"""How the first part of a character of several tokens is decoded."""


class RowRefused(Exception):
    """A row that cannot be trained on, with a short stable reason to count it by."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True)
class Rendered:
    """One example as tokens."""

    prompt: list[int]
    """Everything before the response, up to where the model is to speak."""
    response: list[int]
    """The response and the end of its turn: what is supervised, all of it."""
    cut_turns: int
    """Oldest turns of the context that did not fit, whole or in part."""


class Renderer:
    """Renders turns with the tokenizer's own chat template; without one, as a transcript with ``Speaker:`` and ``Listener:``.

    Prompt and response are tokenised apart, so the boundary between them is exact. Where both are longer than the limit, the oldest
    context goes first, and the response is never cut. Templates that put today's date into the prompt are told a fixed one.
    """

    def __init__(self, tokenizer: Any, max_tokens: int = 512, system: str | None = DEFAULT_SYSTEM):
        """Look at the tokenizer's template once.

        Args:
            tokenizer: a fast tokenizer of transformers.
            max_tokens: of prompt and response together.
            system: instruction before the dialogue; None or nothing gives none, and the template may then put its own.

        Raises:
            EmpathyError: the tokenizer marks no end of a turn and has no end-of-text token.
        """
        self.tokenizer, self.max_tokens, self.system = tokenizer, max_tokens, system or None
        self._has_template = bool(tokenizer.chat_template)
        self._system_role = self._renders([{"role": "system", "content": _PROBE}, {"role": "user", "content": _PROBE}])
        self._listener_first = self._renders([{"role": "assistant", "content": _PROBE}])
        self._end = self._end_of_turn()
        eos = tokenizer.eos_token_id
        self.end_ids = frozenset({self._end[-1]} if eos is None else {self._end[-1], eos})
        """Token ids that end an answer."""
        self.pad_id = next(i for i in (tokenizer.pad_token_id, eos, self._end[-1]) if i is not None)
        """Fills short rows; always masked, so which token it is does not matter."""
        template = tokenizer.chat_template if self._has_template else "transcript"
        template_format = (
            _FORMAT + _DATED * ("strftime_now" in str(template)) + _LISTENER_LATER * (not self._listener_first)
        )
        self.template_hash = sha256_bytes(canonical_json([template_format, template, self.system]))
        """Names this way of rendering in every manifest."""

    def describe(self) -> dict[str, Any]:
        """What the manifest says of the rendering."""
        kind = "chat template" if self._has_template else "transcript"
        return {
            "template": kind,
            "template_hash": self.template_hash,
            "system": self.system,
            "max_tokens": self.max_tokens,
        }

    def prompt(self, context: Sequence[Turn], room: int = 0) -> tuple[list[int], int]:
        """Token ids up to where the answer starts, and how many of the oldest turns were cut.

        Args:
            context: the turns before the answer, oldest first.
            room: tokens to leave free for the answer.

        Raises:
            RowRefused: not even the last turn's end fits, or the template leaves nothing of the context or refuses it.
        """
        limit = self.max_tokens - room
        if limit < _LEAST_PROMPT:
            raise RowRefused("response-too-long", f"{room} tokens of at most {self.max_tokens} leave no room to answer")
        ids, cut_turns = self._fitted(context, limit)
        if not ids:
            raise RowRefused("no-context", "no turn is left that the chat template begins with")
        return ids, cut_turns

    def _fitted(self, context: Sequence[Turn], limit: int) -> tuple[list[int], int]:
        """Prompt and number of turns cut, so that it fits; no tokens where there is nothing to say."""
        ids = self._ids(self._prompt_text(context))
        if len(ids) <= limit:
            return ids, 0
        # The fewer turns the fewer tokens, so the longest tail that fits is found by halving.
        low, high = 1, len(context) - 1
        best: tuple[list[int], int] | None = None
        while low <= high:
            start = (low + high) // 2
            ids = self._ids(self._prompt_text(context[start:]))
            if len(ids) <= limit:
                best, high = (ids, start), start - 1
            else:
                low = start + 1
        return best or self._cut_last(context, limit)

    def render(self, example: Example) -> Rendered:
        """An example as tokens.

        Raises:
            RowRefused: the response is blank, or too long to stand whole beside a prompt; or as ``prompt`` does.
        """
        response = self.response(example.response)
        prompt, cut = self.prompt(example.context, len(response))
        return Rendered(prompt, response, cut)

    def render_many(self, examples: Sequence[Example]) -> Iterator[Rendered | RowRefused]:
        """``render`` for each of some examples, tokenised together; what it would raise is yielded."""
        prompts = self._batch([self._prompt_text_if_any(example.context) for example in examples])
        spoken = self._batch([self._spoken(example.response) for example in examples])
        for example, prompt, words in zip(examples, prompts, spoken, strict=True):
            response = [*words, *self._end]
            if (
                words
                and prompt
                and len(prompt) + len(response) <= self.max_tokens
                and len(response) <= self.max_tokens - _LEAST_PROMPT
            ):
                yield Rendered(prompt, response, 0)
                continue
            try:
                yield self.render(example)
            except RowRefused as refused:
                yield refused

    def response(self, text: str) -> list[int]:
        """A response with the end of its turn, as it follows a prompt.

        Raises:
            RowRefused: nothing is left of it.
        """
        if not text.strip():
            raise RowRefused("empty-response", "the response is blank: there is nothing to learn from")
        return [*self._ids(self._spoken(text)), *self._end]

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, without special tokens and blanks around."""
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ).strip()

    def _spoken(self, text: str) -> str:
        """A response as it follows the prompt's text."""
        text = text.strip()
        return text if self._has_template or not text else f" {text}"

    def _prompt_text(self, context: Sequence[Turn]) -> str:
        messages = self._messages(context)
        if self._has_template:
            return self._templated(messages) if messages else ""
        names = {"user": "Speaker", "assistant": "Listener"}
        lines = [f"{names[m['role']]}: {m['content']}" if m["role"] in names else m["content"] for m in messages]
        return self._start + "\n".join([*lines, "Listener:"])

    def _prompt_text_if_any(self, context: Sequence[Turn]) -> str:
        try:
            return self._prompt_text(context)
        except RowRefused:
            return ""

    def _templated(self, messages: list[dict[str, str]], answering: bool = True) -> str:
        """Chat messages as the template writes them, up to where the answer starts or without an opening for it."""
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=answering, strftime_now=_DAY.strftime
                )
            )
        except TemplateError as error:
            raise RowRefused("chat-template", f"the model's chat template refuses these turns: {error}") from error

    def _messages(self, context: Sequence[Turn]) -> list[dict[str, str]]:
        """Turns as chat messages: neighbours of one role joined, since many templates insist on taking turns."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        messages = _joined([*first, *({"role": _ROLES[turn.role], "content": turn.text.strip()} for turn in context)])
        if self._has_template and not self._listener_first:
            # A template that insists on who begins mostly insists on one instruction, before all else.
            heads = [m for m in messages if m["role"] == "system"]
            spoken = [m for m in messages if m["role"] != "system"]
            while spoken and spoken[0]["role"] == "assistant":
                spoken.pop(0)
            messages = _joined([*heads, *spoken])
        if self._has_template and not self._system_role and messages and messages[0]["role"] == "system":
            told = messages.pop(0)["content"]
            if messages and messages[0]["role"] == "user":
                told = f"{told}\n\n{messages.pop(0)['content']}"
            messages.insert(0, {"role": "user", "content": told})
        return messages

    def _cut_last(self, context: Sequence[Turn], limit: int) -> tuple[list[int], int]:
        """The prompt with the end of its last turn only."""
        if not context:
            raise RowRefused("prompt-too-long", f"the instruction alone has more than {limit} tokens")
        last = context[-1]
        words = self._ids(last.text)
        kept = len(words)
        while kept > 0:
            over = len(ids := self._ids(self._prompt_text([Turn(last.role, self.text(words[-kept:]))]))) - limit
            if over <= 0:
                return ids, len(context)
            kept -= over
        raise RowRefused("prompt-too-long", f"instruction and turn do not fit {limit} tokens")

    @property
    def _start(self) -> str:
        """What the tokenizer itself would put first."""
        first = self.tokenizer(_PROBE)["input_ids"][:1]
        return str(self.tokenizer.bos_token) if first == [self.tokenizer.bos_token_id] else ""

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _batch(self, texts: list[str]) -> list[list[int]]:
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"])

    def _renders(self, messages: list[dict[str, str]]) -> bool:
        if not self._has_template:
            return True
        try:
            text = self._templated(messages)
        except RowRefused:
            return False
        return text.count(_PROBE) == len(messages)

    def _end_of_turn(self) -> list[int]:
        """What the template puts after an answer, up to and with its first special token; else the end of the text."""
        if self._has_template:
            turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
            text = self._templated(turns, answering=False)
            after = self._ids(text.rpartition(_PROBE)[2])
            special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
            places = [place for place, token in enumerate(after) if token in special]
            if places:
                return after[: places[0] + 1]
        if self.tokenizer.eos_token_id is None:
            raise EmpathyError(
                "this model's tokenizer marks no end of a turn and has no end-of-text token: it would never stop. "
                "Choose another base model with --base."
            )
        return [self.tokenizer.eos_token_id]


def _joined(messages: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Messages with neighbours of one role as one."""
    found: list[dict[str, str]] = []
    for message in messages:
        if found and found[-1]["role"] == message["role"]:
            found[-1] = {**message, "content": f"{found[-1]['content']}\n{message['content']}"}
        else:
            found.append(message)
    return found
