"""A judge in this process: a language model whose score is the expected value over its number tokens, no sampling."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.judges import Answer, Usage
from efficient_empathy.distill.local_backends import Backend, LocalModel, open_backend
from efficient_empathy.distill.rubric import Dimension, Rubric

# Below this the model was not about to say a score at all, and an expected value would be noise.
_LEAST_MASS = 0.01
# A longer number that starts with something so unlikely does not move the expected value.
_NEGLIGIBLE = 1e-3
_START = re.compile(r"-?\d+|-")
_MORE = re.compile(r"\d+")


def number_probabilities(low: int, high: int, following: Callable[[str], Mapping[str, float]]) -> dict[int, float]:
    """The probability of each whole number on a scale, also where a number takes several tokens (10 as "1" and "0").

    A number that may go on (1 of 10) gets the probability that no digit follows it; others get all of their own.

    Args:
        low: the least number.
        high: the greatest number, included.
        following: given the digits so far ("" at first), the probability of each next token by its text; tokens that
            are left out count as something other than a digit.

    Returns:
        Probabilities by number; they sum to the share that the model gives to numbers on the scale, at most 1.
    """
    numbers = {str(number): number for number in range(low, high + 1)}
    starts = {text[:end] for text in numbers for end in range(1, len(text))}
    found = dict.fromkeys(numbers.values(), 0.0)
    waiting = [("", 1.0)]
    while waiting:
        prefix, mass = waiting.pop()
        if prefix and (prefix not in starts or mass < _NEGLIGIBLE):
            if prefix in numbers:
                found[numbers[prefix]] += mass
            continue
        digits = 0.0
        for token, probability in following(prefix).items():
            piece = token if prefix else token.lstrip(" ")
            match = (_MORE if prefix else _START).match(piece)
            if match is None:
                continue
            digits += probability
            text = prefix + match[0]
            if match.end() == len(piece) and (text in numbers or text in starts):
                waiting.append((text, mass * probability))
            elif text in numbers:
                found[numbers[text]] += mass * probability
        if prefix in numbers:
            found[numbers[prefix]] += mass * max(0.0, 1.0 - digits)
    return found


class LocalJudge:
    """Scores one example at a time: forces the start of the JSON verdict and reads the next token's distribution."""

    concurrency = 1
    model = ""
    max_completion_tokens = 0

    def __init__(self, local: LocalModel, backend: Backend | None) -> None:
        self.name = local.name
        self._local = local
        self._backend = backend

    @classmethod
    def load(cls, model: str, ask: bool = True) -> "LocalJudge":
        """Find the model and, if questions will be asked, load it.

        Args:
            model: a ``.gguf`` file, a folder with safetensors, or a Hub id.
            ask: False for a dry run: the model is named but not loaded.

        Raises:
            EmpathyError: the model cannot be found or read, or what runs it is not installed.
        """
        local = LocalModel.find(model)
        return cls(local, open_backend(local) if ask else None)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The method and the model's weights: a file of the same name with other weights is another judge."""
        return {"method": "expected-value", "weights": self._local.digest}

    def describe(self) -> dict[str, Any]:
        """The judge, the hash of its weights and the method."""
        return {"name": self.name, **self.parameters}

    def ask(self, example: Example, rubric: Rubric) -> Answer:
        """Rate one example: dimensions in the rubric's order, each seeing the rounded scores of those before it."""
        if self._backend is None:
            raise ValueError("this judge was opened to be named, not asked")
        backend = self._backend
        prompt = backend.render(rubric.prompt(example))
        scores: dict[str, float] = {}
        details: dict[str, Any] = {}
        given = "{"
        for dimension in rubric.dimensions:
            given += f'"{dimension.name}": '
            found = _read_number(backend, prompt + given, dimension)
            mass = sum(found.values())
            details[dimension.name] = {str(number): round(p, 6) for number, p in found.items()}
            if mass < _LEAST_MASS:
                return Answer(_text(details), None, "no-number", Usage(backend.count(prompt)), backend.form)
            expected = sum(number * p for number, p in found.items()) / mass
            scores[dimension.name] = round(expected, 4)
            given += f"{round(expected)}, "
        return Answer(_text(details), scores, None, Usage(backend.count(prompt)), backend.form)

    def stop(self) -> None:
        """Nothing to stop: a question takes one short computation."""

    def close(self) -> None:
        """Let go of the model."""
        self._backend = None


def _read_number(backend: Backend, start: str, dimension: Dimension) -> dict[int, float]:
    def following(digits: str) -> Mapping[str, float]:
        return backend.following(start + digits)

    return number_probabilities(dimension.low, dimension.high, following)


def _text(details: Mapping[str, Any]) -> str:
    return orjson.dumps(dict(details)).decode()
