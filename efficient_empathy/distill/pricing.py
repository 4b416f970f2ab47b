"""What answers cost: a price table that the user can override, and estimates for what has not been asked yet."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.judges import Usage
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.errors import EmpathyError

_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 8


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens of one model."""

    input: float
    output: float
    cached_input: float | None = None
    """For the part of the input that the service had in its cache; None to bill it as other input."""

    def __post_init__(self) -> None:
        for name in ("input", "output", "cached_input"):
            value = getattr(self, name)
            if value is None and name == "cached_input":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise EmpathyError(f"price '{name}' must be 0 or more dollars per million tokens, not {value!r}.")

    def cost(self, usage: Usage) -> float:
        """Dollars for the tokens of one answer."""
        cached = self.input if self.cached_input is None else self.cached_input
        fresh = usage.prompt - usage.cached
        return (fresh * self.input + usage.cached * cached + usage.completion * self.output) / 1e6


FREE = Price(0.0, 0.0)


def load_prices(path: Path | None, own_service: bool) -> dict[str, Price]:
    """The price of each model by name.

    Args:
        path: the user's YAML table, ``models: {name: {input, output, cached_input}}``; its entries win over ours.
        own_service: whether questions go to the service that our table is about; at another address only the user's
            table counts, since the same model costs something else there.

    Raises:
        EmpathyError: the table cannot be read or holds something that is not a price.
    """
    prices: dict[str, Price] = {}
    if own_service:
        prices.update(_read(resources.files(__package__) / "prices.yaml", "our price table"))
    if path is not None:
        prices.update(_read(path, f"the price table '{path}'"))
    return prices


def _read(source: Any, what: str) -> dict[str, Price]:
    import yaml  # only where prices are needed: --help stays fast

    try:
        value = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise EmpathyError(f"cannot read {what}: {error}.") from error
    except yaml.YAMLError as error:
        raise EmpathyError(f"{what} is not valid YAML: {error}") from error
    models = value.get("models") if isinstance(value, Mapping) else None
    if not isinstance(models, Mapping):
        raise EmpathyError(f"{what} must hold 'models:', a mapping of model names to {{input: …, output: …}}.")
    prices = {}
    for name, fields in models.items():
        if not isinstance(fields, Mapping) or not {"input", "output"} <= set(fields) <= {
            "input",
            "output",
            "cached_input",
        }:
            raise EmpathyError(
                f"{what}: '{name}' must hold input and output, and may hold cached_input; found {fields!r}."
            )
        try:
            prices[str(name)] = Price(**fields)
        except EmpathyError as error:
            raise EmpathyError(f"{what}, '{name}': {error}") from error
    return prices


def estimate_usage(example: Example, rubric: Rubric, answer: str | None = None) -> Usage:
    """Tokens that a question is likely to take: four characters a token, plus 8 a message.

    English text comes to about 4.5 characters a token and other languages to fewer than 4, so this leans to the high
    side for English and to the low side elsewhere.

    Args:
        example: what is asked about.
        rubric: what is asked.
        answer: the answer where it is known; without it, the shortest full verdict.
    """
    if answer is None:
        answer = "{" + ", ".join(f'"{d.name}": {d.high}' for d in rubric.dimensions) + "}"
    prompt = math.ceil(len(_prompt_text(example, rubric)) / _CHARACTERS_PER_TOKEN) + 2 * _TOKENS_PER_MESSAGE
    return Usage(prompt, math.ceil(len(answer) / _CHARACTERS_PER_TOKEN))


def bound_usage(example: Example, rubric: Rubric, max_completion_tokens: int) -> Usage:
    """Tokens set aside for a question under way: two bytes a token in any language, and the longest answer allowed."""
    size = len(_prompt_text(example, rubric).encode("utf-8", "replace"))
    return Usage(math.ceil(size / 2) + 2 * _TOKENS_PER_MESSAGE, max_completion_tokens)


def _prompt_text(example: Example, rubric: Rubric) -> str:
    # The schema goes along with the question and is counted by the services.
    return "".join(message["content"] for message in rubric.prompt(example)) + str(rubric.json_schema())
