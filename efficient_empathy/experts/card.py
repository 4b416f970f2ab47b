"""The card of an expert: what it is, what it learnt from, what was measured, and what it must not be used for."""

import math

from efficient_empathy.experts.artifact import Expert


def expert_card(expert: Expert, name: str) -> str:
    """Markdown of an expert's README."""
    data, result, options = expert.data, expert.result, expert.options
    fall = 100 * (1 - result["val_nll"] / result["base_val_nll"])
    control = "" if options["control"] == "none" else f" (control: {options['control']})"
    lora, fit = options["lora"], options["fit"]
    refused = ", ".join(f"{count} {reason}" for reason, count in data["refused"].items()) or "none"
    steps = f"{result['steps']} of {result['planned_steps']}, {fit['batch_size']} × {fit['accumulate']} examples each"
    before, after = result["base_val_nll"], result["val_nll"]
    direction = "down" if fall >= 0 else "up"
    return f"""# {name}

A LoRA adapter on `{expert.base["name"]}`, tuned on the responses of {data["examples"]:,} dialogue examples from
{", ".join(f"`{item}`" for item in data["from"])}{control}. Load it with PEFT: `PeftModel.from_pretrained(base_model, "{name}")`.

| | |
| --- | --- |
| base, SHA-256 | `{expert.base["digest"]}` |
| examples read | {", ".join(f"{count:,} {folder}" for folder, count in data["read"].items())} |
| trained on | {data["examples"]:,} examples, {data["supervised_tokens"]:,} supervised of {data["tokens"]:,} tokens |
| refused | {refused} |
| with cut context | {data["cut"]:,} |
| adapter | rank {lora["rank"]}, alpha {lora["alpha"]:g}, dropout {lora["dropout"]:g} |
| its parameters | {result["trained_parameters"]:,}, beside {result["base_parameters"]:,} of the base |
| steps | {steps}; the best was {result["best_step"]} |
| seed | {options["seed"]} |
| prompt template, SHA-256 | `{expert.renderer["template_hash"]}` |

On {data["measured"]:,} examples of conversations that were not trained on, the negative log-likelihood of a response token
is {after:.3f} nats (perplexity {math.exp(after):.1f}); the base has {before:.3f} ({math.exp(before):.1f}), so it goes
{direction} by {abs(fall):.1f} %.
The step was chosen on these examples, so judge the adapter on others: `ee-cli generate`, `ee-cli evaluate`.
That the responses of a subset have become likelier does not say that answers have become better; compare with
`--control random`, trained on as many examples drawn from everything.

The licence of the base and that of the training data apply. It imitates what people wrote: nothing it says is advice,
and it must not stand alone where somebody is in distress.
"""
