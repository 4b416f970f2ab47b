"""The mixture against what it must beat: experts, unions, random data, the uniform merge, Arrow and hard routing.

    python benchmarks/mixture.py --subsets subsets/ --keep work/ [--seeds 0,1,2] [--steps 48] [--parts nll,speed,memory]
        [--leave-out "random subset"] [--shares natural --skip 100]
    python benchmarks/mixture.py --small --keep work/

``--subsets`` is what ``ee-cli filter`` made of the train conversations of EmpatheticDialogues. Base: SmolLM2-135M-Instruct,
or with ``--small`` a model of some thousand parameters and made-up rows, to see that everything runs. Each training takes as
many steps, from the same seed: the two experts together have seen twice as many rows as one LoRA on the union, and the mixture
those of its router's training besides. Hard routing by the scorer is an oracle, since the scorer saw the response. Each stage
is kept in ``--keep``: a killed run goes on.

nll      nats a token of held-out responses of both subsets that neither trained a model nor chose its best step
speed    greedy answers in batches of 16: the mixture's tokens a second over the base's, in turns
memory   bytes of parameters and buffers as loaded for answering, the mixture's over one expert's
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
from claims.over_seeds import mean_over_seeds, noise_of_one
from common import note_settings, read_result, run_command, write_result

from efficient_empathy.dialogues.types import Example
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.batches import Rows
from efficient_empathy.experts.decoding import Prompt, answer
from efficient_empathy.experts.decoding_options import DecodingOptions
from efficient_empathy.experts.models import LanguageModel, LoadOptions, load_language_model
from efficient_empathy.experts.statistics import draw
from efficient_empathy.experts.subsets import choose
from efficient_empathy.manifest import MANIFEST, sha256_bytes, sha256_file
from efficient_empathy.moe.measuring import conversations, paired, row_nll
from efficient_empathy.moe.seeing import read_routings, report
from efficient_empathy.moe.showing import router_of

SUBSETS = ("sensibility", "rationality")
MEASURED = 64
"""Held-out rows that choose each training's best step: none of them is tested on."""
CONTROLS = ("random subset", "union", "union of double rank")
BASELINES = ("sensibility", "rationality", "uniform merge", "union", "union of double rank")


