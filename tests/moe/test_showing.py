"""Answers shown token by token."""

import click
import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")
pytest.importorskip("peft", reason="peft is part of the experts extra")

from efficient_empathy.dialogues.types import Turn  # noqa: E402
from efficient_empathy.errors import EmpathyError  # noqa: E402
from efficient_empathy.experts.bases import find_base, load_base  # noqa: E402
from efficient_empathy.experts.models import LanguageModel, load_language_model  # noqa: E402
from efficient_empathy.experts.rendering import Renderer  # noqa: E402
from efficient_empathy.moe.adapters import read_adapters  # noqa: E402
from efficient_empathy.moe.options import RouterOptions  # noqa: E402
from efficient_empathy.moe.router import attach  # noqa: E402
from efficient_empathy.moe.showing import TokenGates, answer_gates, colored, show_gates  # noqa: E402

CONTEXT = [Turn("speaker", "i lost your dog")]


@pytest.mark.parametrize("granularity", ["token", "sequence"])
def test_the_gates_of_each_token(experts, tiny_lm, granularity):
    model, tokenizer = load_base(find_base(str(tiny_lm)))
    router = attach(model, read_adapters(experts[:2]), RouterOptions(granularity=granularity))
    torch.manual_seed(0)
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    named = LanguageModel("moe", model.eval(), Renderer(tokenizer, 64), {})
    found = answer_gates(named, CONTEXT, "i am so sorry")
    assert "".join(token.text for token in found) == "i am so sorry"
    assert len(found) == 5  # and the end of the turn
    assert all(sum(token.gates) == pytest.approx(1, abs=1e-5) for token in found)
    assert (len({token.gates for token in found}) == 1) == (granularity == "sequence")
    assert "rationality" in click.unstyle(show_gates(named, CONTEXT, "i am so sorry"))


def test_a_character_of_several_tokens_is_shown_once_it_is_whole(experts, tiny_lm, monkeypatch):
    model, tokenizer = load_base(find_base(str(tiny_lm)))
    attach(model, read_adapters(experts[:2]), RouterOptions())
    named = LanguageModel("moe", model.eval(), Renderer(tokenizer, 64), {})
    decoded = ["i", "i\ufffd", "i\ufffd", "i🙂", "i🙂"]  # of a tokenizer that spells the character in three tokens
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **_: decoded[len(ids) - 1])
    found = answer_gates(named, CONTEXT, "i am so sorry")
    assert [token.text for token in found] == ["i", "", "", "🙂", ""]


def test_colours_by_hand():
    tokens = [TokenGates("so", (0.9, 0.1)), TokenGates(" sad", (0.52, 0.48)), TokenGates("", (0.2, 0.8))]
    found = colored(tokens, ["a", "b"])
    # Means: (0.9 + 0.52 + 0.2) / 3 = 0.54.
    assert click.unstyle(found) == "so₉₀ sad₅₂\n  a 0.54, b 0.46"
    assert click.style("so", fg="red") in found
    assert click.style(" sad", dim=True) in found


def test_a_model_without_gates_is_refused(tiny_lm):
    with pytest.raises(EmpathyError, match="is no mixture"):
        answer_gates(load_language_model(str(tiny_lm)), CONTEXT, "i am so sorry")
