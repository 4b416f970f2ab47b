"""The model card: what a scorer was trained on and how good it is, as ``README.md`` in its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efficient_empathy.manifest import write_atomic
from efficient_empathy.scorer.artifact import ScorerSpec
from efficient_empathy.selection.report import quality_table


def write_card(folder: Path, spec: ScorerSpec, manifest: Mapping[str, Any]) -> None:
    """Write ``README.md`` into a scorer folder.

    Args:
        folder: the scorer folder.
        spec: what ``scorer.json`` says.
        manifest: what ``manifest.json`` will say, without the hashes.
    """
    parts = [_head(spec, manifest), _use(spec), _data(manifest), _quality(spec), _parity(spec), _limits(spec)]
    write_atomic(folder / "README.md", ("\n\n".join(parts) + "\n").encode())


def _head(spec: ScorerSpec, manifest: Mapping[str, Any]) -> str:
    scales = ", ".join(f"{d.name} ({d.low:g} to {d.high:g})" for d in spec.dimensions)
    return (
        "# Scorer\n\n"
        f"Rates a listener's response in its context: {scales}. Distilled with efficient-empathy from "
        f"{manifest['labels']['examples']} judged examples, starting from the encoder "
        f"`{manifest['options']['backbone']}`, rubric `{spec.rubric['name']}`."
    )


def _use(spec: ScorerSpec) -> str:
    return (
        "## Use\n\n```python\nfrom efficient_empathy import Scorer, read_dialogues\n"
        "from efficient_empathy.dialogues import examples_of\n\n"
        'scorer = Scorer.load("this folder")\n'
        'examples = [e for d in read_dialogues(["raw.jsonl"]) for e in examples_of(d)]\n'
        f"scores = scorer.score(examples)  # columns: {', '.join(d.name for d in spec.dimensions)}\n```\n\n"
        "Or for whole files: `ee-cli filter --scorer THIS-FOLDER raw.jsonl -o subsets/`."
    )


def _data(manifest: Mapping[str, Any]) -> str:
    labels = manifest["labels"]
    lines = [
        "## Training data\n",
        f"- {labels['trained_on']} labelled examples trained on, {labels['held_out']} held out; no conversation is on both sides.",
    ]
    if rated := manifest["training"].get("rated_pool_examples"):
        lines.append(f"- {rated} unlabelled examples, rated by {manifest['training']['teachers']} teachers.")
    if file := labels.get("file"):
        lines.append(f"- Label file: `{file['name']}`, SHA-256 `{file['sha256']}`.")
    if asked := labels.get("asked"):
        cost = "not known" if asked["usd"] is None else f"{asked['usd']:.4f} dollars"
        lines.append(f"- Judge: `{labels['judge']}`; cost of the labels: {cost}.")
    lines.append(
        "- The licence of the data and of the labels binds whoever passes this scorer on; it is not stated here."
    )
    return "\n".join(lines)


def _quality(spec: ScorerSpec) -> str:
    quality = spec.quality
    header, *rows = quality_table(quality)
    table = [" | ".join(header), " | ".join("---" for _ in header), *(" | ".join(row) for row in rows)]
    # Its teacher was chosen and calibrated on all of these rows.
    fast = "; the fast tier's teacher was chosen on all of them, which may flatter it" if "fast" in spec.tiers else ""
    return (
        "## Agreement with the judge\n\n"
        f"On {quality['rows']} held-out examples of {quality['conversations']} conversations; in brackets the 95 % interval "
        f"(bootstrap over conversations). Decision: {quality['decision']}. Epoch and calibration were chosen on one half of "
        f"these rows and measured on the other, both ways round{fast}.\n\n" + "\n".join(f"| {line} |" for line in table)
    )


def _parity(spec: ScorerSpec) -> str:
    fp32, int8 = spec.parity["fp32"], spec.parity["int8"]
    lines = [
        "## Files\n",
        f"- fp32: at most {fp32['largest_difference']:.1e} from torch on {fp32['rows']} rows.",
    ]
    figures = (
        f"Spearman with fp32 {min(int8['spearman']):.4f}, {100 * int8['flips']:.2f} % of decisions flip, a row's score moves "
        f"by at most {int8['batch_effect']:.1e} with its batch mates, on {int8['rows']} rows"
    )
    if int8["passed"]:
        lines.append(f"- int8: {figures}; {len(int8['kept_fp32'])} matrix products stay in fp32.")
    else:
        lines.append(f"- int8 was left out, since it failed the parity gate: {figures}.")
    if half := spec.parity.get("fp16"):
        moved = half["largest_difference"]
        lines.append(
            f"- fp16, for GPUs: at most {moved:.1e} from fp32 on {half['rows']} rows, rounding emulated on a CPU."
            if half["passed"]
            else "- fp16 was left out, since it failed the parity gate."
        )
    if fast := spec.parity.get("fast"):
        lines.append(
            f"- fast tier, a model of hashed n-grams that learnt the transformer's scores of {fast['learnt_from']} unlabelled "
            f"examples: Spearman with them {min(fast['spearman']):.3f}, {100 * fast['flips']:.1f} % of decisions differ, on "
            f"{fast['rows']} others. `--tier cascade` sends the rows it is not sure of to the transformer."
        )
    return "\n".join(lines)


def _limits(spec: ScorerSpec) -> str:
    return (
        "## Limits\n\n"
        "The scores imitate one judge on dialogues like those it was shown; they are not a measure of empathy as people feel "
        "it. Look at some rows of each subset before training on them, and at other kinds of dialogue before trusting it there. "
        f"Only the last {spec.encoding.max_tokens} tokens of an example are read."
    )