class Bench:
    """Folders, options and the rows that are tested on."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.keep = options, options.keep
        self.seeds = [int(seed) for seed in options.seeds.split(",")]
        self.data = [str(options.subsets / name) for name in SUBSETS]
        self.nll_folder = self.keep / "nll"
        self.nll_folder.mkdir(parents=True, exist_ok=True)
        names = ("base", "steps", "router_learning_rate", "holdout")
        self.settings = {name: getattr(options, name) for name in names} | {"base": Path(options.base).name}
        subsets = sha256_file(options.subsets / MANIFEST)
        note_settings(self.keep, {**self.settings, "subsets": subsets})

    def test_examples(self) -> list[tuple[int, Example]]:
        """Held-out examples with the index of their subset."""
        held_out = [choose([name], "none", self.options.holdout, 0).held_out for name in self.data]
        found = []
        for place, examples in enumerate(held_out):
            ranked = sorted(examples, key=lambda example: sha256_bytes(example.id.encode()))
            rows = self.options.rows
            if self.options.shares == "natural":
                rows = round(rows * len(held_out) * len(examples) / sum(map(len, held_out)))
            found += [(place, example) for example in ranked[MEASURED + self.options.skip :][:rows]]
        return found

    def expert(self, name: str, seed: int, data: list[str], *arguments: str) -> Path:
        """An expert folder, trained unless it is there."""
        out = self.keep / f"{name}-{seed}"
        if not out.is_dir():
            given = [part for folder in data for part in ("--data", folder)]
            options = ["--base", str(self.options.base), "--holdout", str(self.options.holdout), *arguments]
            self._train(["train-expert", *given, *options, "-o", str(out)], out.name, seed)
        return out

    def mixture(self, seed: int, name: str = "mixture", *arguments: str) -> Path:
        """A mixture folder, trained unless it is there."""
        out = self.keep / f"{name}-{seed}"
        if not out.is_dir():
            experts = [self.expert(subset, seed, [folder]) for subset, folder in zip(SUBSETS, self.data, strict=True)]
            given = [part for folder in experts for part in ("--expert", str(folder))]
            given += [part for folder in self.data for part in ("--data", folder)]
            rate = ["--learning-rate", str(self.options.router_learning_rate)]
            self._train(["train-moe", *given, *rate, *arguments, "-o", str(out)], out.name, seed)
        return out

    def _train(self, arguments: list[str], name: str, seed: int) -> None:
        steps = ["--max-steps", str(self.options.steps), "--epochs", "100", "--validations", "2", "--patience", "0"]
        cost = run_command([*arguments, *steps, "--validation-examples", str(MEASURED), "--seed", str(seed)])
        path = self.keep / "costs.json"
        costs = json.loads(path.read_text()) if path.is_file() else {}
        costs[name] = {"seconds": round(cost.seconds, 1), "peak_mb": round(cost.peak_mb)}
        path.write_text(json.dumps(costs, indent=2) + "\n")

    def systems(self, seed: int) -> Iterator[tuple[str, str, Path | None]]:
        """Name, how it is measured, and folder, of each system of a seed; trains what is missing."""
        yield "base", "model", None
        for name, folder in zip(SUBSETS, self.data, strict=True):
            yield name, "model", self.expert(name, seed, [folder])
        double = ["--lora-rank", "16", "--lora-alpha", "64"]
        trainings = (
            ("random", self.data[:1], ["--control", "random"]),
            ("union", self.data, []),
            ("double", self.data, double),
        )
        for name, (folder, data, words) in zip(CONTROLS, trainings, strict=True):
            if name not in self.options.leave_out:
                yield name, "model", self.expert(folder, seed, data, *words)
        yield "mixture", "model", self.mixture(seed)
        yield "uniform merge", "uniform", self.mixture(seed)
        yield "arrow", "arrow", None


def nll(bench: Bench) -> dict:
    """Nats a token of all systems on the same rows, and differences with intervals over conversations."""
    tested = bench.test_examples()
    subset_of = {example.id: place for place, example in tested}
    examples = [example for _, example in tested]
    values: dict[str, list[np.ndarray]] = {}
    reports, failed = {}, {}
    rows = Rows.render(examples, load(bench, None).renderer)
    places = np.array([subset_of[row.id] for row in rows.rows])
    for seed in bench.seeds:
        found: dict[str, np.ndarray] = {}
        for name, how, folder in bench.systems(seed):
            try:
                found[name] = measured(bench, seed, (name, how, folder), rows)
            except (ImportError, ValueError, TypeError, RuntimeError) as error:
                if how != "arrow":
                    raise
                failed[name] = f"{type(error).__name__}: {error}"
        # What chose the subset saw the response itself: nobody could route like this when answering.
        found["hard routing by the scorer (oracle)"] = np.where(places == 0, found[SUBSETS[0]], found[SUBSETS[1]])
        reports[seed] = gates(bench, seed, rows, places)
        for name, of_rows in found.items():
            values.setdefault(name, []).append(of_rows)
    # A system that failed for some seed has no mean that could be compared.
    stacked = {name: np.stack(seeds, 1) for name, seeds in values.items() if name not in failed}
    groups = conversations(rows, examples)
    tested = {"shares": bench.options.shares, "skipped": bench.options.skip}
    result: dict = {
        **tested,
        "rows": len(rows.rows),
        "conversations": len(set(groups)),
        "seeds": bench.seeds,
        "failed": failed,
    }
    parts = {"both": np.arange(len(groups)), **{name: np.flatnonzero(places == i) for i, name in enumerate(SUBSETS)}}
    for part, index in parts.items():
        some = Rows([rows.rows[i] for i in index], rows.pad, {}, 0)
        own = {name: array[index] for name, array in stacked.items()}
        figures, differences = paired(own, some, [groups[i] for i in index], "mixture", bench.options.resamples)
        result[part] = {
            "nats": {name: asdict(figure) for name, figure in figures.items()},
            # Over 0: the mixture is better.
            "less_the_mixture": {name: asdict(figure) for name, figure in differences.items()},
            **seed_by_seed(own, some, [groups[i] for i in index], bench.options.resamples),
        }
    costs = json.loads((bench.keep / "costs.json").read_text())
    for key, part in (("beaten", "less_the_mixture"), ("beaten_over_seeds", "less_the_mixture_over_seeds")):
        less = result["both"][part]
        result[key] = {name: less[name]["low"] > 0 for name in BASELINES if name in less}
    result |= {"router": reports, "costs": costs}
    show(result)
    return result


def seed_by_seed(values: dict[str, np.ndarray], rows: Rows, groups: list[str], resamples: int) -> dict:
    """Each seed's nats, and the differences with an interval that covers other trainings as well as other conversations.

    Only the two or three differences themselves tell how much one varies from seed to seed: what shares its experts with the
    mixture varies less than what was trained apart. So few degrees of freedom make wide intervals.

    Args:
        values: by system, nats of each row, (rows, seeds).
        rows: what was measured.
        groups: the conversation of each row.
        resamples: of the conversations, the same as of ``paired``.
    """
    draws = draw(groups, resamples)
    tokens = draws.sums(np.array([row.supervised for row in rows.rows]))
    nats = {name: (draws.sums(array) / tokens).T for name, array in values.items()}
    less = {}
    for name in (name for name in nats if name != "mixture"):
        arrays = list(nats[name] - nats["mixture"])
        noise = noise_of_one(np.array([array[0] for array in arrays]))
        less[name] = asdict(mean_over_seeds(arrays, len(set(groups)), noise))
    return {
        "nats_of_each_seed": {name: found[:, 0].tolist() for name, found in nats.items()},
        "less_the_mixture_over_seeds": less,
    }


def load(bench: Bench, folder: Path | None) -> LanguageModel:
    """The model of a folder, or the base."""
    base = str(bench.options.base)
    return load_language_model(base if folder is None else str(folder), LoadOptions(base, "cpu"))


def measured(bench: Bench, seed: int, system: tuple[str, str, Path | None], rows: Rows) -> np.ndarray:
    """Nats of each row under a system, kept in a file."""
    name, how, folder = system
    key = sha256_bytes(json.dumps([row.id for row in rows.rows]).encode())[:12]
    of_seed = "" if name == "base" else f"-{seed}"
    path = bench.nll_folder / f"{name.replace(',', '').replace(' ', '-')}{of_seed}-{key}.npy"
    if not path.is_file():
        model = load(bench, folder).model
        if how == "arrow":
            model = arrow(bench, seed, model)
        with model.mixture_router.uniform() if how == "uniform" else nullcontext():
            np.save(path, row_nll(model, rows))
    return np.load(path, allow_pickle=False)


def arrow(bench: Bench, seed: int, base: object) -> object:
    """PEFT's Arrow over the two experts: routed by their own singular vectors, nothing is trained."""
    from peft import ArrowConfig
    from peft.tuners.lora.arrow import create_arrow_model

    paths = [str((bench.keep / f"{name}-{seed}").resolve()) for name in SUBSETS]
    return create_arrow_model(base, paths, ArrowConfig(top_k=2, router_temperature=1.0)).eval()


