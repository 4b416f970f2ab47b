"""From the probabilities of next tokens to scores: nothing is sampled, and a model that would say no verdict gives none."""

import re
from collections.abc import Sequence
from typing import Any

from efficient_empathy.distill.questions import Following, Verdict, Weighed

# Below this the model was not about to give a verdict at all, and what is left would be noise.
_LEAST_MASS = 0.01
# A longer number that starts with something so unlikely does not move the expected value.
_NEGLIGIBLE = 1e-3
_START = re.compile(r"-?\d+|-")
_MORE = re.compile(r"\d+")


def weigh_numbers(scales: Sequence[tuple[str, int, int]], following: Following) -> Weighed:
    """Expected values on some scales, asked for as one JSON object, each seeing the rounded values of those before it.

    Args:
        scales: name, least and greatest number (included) of each.
        following: the model's distribution after a start of the answer.
    """
    scores: dict[str, float] = {}
    details: dict[str, Any] = {}
    given = "{"
    for name, low, high in scales:
        given += f'"{name}": '
        found = number_probabilities(low, high, _after(following, given))
        mass = sum(found.values())
        details[name] = {str(number): round(p, 6) for number, p in found.items()}
        if mass < _LEAST_MASS:
            return Weighed(details, Verdict(None, "no-number"))
        expected = sum(number * p for number, p in found.items()) / mass
        scores[name] = round(expected, 4)
        given += f"{round(expected)}, "
    return Weighed(details, Verdict(scores, None))


def weigh_choice(name: str, letters: str, following: Following) -> Weighed:
    """The share of each letter in the probability of all of them, as the value of one JSON field.

    Args:
        name: of the field.
        letters: the offered verdicts, one capital letter each.
        following: the model's distribution after a start of the answer.
    """
    found = dict.fromkeys(letters, 0.0)
    for token, probability in following(f'{{"{name}": "').items():
        piece = token.lstrip(" ")
        # "A" and 'A"' are the letter, "An" is another word.
        if piece[:1] in found and not piece[1:2].isalpha():
            found[piece[0]] += probability
    mass = sum(found.values())
    details = {name: {letter: round(p, 6) for letter, p in found.items()}}
    if mass < _LEAST_MASS:
        return Weighed(details, Verdict(None, "no-verdict"))
    return Weighed(details, Verdict({letter: round(p / mass, 4) for letter, p in found.items()}, None))


def number_probabilities(low: int, high: int, following: Following) -> dict[int, float]:
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


def _after(following: Following, start: str) -> Following:
    return lambda more: following(start + more)
