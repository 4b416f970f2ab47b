"""``ee-cli train-moe`` and ``merge-moe``."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import click

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.commands import built, field_option, training_options
from efficient_empathy.experts.options import DeviceOptions
from efficient_empathy.manifest import json_text
from efficient_empathy.moe.options import (
    BalanceOptions,
    DataControl,
    Granularity,
    Init,
    MixtureOptions,
    Regulariser,
    RouterFit,
    RouterOptions,
    Sites,
)
from efficient_empathy.output_path import OutputPath


@click.command("train-moe")
@click.option(
    "--expert",
    "--experts",
    "experts",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="An expert folder of `ee-cli train-expert`. Repeat it: two or more.",
)
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="DIR",
    help="A subset folder of `ee-cli filter`. Repeat it: that of each expert, in their order.",
)
@click.option("-o", "--out", type=OutputPath(), required=True, help="Mixture folder to write.")
@field_option(MixtureOptions, "base", "--base", "Where the experts' base is now, if it was moved.")
@field_option(
    MixtureOptions,
    "data_control",
    "--data-control",
    "Train on these subsets together, or on all of their run, as the paper did.",
    type=click.Choice(get_args(DataControl)),
)
@field_option(
    RouterOptions,
    "sites",
    "--sites",
    "Linears with a gate: those outside of attention (the paper), or all.",
    type=click.Choice(get_args(Sites)),
)
@field_option(
    RouterOptions,
    "granularity",
    "--granularity",
    "A gate a linear, a gate a layer, or one for a whole answer from its prompt.",
    type=click.Choice(get_args(Granularity)),
)
@field_option(RouterOptions, "top_k", "--top-k", "Experts at a time, from three experts; without, all.", type=int)
@field_option(
    RouterOptions,
    "init",
    "--init",
    "Begin at the uniform mixture, or at the subsets' mean hidden states.",
    type=click.Choice(get_args(Init)),
)
@field_option(
    BalanceOptions,
    "regulariser",
    "--regulariser",
    "What the gates are asked for beside a low loss.",
    type=click.Choice(get_args(Regulariser)),
)
@field_option(BalanceOptions, "weight", "--regulariser-weight", "What it is multiplied by.", type=float)
@click.option(
    "--prior", default=None, metavar="A,B,…", help="Share of each expert, for kl-prior.  [default: subset sizes]"
)
@field_option(MixtureOptions, "holdout", "--holdout", "Share never trained on; at most the experts' own.", type=float)
@field_option(MixtureOptions, "validation_examples", "--validation-examples", "Held-out examples measured, at most.")
@training_options(RouterFit)
@click.option("--dry-run", is_flag=True, help="Print experts, gates, examples and steps, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train_moe_command(
    experts: tuple[Path, ...], data: tuple[str, ...], out: Path, dry_run: bool, as_json: bool, **values: Any
) -> None:
    """Train a router that weighs frozen experts, token by token.

    Base and experts stay as they are, bit for bit. Killed and run again, it goes on from its last checkpoint. It says
    whether the router learnt to tell the subsets apart.
    """
    from efficient_empathy.moe.training import MixtureRequest, facts, prepare_mixture, train_mixture

    request = MixtureRequest(experts, data, out, mixture_options(values))
    if dry_run:
        found = facts(prepare_mixture(request))
        click.echo(
            json_text(found) if as_json else "\n".join(f"{name.replace('_', ' '):<18}{found[name]}" for name in found)
        )
        return
    mixture = train_mixture(request)
    if mixture is None:
        return  # another process says it
    click.echo(json_text(dataclasses.asdict(mixture)) if as_json else _text(dataclasses.asdict(mixture), out))


@click.command("merge-moe")
@click.argument("mixture", type=click.Path(path_type=Path))
@click.option(
    "--data", multiple=True, required=True, metavar="DIR", help="Subset folders; their held-out rows are measured."
)
@click.option("-o", "--out", type=OutputPath(), required=True, help="Adapter folder to write.")
@click.option("--base", default=None, help="Where the base is now, if it was moved.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def merge_moe_command(
    mixture: Path, data: tuple[str, ...], out: Path, base: str | None, device: str, as_json: bool
) -> None:
    """Make a plain PEFT adapter of MIXTURE: every gate fixed at its mean. Says what that costs on held-out rows."""
    from efficient_empathy.experts.models import choose_device
    from efficient_empathy.moe.merging import merge_mixture

    result = merge_mixture(mixture, data, out, base, choose_device(device)).result
    if as_json:
        click.echo(json_text(result))
        return
    less = result["difference"]
    click.echo(
        f"adapter      {out}, rank {result['rank']}\n"
        f"held out     {result['val_nll']:.4f} nats a token; routed {result['routed_val_nll']:.4f}\n"
        f"difference   {less['value']:+.4f} [{less['low']:+.4f}, {less['high']:+.4f}] on {result['rows']} rows"
    )


def mixture_options(values: dict[str, Any]) -> MixtureOptions:
    """Options objects from the values of the flags.

    Raises:
        EmpathyError: a value is out of its range, or the prior is no list of numbers.
    """
    prior = values.pop("prior", None)
    kinds = {"router": RouterOptions, "fit": RouterFit, "where": DeviceOptions}
    parts = {name: built(kind, values) for name, kind in kinds.items()}
    balance = built(BalanceOptions, values, prior=None if prior is None else _shares(prior))
    options: MixtureOptions = built(MixtureOptions, values, **parts, balance=balance)
    return options


def _shares(prior: str) -> tuple[float, ...]:
    try:
        return tuple(float(share) for share in prior.split(","))
    except ValueError:
        raise EmpathyError(f"--prior: '{prior}' is no list of numbers such as 59,33.") from None


def _text(mixture: dict[str, Any], out: Path) -> str:
    data, result, routing = mixture["data"], mixture["result"], mixture["routing"]
    before, after = result["start_val_nll"], result["val_nll"]
    change = f"{100 * (after / before - 1):+.2f} %"
    shares = ", ".join(f"{share:.2f} {name}" for name, share in routing["mean_gate"].items())
    return "\n".join(
        [
            f"mixture      {out}",
            f"trained on   {data['examples']} examples, {result['steps']} steps",
            f"held out     {before:.4f} → {after:.4f} nats a token ({change}), at step {result['best_step']}",
            f"parameters   {result['trained_parameters']} of the router",
            f"mean gates   {shares}; a token's entropy is {routing['entropy_share']:.0%} of the most there can be",
            f"router       {routing['verdict']}",
        ]
    )
