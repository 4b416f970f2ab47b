"""A conversation at a terminal, turn by turn."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from efficient_empathy.dialogues.types import Turn
from efficient_empathy.experts.decoding import Prompt, stream
from efficient_empathy.experts.decoding_options import DecodingOptions
from efficient_empathy.experts.models import LanguageModel
from efficient_empathy.experts.rendering import UNFINISHED, RowRefused

HELP = "/reset starts over, /quit or the end of the input leaves."


class Conversation:
    """The turns so far, and a model that answers the next one."""

    def __init__(self, model: LanguageModel, options: DecodingOptions):
        self._model, self._options = model, options
        self.turns: list[Turn] = []

    def say(self, text: str) -> Iterator[str]:
        """Take a turn of the speaker and give the answer piece by piece; a turn counts once its answer is whole.

        Raises:
            RowRefused: the turn leaves no room for an answer, or the chat template refuses it.
        """
        turns = [*self.turns, Turn("speaker", text)]
        tokens, _ = self._model.renderer.prompt(turns, self._options.max_new_tokens)
        prompt = Prompt(f"chat_turn:{len(turns)}", tokens)
        chosen: list[int] = []
        shown = ""
        for token in stream(self._model, prompt, self._options):
            chosen.append(token)
            whole = self._model.renderer.text(chosen)
            if whole.startswith(shown) and not whole.endswith(UNFINISHED):
                yield whole[len(shown) :]
                shown = whole
        whole = self._model.renderer.text(chosen)
        yield whole.removeprefix(shown)
        self.turns = [*turns, Turn("listener", whole)]

    def reset(self) -> None:
        """Forget all turns."""
        self.turns = []


def converse(model: LanguageModel, options: DecodingOptions, lines: Iterable[str], write: Callable[[str], None]) -> int:
    """Answer line after line until ``/quit`` or the end.

    Args:
        model: a base, an expert or a mixture.
        options: how it answers; each conversation after ``/reset`` draws by the next seed.
        lines: what the person says, with ``/reset`` and ``/quit``.
        write: shows a piece of text, without a line end of its own.

    Returns:
        How many turns were answered.
    """
    conversation = Conversation(model, options)
    answered = 0
    for line in lines:
        text = line.strip()
        if not text:
            continue
        if text == "/quit":
            break
        if text == "/reset":
            options = replace(options, seed=options.seed + 1)
            conversation = Conversation(model, options)
            write("(started over)\n")
            continue
        if text.startswith("/"):
            write(f"({HELP})\n")
            continue
        try:
            for piece in conversation.say(text):
                write(piece)
        except RowRefused as error:
            short = error.reason != "chat-template"
            write("(too long to be answered; say it shorter)" if short else f"({error}; /reset starts over)")
        else:
            answered += 1
        write("\n")
    return answered
