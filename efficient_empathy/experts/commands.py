"""``ee-cli train-expert``."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from efficient_empathy.experts.artifact import Expert
from efficient_empathy.experts.options import (
    CONTROLS,
    DeviceOptions,
    ExpertOptions,
    FitOptions,
    LoraOptions,
)
from efficient_empathy.experts.rendering import Renderer
from efficient_empathy.manifest import json_text
from efficient_empathy.output_path import OutputPath

_Function = TypeVar("_Function", bound=Callable[..., Any])


def field_option(kind: type, name: str, flag: str, help_text: str, **more: Any) -> Callable[[_Function], _Function]:
    """An option with the default that the options object has."""
    default = next(field.default for field in dataclasses.fields(kind) if field.name == name)
    if isinstance(default, bool):
        return click.option(flag, name, is_flag=True, help=help_text)
    return click.option(flag, name, default=default, help=help_text, show_default=default is not None, **more)


def training_options(fit: type[FitOptions] = FitOptions) -> Callable[[_Function], _Function]:
    """The options that every training of a language model has, with the defaults of a kind of ``FitOptions``."""
    options = [
        field_option(fit, "epochs", "--epochs", "Passes over the examples.", type=float),
        field_option(fit, "max_steps", "--max-steps", "Optimiser steps at most.", type=int),
        field_option(fit, "batch_size", "--batch-size", "Examples at once, on each device."),
        field_option(fit, "accumulate", "--accumulate", "Batches a step."),
        field_option(fit, "learning_rate", "--learning-rate", "Peak rate.", type=float),
        field_option(fit, "weight_decay", "--weight-decay", "AdamW's.", type=float),
        field_option(fit, "validations", "--validations", "How often held-out examples are measured."),
        field_option(fit, "patience", "--patience", "Measurements without a better one before it stops; 0 never."),
        field_option(
            fit,
            "gradient_checkpointing",
            "--gradient-checkpointing",
            "Less memory, a third slower (non-re-entrant).",
        ),
        field_option(
            DeviceOptions, "device", "--device", "Where to train.", type=click.Choice(["auto", "cpu", "cuda"])
        ),
        field_option(DeviceOptions, "devices", "--devices", "GPUs of this machine."),
        field_option(DeviceOptions, "strategy", "--strategy", "Lightning's strategy for several GPUs, e.g. ddp."),
        field_option(DeviceOptions, "four_bit", "--load-in-4bit", "Hold the base in 4 bits (GPU, bitsandbytes)."),
        field_option(ExpertOptions, "seed", "--seed", "First weights, order, dropout, controls."),
    ]

    def decorate(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.command("train-expert")
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="DIR",
    help="A subset folder of `ee-cli filter`, or files, globs, URLs of dialogues. May be repeated.",
)
@click.option("-o", "--out", type=OutputPath(), required=True, help="Expert folder to write.")
@field_option(ExpertOptions, "base", "--base", "smollm2, a Hub id, a folder with safetensors, or a .gguf file.")
@field_option(
    ExpertOptions,
    "control",
    "--control",
    "Same steps and seed on other data: as many examples from all subsets, all of them, or all but the discarded.",
    type=click.Choice(CONTROLS),
)
@field_option(ExpertOptions, "system", "--system", "Instruction before every dialogue.")
@field_option(
    ExpertOptions, "max_tokens", "--max-length", "Tokens of prompt and response; the oldest context goes first."
)
@field_option(ExpertOptions, "holdout", "--holdout", "Share of conversations never trained on.", type=float)
@field_option(ExpertOptions, "validation_examples", "--validation-examples", "Held-out examples measured, at most.")
@field_option(LoraOptions, "rank", "--lora-rank", "Rank of the adapter.")
@field_option(LoraOptions, "alpha", "--lora-alpha", "Its weight is alpha / rank.", type=float)
@field_option(LoraOptions, "dropout", "--lora-dropout", "Dropout before it.", type=float)
@field_option(LoraOptions, "dora", "--dora", "DoRA: length and direction apart.")
@field_option(LoraOptions, "rslora", "--rslora", "rsLoRA: alpha / √rank.")
@training_options()
@click.option(
    "--show-batch",
    type=int,
    default=0,
    metavar="N",
    help="Print N examples as tokens, what is not learnt dimmed; stop.",
)
@click.option("--dry-run", is_flag=True, help="Print examples, tokens and steps, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train_expert_command(
    data: tuple[str, ...], out: Path, show_batch: int, dry_run: bool, as_json: bool, **values: Any
) -> None:
    """Tune a LoRA adapter on the responses of a subset.

    Loss on the response alone, its end included. Killed and run again, it goes on from its last checkpoint, step for
    step as if it had not been. A subset is only better than another if it beats a control: see --control.
    """
    from efficient_empathy.experts.training import ExpertRequest, prepare, train_expert

    request = ExpertRequest(data, out, expert_options(values))
    if show_batch or dry_run:
        prepared = prepare(request)
        if show_batch:
            indices = (index for step in prepared.plan.steps(prepared.steps) for batch in step for index in batch)
            for index in itertools.islice(indices, show_batch):
                row = prepared.train.rows[index]
                click.echo(_colored(prepared.renderer, row.tokens.tolist(), row.start))
        plan = prepared.plan
        rows = prepared.steps * plan.batch_size * plan.accumulate * plan.ranks
        tokens = round(float(prepared.train.lengths.mean()) * rows)
        facts = {
            "examples": len(prepared.train.rows),
            "held_out": len(prepared.chosen.held_out),
            "refused": prepared.train.refused,
            "rejected": prepared.chosen.rejected,
            "cut": prepared.train.cut,
            "steps": prepared.steps,
            "tokens": tokens,
        }
        click.echo(json_text(facts) if as_json else _facts_text(facts))
        return
    expert = train_expert(request)
    if expert is None:
        return  # another process says it
    click.echo(json_text(dataclasses.asdict(expert)) if as_json else _expert_text(expert, out))


def expert_options(values: dict[str, Any]) -> ExpertOptions:
    """Options objects from the values of the flags."""
    parts = {
        name: built(kind, values)
        for name, kind in (("lora", LoraOptions), ("fit", FitOptions), ("where", DeviceOptions))
    }
    options: ExpertOptions = built(ExpertOptions, values, **parts)
    return options


def built(kind: Any, values: dict[str, Any], **more: Any) -> Any:
    """An options object from those values of the flags that are its fields."""
    names = {field.name for field in dataclasses.fields(kind)} - more.keys()
    return kind(**{name: value for name, value in values.items() if name in names}, **more)


def _facts_text(facts: dict[str, Any]) -> str:
    rejected = sum(facts["rejected"].values())
    refused = ", ".join(f"{count} {reason}" for reason, count in facts["refused"].items())
    return "\n".join(
        [
            f"examples     {facts['examples']} to train on, {facts['held_out']} held out",
            f"refused      {refused or 'none'}; {rejected} rows could not be read",
            f"cut          {facts['cut']} lose their oldest context",
            f"steps        {facts['steps']}, about {facts['tokens']} tokens",
        ]
    )


def _expert_text(expert: Expert, out: Path) -> str:
    data, result = expert.data, expert.result
    before, after = result["base_val_nll"], result["val_nll"]
    fall = 100 * (1 - after / before)
    return "\n".join(
        [
            f"expert       {out}",
            f"trained on   {data['examples']} examples, {result['steps']} steps",
            f"held out     {before:.4f} → {after:.4f} nats a token ({-fall:+.1f} %), at step {result['best_step']}",
            f"parameters   {result['trained_parameters']} of {result['base_parameters']}",
        ]
    )


def _colored(renderer: Renderer, tokens: list[int], start: int) -> str:
    """A row as text: what is not learnt dimmed, learnt tokens set apart by `·`."""
    words = [renderer.tokenizer.decode([token]) for token in tokens]
    shown = click.style("".join(words[:start]), dim=True)
    return shown + "·".join(click.style(word, fg="green", bold=True) for word in words[start:]) + "\n"
