"""A conversation: what the model sees, what is shown, and the words that steer it."""

import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")

from tiny_words import make_tokenizer  # noqa: E402

from efficient_empathy.dialogues.types import Turn  # noqa: E402
from efficient_empathy.experts.chat import HELP, Conversation, converse  # noqa: E402
from efficient_empathy.experts.decoding import Prompt, answer  # noqa: E402
from efficient_empathy.experts.decoding_options import DecodingOptions  # noqa: E402
from efficient_empathy.experts.models import LanguageModel  # noqa: E402
from efficient_empathy.experts.rendering import Renderer  # noqa: E402

OPTIONS = DecodingOptions(max_new_tokens=6)


@pytest.fixture(scope="module")
def model(make_tiny_lm):
    return LanguageModel("tiny", make_tiny_lm(seed=3, spread=0.8), Renderer(make_tokenizer(), 128, None), {})


def _expected(model, turns):
    tokens, _ = model.renderer.prompt(turns, OPTIONS.max_new_tokens)
    (found,) = answer(model, [Prompt("", tokens)], OPTIONS)
    return model.renderer.text(found.tokens)


def test_pieces_are_the_answer_and_the_next_turn_sees_it(model):
    conversation = Conversation(model, OPTIONS)
    turns = [Turn("speaker", "my dog lost")]
    first = "".join(conversation.say("my dog lost"))
    assert first == _expected(model, turns)
    turns += [Turn("listener", first), Turn("speaker", "why did it")]
    second = "".join(conversation.say("why did it"))
    assert second == _expected(model, turns)
    assert conversation.turns == [*turns, Turn("listener", second)]


def test_a_piped_conversation(model):
    lines = [f"{line}\n" for line in ("my dog lost", "", "/what", "/reset", "my dog lost", "/quit", "why")]
    shown = []
    count = converse(
        model,
        OPTIONS,
        lines,
        shown.append,
    )
    once = _expected(model, [Turn("speaker", "my dog lost")])
    assert count == 2
    assert "".join(shown) == f"{once}\n({HELP})\n(started over)\n{once}\n"


def test_a_turn_that_fits_nowhere_is_not_kept(model, monkeypatch):
    monkeypatch.setattr(model.renderer, "system", " ".join(["plan"] * 125))
    shown = []
    assert converse(model, OPTIONS, ["why\n"], shown.append) == 0
    assert "too long" in "".join(shown)
