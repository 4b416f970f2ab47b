"""The card of a mixture: what it is, what its router learnt and does, and what it must not be used for."""

import math

from efficient_empathy.moe.artifact import Mixture


def mixture_card(mixture: Mixture, name: str) -> str:
    """Markdown of a mixture's README."""
    data, result, routing, router = mixture.data, mixture.result, mixture.routing, mixture.router
    before, after = result["start_val_nll"], result["val_nll"]
    start = "the uniform mixture" if router["init"] == "zeros" else "the router's prototypes"
    chosen = "all" if router["top_k"] is None else router["top_k"]
    shares = "\n".join(
        f"| layer {layer} | {' | '.join(f'{share:.3f}' for share in of.values())} |"
        for layer, of in routing["layers"].items()
    )
    names = " | ".join(f"`{expert['name']}`" for expert in mixture.experts)
    overall = " | ".join(f"{share:.3f}" for share in routing["mean_gate"].values())
    return f"""# {name}

A mixture of {len(mixture.experts)} LoRA experts on `{mixture.base["name"]}`. Base and experts are frozen; a router of
{result["trained_parameters"]:,} parameters weighs the experts. Load it with `ee-cli generate --model {name}`.

| | |
| --- | --- |
| base, SHA-256 | `{mixture.base["digest"]}` |
| experts | {", ".join(f"`{e['name']}` ({e['adapter'][:12]}…)" for e in mixture.experts)} |
| routed | sites `{router["sites"]}`, granularity `{router["granularity"]}`, experts at a time: {chosen} |
| router began at | {router["init"]} |
| trained on | {data["examples"]:,} examples ({mixture.options["data_control"]}) of {", ".join(f"`{x}`" for x in data["from"])} |
| regulariser | {mixture.options["balance"]["regulariser"]} |
| steps | {result["steps"]} of {result["planned_steps"]}; the best was {result["best_step"]} |
| seed | {mixture.options["seed"]} |

On {data["measured"]:,} examples of conversations that were not trained on, the negative log-likelihood of a response token is
{after:.4f} nats (perplexity {math.exp(after):.2f}); {start} has {before:.4f} ({math.exp(before):.2f}).
The step was chosen on these examples, so judge it on others: `ee-cli generate`, `ee-cli evaluate`.

## What the router does

On {routing["rows"]:,} held-out examples: {routing["verdict"]}. Entropy of a token's gates: {routing["entropy"]:.3f} nats,
{routing["entropy_share"]:.0%} of the most there can be; entropy of the mean gates {routing["entropy_of_mean"]:.3f}.

| mean gate | {names} |
| --- |{" --- |" * len(mixture.experts)}
| all | {overall} |
{shares}

The licences of the base and of the training data apply. It imitates what people wrote: nothing it says is advice, and it must not
stand alone where somebody is in distress.
"""
