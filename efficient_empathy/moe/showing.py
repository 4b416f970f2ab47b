"""An answer, token by token, coloured by the expert that had most weight in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import click
import torch

from efficient_empathy.dialogues.types import Turn
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.loss import IGNORED, response_nll
from efficient_empathy.experts.models import LanguageModel
from efficient_empathy.experts.prompt_states import ATTRIBUTE
from efficient_empathy.experts.rendering import UNFINISHED
from efficient_empathy.moe.regularisers import at_positions
from efficient_empathy.moe.router import Router

_COLORS = ("red", "blue", "green", "magenta", "cyan", "yellow")
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_EVEN = 0.05
"""A lead over equal shares that is too small to be coloured as one."""


@dataclass(frozen=True)
class TokenGates:
    """A piece of an answer and who gave it."""

    text: str
    gates: tuple[float, ...]
    """Weight of each expert where the token was chosen, mean over the gates of the router."""


def router_of(model: LanguageModel) -> Router:
    """The router of a mixture.

    Raises:
        EmpathyError: the model is none.
    """
    router = getattr(model.model, ATTRIBUTE, None)
    if not isinstance(router, Router):
        raise EmpathyError(f"'{model.name}' is no mixture: it has no gates to show. Make one with `ee-cli train-moe`.")
    return router


def answer_gates(model: LanguageModel, context: Sequence[Turn], text: str) -> list[TokenGates]:
    """The gates by which each token of an answer was chosen.

    Args:
        model: a mixture.
        context: the turns before the answer.
        text: the answer; its tokens are those that it has as a response, so they are found again from the text alone.

    Raises:
        EmpathyError: the model is no mixture.
        RowRefused: context and answer do not fit the model.
    """
    router = router_of(model)
    response = model.renderer.response(text)
    prompt, _ = model.renderer.prompt(context, len(response))
    ids = torch.tensor([[*prompt, *response]], device=model.device)
    labels = ids.clone()
    labels[:, : len(prompt)] = IGNORED
    with torch.inference_mode(), router.recording() as found:
        response_nll(model.model, ids, torch.ones_like(ids), labels)
    gates_NE = at_positions(list(found.values()), labels[:, 1:] != IGNORED).gates.mean(0)
    gates_NE = gates_NE.expand(len(response), -1)  # a gate of the whole answer is the same for all of it
    shown, pieces = "", []
    for count, gates in enumerate(gates_NE.tolist(), 1):
        whole = model.renderer.tokenizer.decode(response[:count], skip_special_tokens=True)
        unfinished = whole.endswith(UNFINISHED) and count < len(response)  # part of a character of several tokens
        pieces.append(TokenGates("" if unfinished else whole[len(shown) :], tuple(gates)))
        shown = shown if unfinished else whole
    return pieces


def colored(tokens: Sequence[TokenGates], experts: Sequence[str]) -> str:
    """An answer for a terminal: each token in the colour of its leading expert with that one's share in percent; even ones are dim.

    The last line names the colours, with the mean shares.
    """
    parts = []
    for token in tokens:
        if not token.text:
            continue
        lead = max(token.gates)
        number = f"{100 * lead:.0f}".translate(_SUBSCRIPTS)
        if lead < 1 / len(experts) + _EVEN:
            parts.append(click.style(token.text, dim=True) + click.style(number, dim=True))
        else:
            color = _COLORS[token.gates.index(lead) % len(_COLORS)]
            parts.append(click.style(token.text, fg=color) + click.style(number, fg=color, dim=True))
    means = [sum(column) / len(tokens) for column in zip(*(token.gates for token in tokens), strict=True)]
    named = zip(experts, means, strict=True)
    legend = [click.style(f"{name} {mean:.2f}", fg=_COLORS[i % len(_COLORS)]) for i, (name, mean) in enumerate(named)]
    return "".join(parts).strip() + "\n  " + ", ".join(legend)


def show_gates(model: LanguageModel, context: Sequence[Turn], text: str) -> str:
    """An answer for a terminal, coloured by expert; see ``answer_gates`` and ``colored``."""
    return colored(answer_gates(model, context, text), router_of(model).experts)
