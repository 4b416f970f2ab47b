"""``train-moe``: from experts to a mixture, by training a router."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.artifact import LOG_FILE, base_of, renderer_of
from efficient_empathy.experts.bases import load_base
from efficient_empathy.experts.batches import Rows
from efficient_empathy.experts.fitting import (
    SAVE_SECONDS,
    Prepared,
    Run,
    data_facts,
    fit_module,
    prepare_rows,
    result_facts,
)
from efficient_empathy.experts.models import choose_device
from efficient_empathy.experts.subsets import Chosen, choose, some
from efficient_empathy.manifest import read_origin
from efficient_empathy.moe.adapters import Adapter, read_adapters
from efficient_empathy.moe.artifact import Mixture, write_mixture
from efficient_empathy.moe.card import mixture_card
from efficient_empathy.moe.module import MixtureModule
from efficient_empathy.moe.options import MixtureOptions
from efficient_empathy.moe.prototypes import start_at_prototypes
from efficient_empathy.moe.router import Router, attach
from efficient_empathy.moe.seeing import read_routings, report

_log = logging.getLogger(__name__)
_PROTOTYPE_ROWS = 64
"""Examples of a subset that its mean hidden state is taken of."""


@dataclass(frozen=True)
class MixtureRequest:
    """What ``ee-cli train-moe`` was asked for."""

    experts: tuple[Path, ...]
    """Expert folders, two or more; their order is that of the gates."""
    data: tuple[str, ...]
    """Subset folders; one of each expert, in their order, for prototypes and for what the gates are measured by."""
    out: Path
    """The mixture folder to write."""
    options: MixtureOptions = field(default_factory=MixtureOptions)
    """How to train."""
    save_seconds: float = SAVE_SECONDS
    """Seconds between the checkpoints that a killed run goes on from."""


@dataclass(frozen=True)
class PreparedMixture:
    """Everything of a training, with the router at its beginning."""

    rows: Prepared
    adapters: list[Adapter]
    router: Router
    subsets: list[Chosen]
    """Examples of each data folder by itself."""
    prior: tuple[float, ...]
    """Share of each expert."""
    holdout: float
    """Share of the conversations that nothing was trained on."""


def train_mixture(request: MixtureRequest) -> Mixture | None:
    """Train a router over experts and write the mixture's folder.

    Run again after a kill, it goes on from the last checkpoint, step for step as if it had not been killed.

    Returns:
        What the folder says of the mixture; None in all but one of the processes of several devices.

    Raises:
        EmpathyError: the folder exists already, the experts do not fit each other, or there is nothing to train on.
    """
    if request.out.exists():
        raise EmpathyError(f"'{request.out}' is already there. Choose another folder with -o, or remove it first.")
    prepared = prepare_mixture(request)
    options, router, model = request.options, prepared.router, prepared.rows.model
    run = Run(request.out, options, request.save_seconds, tuple(adapter.digest for adapter in prepared.adapters))
    module = MixtureModule(model, router, options, prepared.prior)
    best, first = fit_module(run, prepared.rows, module)
    if not first:
        return None  # another device's process measures and writes it
    module.to(choose_device(options.where.device))  # after a training Lightning leaves it on the CPU
    measured = [held_out_rows(prepared, chosen, options) for chosen in prepared.subsets]
    routing = report(router, [read_routings(model, router, rows, options.fit.batch_size) for rows in measured])
    result = result_facts(prepared.rows, module, best)
    result["start_val_nll"] = result.pop("base_val_nll")
    result["expert_parameters"] = {adapter.name: adapter.parameters for adapter in prepared.adapters}
    described = asdict(options)
    mixture = Mixture(
        base=prepared.rows.base.describe(),
        renderer=prepared.rows.renderer.describe(),
        experts=[_named(adapter) for adapter in prepared.adapters],
        router=described.pop("router"),
        options=described,
        data={**data_facts(request.data, prepared.rows), "holdout": prepared.holdout},
        result=result,
        routing=asdict(routing),
    )
    card = mixture_card(mixture, request.out.name)
    write_mixture(router, mixture, prepared.adapters, card, request.out, run.work / LOG_FILE)
    shutil.rmtree(run.work)
    return mixture


def prepare_mixture(request: MixtureRequest) -> PreparedMixture:
    """Read experts and data; load the base and put experts and a fresh router on it.

    Raises:
        EmpathyError: the experts do not fit each other or the options, or there is nothing to train on.
    """
    options, count = request.options, len(request.experts)
    options.router.check(count)
    options.balance.check(count, options.router.top_k)
    adapters = read_adapters(request.experts)
    holdout = _holdout(adapters, options)
    chosen = choose(request.data, "full" if options.data_control == "full" else "none", holdout, options.seed)
    subsets = [choose([name], "none", holdout, options.seed) for name in request.data]
    base = base_of(adapters[0].expert.base, options.base, adapters[0].folder)
    model, tokenizer = load_base(base, choose_device(options.where.device), options.where.four_bit)
    renderer = renderer_of(adapters[0].expert.renderer, tokenizer, adapters[0].folder)
    model.config.use_cache = False
    router = attach(model, adapters, options.router)
    if options.fit.gradient_checkpointing:
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": router.kept}
        )
    rows = prepare_rows(base, chosen, model, renderer, options)
    if options.router.init == "prototypes":
        _paired(request, "--init prototypes takes the mean hidden state of each expert's subset")
        _log.info("prototypes: reading up to %d examples of each subset", _PROTOTYPE_ROWS)
        start_at_prototypes(model, router, [Rows.render(some(one.train, _PROTOTYPE_ROWS), renderer) for one in subsets])
    return PreparedMixture(rows, adapters, router, subsets, _prior(request, subsets), holdout)


def held_out_rows(prepared: PreparedMixture, chosen: Chosen, options: MixtureOptions) -> Rows:
    """Held-out examples of one subset, as many at most as are measured during training."""
    return Rows.render(some(chosen.held_out, options.validation_examples), prepared.rows.renderer)


def _named(adapter: Adapter) -> dict[str, str]:
    origin = read_origin(adapter.folder)
    return {"name": adapter.name, "adapter": adapter.digest, **({"origin": origin} if origin else {})}


def _holdout(adapters: Sequence[Adapter], options: MixtureOptions) -> float:
    """The share held out; every conversation in it was held out from the experts too, since a smaller share is part of a larger."""
    least = min(adapter.expert.options["holdout"] for adapter in adapters)
    if options.holdout is not None and options.holdout > least:
        raise EmpathyError(
            f"--holdout {options.holdout:g} is more than the experts' own ({least:g}): they have seen some of it, so it would not "
            "measure the mixture. Leave it out."
        )
    return float(options.holdout or least)


def _prior(request: MixtureRequest, subsets: Sequence[Chosen]) -> tuple[float, ...]:
    balance, count = request.options.balance, len(request.experts)
    if balance.prior is not None:
        return balance.prior
    if balance.regulariser == "kl-prior":
        _paired(request, "the prior is the size of each expert's subset unless --prior says another")
    return tuple(float(len(one.train)) for one in subsets) if len(subsets) == count else (1.0,) * count


def _paired(request: MixtureRequest, why: str) -> None:
    if len(request.data) != len(request.experts):
        raise EmpathyError(
            f"{why}: give one --data an expert, in the same order ({len(request.experts)} experts, {len(request.data)} given)."
        )


def facts(prepared: PreparedMixture) -> dict[str, Any]:
    """What a training would do, for ``--dry-run``."""
    rows = prepared.rows
    return {
        "experts": [adapter.name for adapter in prepared.adapters],
        "gates": len(prepared.router.names),
        "router_parameters": sum(parameter.numel() for parameter in prepared.router.parameters()),
        "examples": len(rows.train.rows),
        "held_out": len(rows.chosen.held_out),
        "refused": rows.train.refused,
        "steps": rows.steps,
    }
