"""Decoding: many answers at once, each the one that its prompt would get alone."""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.decoding_options import DecodingOptions
from efficient_empathy.experts.few_rows import FewRows
from efficient_empathy.experts.grouped_attention import grouped
from efficient_empathy.experts.key_values import can_join, goes_on, join, new_cache, turns_within, widened
from efficient_empathy.experts.models import LanguageModel, position_limit
from efficient_empathy.experts.prompt_states import read_prompts, told

Finish = Literal["end", "length"]
_REFILL = 0.25
"""Share of the places that must be free before others join: each joining copies what is cached."""


@dataclass(frozen=True)
class Prompt:
    """What is to be answered."""

    id: str
    """Names the row: with the seed it decides what is drawn for it."""
    tokens: list[int]
    """Up to where the answer starts; at least one."""


@dataclass(frozen=True)
class Decoded:
    """An answer as tokens."""

    tokens: list[int]
    """Without the token that ended it."""
    finish: Finish
    """``end``: the model ended its turn; ``length``: there was no more room."""


def answer(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    options: DecodingOptions,
    done: Callable[[int, int], None] | None = None,
) -> list[Decoded]:
    """Answer some prompts, the longest first; a place that becomes free is given to the next one.

    A model that cannot go on from keys and values of past tokens answers one prompt after the other, and reads all anew for each
    token: slow, but right.

    Args:
        model: a base, an expert or a mixture.
        prompts: in any order.
        options: greedy or sampled, length, batch size.
        done: called whenever answers are complete, with how many they are and how many tokens they hold.

    Returns:
        The answers in the order of the prompts.

    Raises:
        EmpathyError: a prompt is as long as all that the model can read.
    """
    answers = _Answers(model, prompts, options)
    options = _possible(model, prompts, options)
    waiting = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].tokens))[::-1]
    batch: _Batch | None = None
    while waiting or batch is not None:
        free = options.batch_size - (len(batch.rows) if batch else 0)
        if waiting and (batch is None or (batch.can_grow and free >= options.batch_size * _REFILL)):
            rows = [waiting.pop() for _ in range(min(free, len(waiting)))]
            new = _Batch(model, {row: prompts[row] for row in rows}, options)
            answers.take(new, done)
            if batch is None:
                batch = new
            elif new.rows:
                batch.join(new)
        elif batch is not None:
            answers.take(batch, done)
        if batch is not None and not batch.rows:
            batch = None
    return [Decoded(*pair) for pair in zip(answers.tokens, answers.finish, strict=True)]


def stream(model: LanguageModel, prompt: Prompt, options: DecodingOptions) -> Iterator[int]:
    """The tokens of one answer as they are chosen, without the one that ends it."""
    room = _room(prompt, model, options)
    batch = _Batch(model, {0: prompt}, _possible(model, [prompt], options))
    for _ in range(room):
        (token,) = batch.step()
        if token in model.renderer.end_ids:
            return
        yield token


class _Answers:
    """What was chosen so far, for each prompt."""

    def __init__(self, model: LanguageModel, prompts: Sequence[Prompt], options: DecodingOptions):
        self._end_ids = model.renderer.end_ids
        self._room = [_room(prompt, model, options) for prompt in prompts]
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self.finish: list[Finish] = ["length"] * len(prompts)

    def take(self, batch: "_Batch", done: Callable[[int, int], None] | None) -> None:
        """Let each row of a batch choose its next token, and those that have ended leave it."""
        staying = []
        for place, (row, token) in enumerate(zip(batch.rows, batch.step(), strict=True)):
            if token in self._end_ids:
                self.finish[row] = "end"
                continue
            self.tokens[row].append(token)
            if len(self.tokens[row]) < self._room[row]:
                staying.append(place)
        if len(staying) < len(batch.rows):
            gone = set(batch.rows)
            batch.keep(staying)
            gone -= set(batch.rows)
            if done is not None:
                done(len(gone), sum(len(self.tokens[row]) for row in gone))


