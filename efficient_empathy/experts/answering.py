"""Answering some contexts: each gets a row of the answers folder, whether it can be answered or not."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.batches import Row, Rows
from efficient_empathy.experts.contexts import Context
from efficient_empathy.experts.decoding import Prompt, answer
from efficient_empathy.experts.decoding_options import DecodingOptions
from efficient_empathy.experts.loss import response_nll
from efficient_empathy.experts.models import LanguageModel, position_limit
from efficient_empathy.experts.rendering import RowRefused
from efficient_empathy.gpu_memory import within_memory

_log = logging.getLogger(__name__)
_LOG_SECONDS = 10.0
_LEAST_PROMPT = 32
"""Tokens that must be left for the dialogue beside the longest answer."""


@dataclass(frozen=True)
class AnsweredRow:
    """One row, and what the counts need to know beside it."""

    row: dict[str, Any]
    """As it stands in ``answers.jsonl``."""
    cut: bool = False
    """Whether the oldest turns of the context did not fit."""
    refused: str | None = None
    """Why the context could not be answered."""
    reference_refused: str | None = None
    """Why the likelihood of its reference was not measured."""


class Counts:
    """What the rows of an answers folder come to."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._references_refused: Counter[str] = Counter()

    def add(self, found: AnsweredRow) -> None:
        """Count a row."""
        row = found.row
        facts = {
            "contexts": 1,
            "answered": found.refused is None,
            "ended": row["finish"] == "end",
            "length": row["finish"] == "length",
            "empty": found.refused is None and not row["answer"],
            "cut_contexts": found.cut,
            "tokens": row["tokens"],
            "references": row["reference"] is not None,
            "references_measured": row["nll"] is not None,
            "reference_tokens": row["nll_tokens"] or 0,
        }
        for name, value in facts.items():
            self._counts[name] += value
        self._refused.update([found.refused] if found.refused else [])
        self._references_refused.update([found.reference_refused] if found.reference_refused else [])

    def describe(self) -> dict[str, Any]:
        """For the manifest: ``contexts`` are ``answered`` and ``refused``; ``answered`` are ``ended`` and ``length``."""
        return {
            **self._counts,
            "refused": dict(sorted(self._refused.items())),
            "references_refused": dict(sorted(self._references_refused.items())),
        }


class Progress:
    """Says every few seconds how many contexts are answered, at what speed, and how long the rest will take."""

    def __init__(self, total: int, done_before: int = 0):
        self._total, self._before = total, done_before
        self.rows = self.tokens = 0
        """What was answered since the start."""
        self._start = self._last = time.monotonic()
        self._log(f"{total} contexts" + (f", {done_before} of them done before" if done_before else ""))

    def add(self, rows: int, tokens: int) -> None:
        """Count what was answered, and report if the last report is some seconds old."""
        self.rows += rows
        self.tokens += tokens
        now = time.monotonic()
        if now - self._last < _LOG_SECONDS:
            return
        self._last, elapsed = now, now - self._start
        done = self._before + self.rows
        left = elapsed / self.rows * (self._total - done)
        self._log(
            f"{done} of {self._total}, {self.rows / elapsed:.1f} answers/s, {self.tokens / elapsed:.0f} tokens/s, "
            f"{left:.0f} s left"
        )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def _log(self, text: str) -> None:
        _log.info("answers: %s", text)


def check_room(model: LanguageModel, options: DecodingOptions) -> None:
    """See that prompts and answers fit the model.

    Raises:
        EmpathyError: what the renderer allows is more than the model reads, or the answer leaves no room for a prompt.
    """
    limit, most = position_limit(model.model), model.renderer.max_tokens
    if limit is not None and most > limit:
        trained = model.description.get("kind", "base") != "base"
        advice = f"Train it again, experts with --max-length {limit}" if trained else f"Say --max-tokens {limit}"
        raise EmpathyError(
            f"prompt and answer together may have {most} tokens, but '{model.name}' reads {limit} at most. {advice}."
        )
    if most - options.max_new_tokens < _LEAST_PROMPT:
        raise EmpathyError(
            f"answers of up to {options.max_new_tokens} tokens leave fewer than {_LEAST_PROMPT} of {most} for the dialogue. "
            "Lower --max-new-tokens."
        )


def answer_contexts(
    model: LanguageModel, contexts: Sequence[Context], options: DecodingOptions, nll: bool, progress: Progress
) -> list[AnsweredRow]:
    """Answer some contexts and measure the likelihood of their references.

    Args:
        model: a base, an expert or a mixture.
        contexts: what to answer.
        options: how.
        nll: whether to measure references.
        progress: is told of each batch.

    Returns:
        One row a context, in their order.
    """
    prompts: list[Prompt] = []
    refused: dict[str, str] = {}
    cut: set[str] = set()
    for context in contexts:
        try:
            tokens, cut_turns = model.renderer.prompt(context.context, options.max_new_tokens)
        except RowRefused as error:
            refused[context.id] = error.reason
            progress.add(1, 0)
            continue
        prompts.append(Prompt(context.id, tokens))
        if cut_turns:
            cut.add(context.id)
    with within_memory("use a smaller --batch-size."):
        decoded = answer(model, prompts, options, progress.add)
        measured, unmeasured = _references(model, contexts, options.batch_size) if nll else ({}, {})
    answers = {
        prompt.id: {"answer": model.renderer.text(one.tokens), "tokens": len(one.tokens), "finish": one.finish}
        for prompt, one in zip(prompts, decoded, strict=True)
    }
    rows = []
    for context in contexts:
        likelihood, count = measured.get(context.id, (None, None))
        row = {
            "id": context.id,
            "dialogue_id": context.dialogue_id,
            "context": [{"role": turn.role, "text": turn.text} for turn in context.context],
            "reference": context.reference,
            **answers.get(context.id, {"answer": "", "tokens": 0, "finish": "refused"}),
            "nll": likelihood,
            "nll_tokens": count,
        }
        rows.append(AnsweredRow(row, context.id in cut, refused.get(context.id), unmeasured.get(context.id)))
    return rows


def _references(
    model: LanguageModel, contexts: Sequence[Context], batch_size: int
) -> tuple[dict[str, tuple[float, int]], dict[str, str]]:
    """Nats and tokens of each reference by id; and why others were not measured."""
    rows: list[Row] = []
    refused: dict[str, str] = {}
    for context in contexts:
        if context.reference is None:
            continue
        try:
            rendered = model.renderer.render(context)
        except RowRefused as error:
            refused[context.id] = error.reason
            continue
        tokens = np.array([*rendered.prompt, *rendered.response], np.int32)
        rows.append(Row(context.id, tokens, len(rendered.prompt)))
    batches = Rows(rows, model.renderer.pad_id, {}, 0)
    order = np.argsort(-batches.lengths, kind="stable")
    found: dict[str, tuple[float, int]] = {}
    with torch.inference_mode():
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size].tolist()
            batch = {name: tensor.to(model.device) for name, tensor in batches.collate(chosen).items()}
            nll, counts = response_nll(model.model, **batch, share=True)
            for index, value, count in zip(chosen, nll.tolist(), counts.tolist(), strict=True):
                found[rows[index].id] = (round(value, 4), count)
    return found, refused
