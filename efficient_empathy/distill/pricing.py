"""What answers cost: a price table that the user can override, and estimates for what has not been asked yet."""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from efficient_empathy.distill.endpoint import is_own_service
from efficient_empathy.distill.judges import Usage
from efficient_empathy.distill.options import JudgeOptions
from efficient_empathy.distill.questions import Criteria, SubjectT
from efficient_empathy.distill.yaml_files import read_yaml
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


class Purse:
    """Dollars that are spent or set aside, booked from several threads; the limit holds for their sum."""

    def __init__(self, limit: float | None, taken: float) -> None:
        self.lost = 0.0
        """Of this run's attempts whose answer never came."""
        self._limit, self._taken = limit, taken
        self._lock = threading.Lock()

    def take(self, usd: float) -> bool:
        """Set dollars aside for a question; False, and nothing is, where the limit does not allow it."""
        with self._lock:
            fits = self._limit is None or self._taken + usd <= self._limit
            self._taken += usd if fits else 0.0
            return fits

    def give_back(self, usd: float) -> None:
        """A question is settled: what was set aside for it and was not spent."""
        with self._lock:
            self._taken -= usd

    def lose(self, usd: float) -> bool:
        """Leave set aside what a lost attempt may cost, and as much for another; False where the limit allows no other."""
        with self._lock:
            self.lost += usd
            self._taken += usd
            return self._limit is None or self._taken <= self._limit


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


def find_price(options: JudgeOptions) -> Price | None:
    """The price of the judge that some options name; None when it is not known.

    Raises:
        EmpathyError: the price table cannot be read.
    """
    kind, _, model = options.judge.partition(":")
    table = load_prices(options.prices, own_service=kind == "openai" and is_own_service(options))
    return FREE if kind == "local" else table.get(model)


def check_limit(options: JudgeOptions, price: Price | None) -> None:
    """See to it that a spending limit can be kept.

    Raises:
        EmpathyError: there is a limit and no price.
    """
    if options.max_usd is not None and price is None:
        raise EmpathyError(
            f"--max-usd needs a price for '{options.judge}', and there is none for it at this address. "
            "Give one with --prices FILE: 'models: {NAME: {input: …, output: …}}', dollars per million tokens."
        )


def _read(source: Any, what: str) -> dict[str, Price]:
    value = read_yaml(source, what)
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


def estimate_usage(subject: SubjectT, criteria: Criteria[SubjectT], answer: str | None = None) -> Usage:
    """Tokens that a question is likely to take: four characters a token, plus 8 a message.

    English text comes to about 4.5 characters a token and other languages to fewer than 4, so this leans to the high
    side for English and to the low side elsewhere.

    Args:
        subject: what is asked about.
        criteria: what is asked.
        answer: the answer where it is known; without it, the shortest one that is whole.
    """
    if answer is None:
        answer = criteria.shortest_answer()
    prompt = math.ceil(len(_prompt_text(subject, criteria)) / _CHARACTERS_PER_TOKEN) + 2 * _TOKENS_PER_MESSAGE
    return Usage(prompt, math.ceil(len(answer) / _CHARACTERS_PER_TOKEN))


def bound_usage(subject: SubjectT, criteria: Criteria[SubjectT], max_completion_tokens: int) -> Usage:
    """Tokens set aside for a question under way: two bytes a token in any language, and the longest answer allowed."""
    size = len(_prompt_text(subject, criteria).encode("utf-8", "replace"))
    return Usage(math.ceil(size / 2) + 2 * _TOKENS_PER_MESSAGE, max_completion_tokens)


def _prompt_text(subject: SubjectT, criteria: Criteria[SubjectT]) -> str:
    # The schema goes along with the question and is counted by the services.
    return "".join(message["content"] for message in criteria.prompt(subject)) + str(criteria.json_schema())
