"""A plain PEFT adapter from a mixture, for those who need one: each gate fixed at its mean, and what that costs."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.artifact import ADAPTER_FILES, CARD_FILE, EXPERT_FILE, Expert, attach_expert
from efficient_empathy.experts.artifact import KIND as EXPERT
from efficient_empathy.experts.batches import Rows
from efficient_empathy.experts.subsets import choose
from efficient_empathy.manifest import atomic_folder, pretty_json, versions, write_atomic, write_manifest
from efficient_empathy.moe.adapters import PREFIX, Adapter, read_adapters
from efficient_empathy.moe.artifact import EXPERTS_FOLDER, Mixture, load_mixture, read_mixture
from efficient_empathy.moe.measuring import conversations, paired, row_nll
from efficient_empathy.moe.options import RouterOptions
from efficient_empathy.moe.router import gate_name, is_routed, pairs_of


def merge_mixture(
    folder: Path, data: Sequence[str], out: Path, given_base: str | None = None, device: str = "cpu"
) -> Expert:
    """Write an adapter with the experts' ranks side by side, each weighted by its mean gate; and measure it.

    It is an expert folder: PEFT loads it, and so does everything here that takes an expert.

    Args:
        folder: of a mixture.
        data: subset folders; their held-out conversations say what is lost.
        out: the folder to write.
        given_base: where the base is, if not where it was.
        device: a torch device.

    Raises:
        EmpathyError: the folder exists already, a file of the mixture has changed, or nothing is held out.
    """
    if out.exists():
        raise EmpathyError(f"'{out}' is already there. Choose another folder with -o, or remove it first.")
    mixture, digest = read_mixture(folder)
    adapters = read_adapters([folder / EXPERTS_FOLDER / expert["name"] for expert in mixture.experts])
    expert = Expert(
        base=mixture.base,
        renderer=mixture.renderer,
        options={
            "control": "merge",
            "seed": mixture.options["seed"],
            "holdout": mixture.data["holdout"],
            "router": digest,
        },
        data=mixture.data,
        result={},
    )
    with atomic_folder(out) as temporary:
        rank = _write_adapter(adapters, mixture, temporary)
        _write_rest(expert, "", temporary)
        expert.result.update(rank=rank, **_measured(folder, temporary, mixture, data, (given_base, device)))
        _write_rest(expert, _card(expert, mixture, out.name), temporary)
    return expert


def merged_pairs(adapters: Sequence[Adapter], mixture: Mixture) -> dict[str, tuple[Tensor, Tensor]]:
    """Each linear's A (rank, in) and B (out, rank), the experts' one beside the other, B times scale and mean gate."""
    options, sites = RouterOptions(**mixture.router), mixture.routing["sites"]
    uniform = [1 / len(adapters)] * len(adapters)
    found = {}
    for name in dict.fromkeys(name for adapter in adapters for name in adapter.pairs):
        shares = sites[gate_name(name, options)] if is_routed(name, options.sites) else uniform
        pairs = pairs_of(adapters, name)
        b = torch.cat([share * b for share, (_, b) in zip(shares, pairs, strict=True)], 1)
        found[name] = (torch.cat([a for a, _ in pairs]), b)
    return found


def _write_adapter(adapters: Sequence[Adapter], mixture: Mixture, folder: Path) -> int:
    """Write what PEFT reads; ranks that differ are filled up with zeros, since it has one for all."""
    from peft import LoraConfig

    pairs = merged_pairs(adapters, mixture)
    rank = max(len(a) for a, _ in pairs.values())
    tensors = {}
    for name, (a, b) in pairs.items():
        missing = rank - len(a)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, missing)).contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.nn.functional.pad(b, (0, missing)).contiguous()
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=sorted(pairs),
        task_type="CAUSAL_LM",
        base_model_name_or_path=mixture.base["given"],
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    write_atomic(folder / ADAPTER_FILES[1], save(tensors))
    return rank


def _write_rest(expert: Expert, card: str, folder: Path) -> None:
    write_atomic(folder / EXPERT_FILE, pretty_json(asdict(expert)))
    write_atomic(folder / CARD_FILE, card.encode())
    write_manifest(folder, EXPERT, {"versions": versions("torch", "peft")}, [*ADAPTER_FILES, EXPERT_FILE, CARD_FILE])


def _measured(
    folder: Path, merged: Path, mixture: Mixture, data: Sequence[str], where: tuple[str | None, str]
) -> dict[str, Any]:
    """Held-out nats a token of both, and the difference."""
    examples = choose(data, "none", mixture.data["holdout"], mixture.options["seed"]).held_out
    routed = load_mixture(folder, *where)
    rows = Rows.render(examples, routed.renderer)
    if not rows.rows:
        raise EmpathyError(
            f"{', '.join(data)}: no conversation is held out, so what is lost cannot be measured. Give more --data."
        )
    nll: dict[str, np.ndarray] = {"routed": row_nll(routed.model, rows)}
    del routed
    nll["merged"] = row_nll(attach_expert(merged, *where)[0], rows)
    figures, differences = paired(nll, rows, conversations(rows, examples), "routed")
    return {
        "rows": len(rows.rows),
        "val_nll": figures["merged"].value,
        "routed_val_nll": figures["routed"].value,
        "difference": asdict(differences["merged"]),
    }


def _card(expert: Expert, mixture: Mixture, name: str) -> str:
    result, difference = expert.result, expert.result["difference"]
    return f"""# {name}

A LoRA adapter of rank {result["rank"]} on `{expert.base["name"]}`: {len(mixture.experts)} experts
({", ".join(f"`{e['name']}`" for e in mixture.experts)}) side by side, each linear's weighted by the mean of the mixture's gates.
Load it with PEFT: `PeftModel.from_pretrained(base_model, "{name}")`.

It no longer routes. On {result["rows"]:,} held-out examples the negative log-likelihood of a response token is
{result["val_nll"]:.4f} nats; the mixture that it was made from has {result["routed_val_nll"]:.4f}. The difference is
{difference["value"]:+.4f}, 95 % interval {difference["low"]:+.4f} to {difference["high"]:+.4f} over conversations.

The licences of the base and of the training data apply. It imitates what people wrote: nothing it says is advice, and it must not
stand alone where somebody is in distress.
"""