class _Batch:
    """Rows that are decoded together, padded on the left; a row that has ended leaves, and costs nothing more."""

    @torch.inference_mode()
    def __init__(self, model: LanguageModel, prompts: Mapping[int, Prompt], options: DecodingOptions):
        self._model, self._options = model.model, options
        self._accepts = _parameters(model.model)
        self.rows = list(prompts)
        """Of the prompts that are still being answered."""
        width = max(len(prompt.tokens) for prompt in prompts.values())
        tokens = np.full((len(prompts), width), model.renderer.pad_id, np.int64)
        mask = np.zeros((len(prompts), width), np.int64)
        for place, prompt in enumerate(prompts.values()):
            tokens[place, width - len(prompt.tokens) :] = prompt.tokens
            mask[place, width - len(prompt.tokens) :] = 1
        self.tokens_BT = torch.from_numpy(tokens).to(model.device)
        self.mask_BT = torch.from_numpy(mask).to(model.device)
        draws = [_draws(options.seed, prompt.id, options.max_new_tokens) for prompt in prompts.values()]
        self.draws_BT = torch.from_numpy(np.stack(draws)).to(model.device)
        """What is left of each row's random numbers; the next one first."""
        self.cache = new_cache(self._model.config) if options.use_cache else None
        self._cached = 0
        self.states = read_prompts(self._model, self.tokens_BT, self.mask_BT)
        """What the model settled for each row's prompt; None for most models."""

    @property
    def can_grow(self) -> bool:
        """Whether other rows can join it."""
        return self.cache is None or can_join(self.cache)

    @torch.inference_mode()
    def step(self) -> list[int]:
        """Choose the next token of each row."""
        logits_BV = self._forward().logits[:, -1]
        chosen_B = draw(logits_BV, self.draws_BT[:, 0], self._options) if self._options.sample else logits_BV.argmax(-1)
        if self.cache is not None:
            self._cached = self.tokens_BT.shape[1]
        self.tokens_BT = torch.cat([self.tokens_BT, chosen_B[:, None]], 1)
        self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(chosen_B)[:, None]], 1)
        # Rows that joined later have drawn fewer times; all are as wide, so that they can be joined.
        self.draws_BT = self.draws_BT.roll(-1, 1)
        return chosen_B.tolist()

    @torch.inference_mode()
    def keep(self, places: list[int]) -> None:
        """Let all rows go but those in these places."""
        self.rows = [self.rows[place] for place in places]
        if not places:
            return
        index = torch.tensor(places, device=self.tokens_BT.device)
        self.tokens_BT, self.mask_BT, self.draws_BT = (
            tensor[index] for tensor in (self.tokens_BT, self.mask_BT, self.draws_BT)
        )
        if self.states is not None:
            self.states = self.states[index]
        if self.cache is not None:
            self.cache.batch_select_indices(index)

    @torch.inference_mode()
    def join(self, other: "_Batch") -> None:
        """Take over the rows of another batch of which each has had its first step, too."""
        longest = [int(one.mask_BT.sum(1).max()) for one in (self, other)]
        width = max(longest)
        # Once the longest rows have ended, the oldest columns hold nothing but padding.
        pairs = [(one, one.mask_BT.shape[1] - most) for one, most in zip((self, other), longest, strict=True)]
        if self.cache is not None:
            # The newest token of each row is not in the cache yet.
            self._cached = width - 1
            self.cache = join([(one.cache, drop) for one, drop in pairs if one.cache is not None], self._cached)
        self.tokens_BT = torch.cat([widened(one.tokens_BT[:, drop:], width) for one, drop in pairs])
        self.mask_BT = torch.cat([widened(one.mask_BT[:, drop:], width) for one, drop in pairs])
        self.draws_BT = torch.cat([self.draws_BT, other.draws_BT])
        if self.states is not None and other.states is not None:
            self.states = torch.cat([self.states, other.states])
        self.rows += other.rows

    def _forward(self) -> Any:
        positions_BT = (self.mask_BT.cumsum(1) - 1).clamp_(min=0)
        places_BT = positions_BT[:, self._cached :]
        inputs = {"position_ids": places_BT, "past_key_values": self.cache, "logits_to_keep": 1}
        with told(self._model, self.states), FewRows(), grouped(getattr(self._model, "config", None)):
            return self._model(
                input_ids=self.tokens_BT[:, self._cached :],
                attention_mask=self.mask_BT,
                use_cache=self.cache is not None,
                **{name: value for name, value in inputs.items() if name in self._accepts},
            )


def draw(logits_BV: Tensor, uniform_B: Tensor, options: DecodingOptions) -> Tensor:
    """One token a row from its distribution, cut to ``top_k`` and then to ``top_p``, by inverting its cumulative sum.

    Args:
        logits_BV: (rows, vocabulary).
        uniform_B: (rows,), a number from 0 to below 1 each.
        options: temperature and cuts.

    Returns:
        int64 (rows,).
    """
    size = logits_BV.shape[-1]
    values_BK, tokens_BK = logits_BV.float().topk(min(options.top_k or size, size))
    probabilities_BK = (values_BK / options.temperature).softmax(-1)
    sums_BK = probabilities_BK.cumsum(-1)
    # A token stays if those before it do not yet have top_p: the likeliest always does.
    stays_BK = sums_BK - probabilities_BK < options.top_p
    last_B = stays_BK.sum(-1) - 1
    target_B = uniform_B.to(sums_BK.dtype) * sums_BK.gather(-1, last_B[:, None])[:, 0]
    place_B = (sums_BK <= target_B[:, None]).sum(-1).minimum(last_B)
    return tokens_BK.gather(-1, place_B[:, None])[:, 0]


def _draws(seed: int, row_id: str, count: int) -> np.ndarray:
    """The row's own random numbers, float64 (count,): the same in any batch, in any order."""
    lot = hashlib.sha256(f"{seed}:{row_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(lot[:16])).random(count)


def _possible(model: LanguageModel, prompts: Sequence[Prompt], options: DecodingOptions) -> DecodingOptions:
    """The options that the model can be decoded with: without a cache and row by row if it cannot be otherwise."""
    longest = max((len(prompt.tokens) for prompt in prompts), default=0) + options.max_new_tokens
    if not prompts or (goes_on(model.model, prompts[0].tokens) and not turns_within(model.model, longest)):
        return options
    return replace(options, use_cache=False, batch_size=1)


def _room(prompt: Prompt, model: LanguageModel, options: DecodingOptions) -> int:
    limit = position_limit(model.model)
    room = options.max_new_tokens if limit is None else min(options.max_new_tokens, limit - len(prompt.tokens))
    if room < 1:
        raise EmpathyError(
            f"the prompt of '{prompt.id}' has {len(prompt.tokens)} tokens, and '{model.name}' reads {limit} at most; "
            "render it with a lower max_tokens."
        )
    return room


def _parameters(model: Any) -> frozenset[str]:
    """What the model's forward takes by name; adapters hand everything on to what they wrap."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(causal.forward).parameters)