def gates(bench: Bench, seed: int, rows: Rows, places: np.ndarray) -> dict:
    """What the router does on the tested rows, without the map of every gate."""
    model = load(bench, bench.mixture(seed))
    subsets = [Rows([rows.rows[i] for i in np.flatnonzero(places == place)], rows.pad, {}, 0) for place in range(2)]
    router = router_of(model)
    found = asdict(report(router, [read_routings(model.model, router, subset) for subset in subsets]))
    found.pop("sites")
    return found


def speed(bench: Bench) -> dict:
    """Tokens a second of base and mixture, in turns, on the same prompts; answers are not ended early, so all are as long."""
    prompts = []
    models = {"base": load(bench, None), "mixture": load(bench, bench.mixture(bench.seeds[0]))}
    decoding = DecodingOptions(max_new_tokens=bench.options.new_tokens, batch_size=16)
    for _, example in bench.test_examples()[:16]:
        prompts.append(Prompt(example.id, models["base"].renderer.prompt(example.context, decoding.max_new_tokens)[0]))
    rates: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.renderer.end_ids = frozenset()
        answer(model, prompts[:2], decoding)
    for _ in range(bench.options.rounds):
        for name, model in models.items():
            begin = time.perf_counter()
            tokens = sum(len(one.tokens) for one in answer(model, prompts, decoding))
            rates[name].append(tokens / (time.perf_counter() - begin))
    ratios = [ours / theirs for ours, theirs in zip(rates["mixture"], rates["base"], strict=True)]
    result = {"batch": 16, "new_tokens": decoding.max_new_tokens, "tokens_per_second": rates}
    result |= {"ratios": ratios, "ratio": float(np.median(ratios))}
    print(f"\nrouted generation: {result['ratio']:.2f} × the base's tokens/s")
    return result


def memory(bench: Bench) -> dict:
    """Bytes of a loaded mixture over those of a loaded expert."""
    folders = {
        "expert": bench.expert(SUBSETS[0], bench.seeds[0], bench.data[:1]),
        "mixture": bench.mixture(bench.seeds[0]),
    }
    held = {}
    for name, folder in folders.items():
        model = load(bench, folder).model
        held[name] = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    print(f"\nmemory: {held['mixture'] / held['expert']:.3f} × one expert's")
    return {"of": "parameters and buffers, in bytes", **held, "ratio": held["mixture"] / held["expert"]}


def show(result: dict) -> None:
    print(
        f"\n{result['rows']} held-out rows, seeds {result['seeds']}; nats a token; less the mixture's with 95 % intervals: over "
        "conversations, and over conversations and trainings"
    )
    for name, figure in result["both"]["nats"].items():
        parts = [result["both"][key].get(name) for key in ("less_the_mixture", "less_the_mixture_over_seeds")]
        told = [f"{less['value']:+.4f} [{less['low']:+.4f}, {less['high']:+.4f}]" for less in parts if less]
        text = "  ".join(told)
        print(f"  {name:38s} {figure['value']:.4f}  {text}")
    for seed, found in result["router"].items():
        print(f"  seed {seed}: {found['verdict']}; token entropy {found['entropy_share']:.0%} of the most")
    print(
        "  equal steps a training: the experts together saw twice the rows of one union; hard routing knows the response"
    )
    for name, why in result["failed"].items():
        print(f"  {name} did not run: {why}")


def make_small(keep: Path) -> tuple[Path, Path]:
    """A tiny base and subsets of made-up rows, as the tests have them."""
    from small import WORDS, language_model

    from efficient_empathy.manifest import write_manifest

    base, subsets = keep / "tiny-lm", keep / "subsets"
    if base.is_dir():
        return base, subsets
    rng = np.random.default_rng(0)
    first = {"sensibility": "i am so sorry", "rationality": "maybe plan", "discarded": "why"}
    for name, start in first.items():
        (subsets / name).mkdir(parents=True, exist_ok=True)
        with open(subsets / name / "part-00000.jsonl", "w", encoding="utf-8") as file:
            for index in range(400):
                context, rest = (" ".join(rng.choice(WORDS, rng.integers(2, 10))) for _ in range(2))
                row = {"id": f"{name}-{index}", "conv_id": f"{name}-{index // 2}", "context": [context]}
                file.write(json.dumps({**row, "response": f"{start} {rest}"}) + "\n")
    body = {"policy": {"name": "paper", "subsets": list(first)}, "subsets": {name: {"examples": 400} for name in first}}
    write_manifest(subsets, "subsets", body, [f"{name}/part-00000.jsonl" for name in first])
    return language_model(base), subsets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subsets", type=Path)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--router-learning-rate", type=float, default=1e-3)
    parser.add_argument("--rows", type=int, default=200, help="tested rows of each subset, at most")
    parser.add_argument(
        "--shares",
        choices=["equal", "natural"],
        default="equal",
        help="of the subsets in the tested rows; natural: as held out",
    )
    parser.add_argument("--skip", type=int, default=0, help="rows of each subset that were tested on before")
    parser.add_argument("--holdout", type=float, default=0.05)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default="nll,speed,memory")
    parser.add_argument("--leave-out", action="append", default=[], choices=CONTROLS, help="a control not to train")
    parser.add_argument("--small", action="store_true", help="a smoke run on a tiny model")
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    if options.small:
        options.base, options.subsets = make_small(options.keep)
        options.seeds, options.holdout, options.steps, options.new_tokens = "0", 0.4, min(options.steps, 10), 8
    elif options.subsets is None:
        raise EmpathyError("say where the subsets are: --subsets FOLDER, or try --small.")
    name = "mixture-small" if options.small else "mixture"
    bench = Bench(options)
    parts = {"nll": nll, "speed": speed, "memory": memory}
    if unknown := set(options.parts.split(",")) - set(parts):
        raise EmpathyError(f"--parts: there is no {', '.join(sorted(unknown))}; there are: {', '.join(parts)}.")
    for part in options.parts.split(","):
        found = parts[part](bench)
        key = f"{part}_{options.shares}" if part == "nll" else part
        # A smoke run leaves no figures: they would say nothing.
        path = options.keep / f"{name}.json"
        if options.small:
            path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        else:
            write_result(name, {**read_result(name), key: {**bench.settings, **found}})


if __name__ == "__main__":
    try:
        main()
    except EmpathyError as error:
        sys.exit(f"Error: {error}")
