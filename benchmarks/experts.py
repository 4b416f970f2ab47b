"""The experts: how fast they learn, whether choosing the data paid, and how fast answers come.

    python benchmarks/experts.py --subsets subsets/ --scorer scorer/ --keep work/ [--parts controls,speed,answers]

``--subsets`` is what ``ee-cli filter`` made of the train conversations of EmpatheticDialogues with ``--scorer``. Base:
SmolLM2-135M-Instruct. Contexts: validation conversations, which the experts have not seen; a scorer of
``distil.py`` may have learnt from labels of some of them. The second
judge is a scorer distilled from EPITOME's human labels. Each stage is kept in ``--keep``: a killed run goes on.

controls   sensibility expert against one trained on as many random examples: same steps, same seeds
speed      our training against PEFT with transformers' Trainer: same base, adapter, rows a batch, longest length
answers    batches of 16 against one by one: the same greedy answers, and answers a second
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from common import DATA, note_settings, read_result, read_rows, run_command, write_result
from judging import EPITOME, epitome_scorer

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import MANIFEST, sha256_file

POOL = "empathetic_dialogues.valid.jsonl.gz"
SYSTEMS = {"sensibility": "none", "random": "random"}


def train(options: argparse.Namespace, name: str, control: str, seed: int) -> Path:
    out = options.keep / f"{name}-{seed}"
    if out.is_dir():
        return out
    cost = run_command(
        [
            *["train-expert", "--data", str(options.subsets / "sensibility"), "--control", control],
            *["--seed", str(seed), "--max-steps", str(options.steps), "--validations", "2", "--patience", "0"],
            *["--validation-examples", "64", "-o", str(out)],
        ]
    )
    note_cost(options.keep, out.name, cost.seconds, cost.peak_mb)
    return out


def note_cost(keep: Path, name: str, seconds: float, peak_mb: float) -> None:
    path = keep / "costs.json"
    costs = json.loads(path.read_text()) if path.is_file() else {}
    costs[name] = {"seconds": round(seconds, 1), "peak_mb": round(peak_mb)}
    path.write_text(json.dumps(costs, indent=2) + "\n")


def answer(options: argparse.Namespace, name: str, model: str) -> Path:
    out = options.keep / "answers" / name
    if (out / "manifest.json").is_file():
        return out
    cost = run_command(
        [
            *["generate", str(DATA / POOL), "--model", model, "--examples", "every-turn", "-o", str(out)],
            *["--limit", str(options.contexts), "--seed", "0", "--max-new-tokens", "48"],
        ]
    )
    note_cost(options.keep, f"answers/{name}", cost.seconds, cost.peak_mb)
    return out


def saved(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def controls(options: argparse.Namespace) -> dict:
    seeds = [int(seed) for seed in options.seeds.split(",")]
    epitome = epitome_scorer(options.keep, read_rows(EPITOME))
    experts = {(name, seed): train(options, name, control, seed) for seed in seeds for name, control in SYSTEMS.items()}
    base = answer(options, "base", "smollm2")
    folders = {key: answer(options, f"{key[0]}-{key[1]}", str(folder)) for key, folder in experts.items()}
    systems = [f"{name}=" + ",".join(str(folders[name, seed]) for seed in seeds) for name in SYSTEMS]
    out = options.keep / "evaluation"
    shutil.rmtree(out, ignore_errors=True)
    scorers = ["--scorer", f"paper={options.scorer}", "--scorer", f"epitome={epitome}"]
    run_command(["evaluate", *systems, f"base={base}", "--baseline", "random", *scorers, "-o", str(out)])
    described = {f"{name}-{seed}": json.loads((e / "expert.json").read_text()) for (name, seed), e in experts.items()}
    return {
        "seeds": seeds,
        "steps": options.steps,
        "experts": {name: {"data": e["data"], "result": e["result"]} for name, e in described.items()},
        "costs": json.loads((options.keep / "costs.json").read_text()),
        "evaluation": json.loads((out / "evaluation.json").read_text()),
        "epitome_quality": json.loads((epitome / "scorer.json").read_text())["quality"],
        "response_nll": response_nll(base, {key: folders[key] for key in folders}),
    }


def response_nll(base: Path, folders: dict) -> dict:
    """Nats a token of the references, and how much lower than the base's, with an interval over conversations."""

    def read(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
        rows = [row for row in saved(folder) if row["nll"] is not None]
        nll, tokens = (np.array([row[key] for row in rows], float) for key in ("nll", "nll_tokens"))
        return nll, tokens, [row["dialogue_id"] for row in rows]

    theirs, tokens, groups = read(base)
    rng = np.random.default_rng(0)
    names, index = np.unique(groups, return_inverse=True)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=2000)[:, index]
    found = {"base": {"nats": theirs.sum() / tokens.sum()}}
    for (name, seed), folder in folders.items():
        ours, counts, same = read(folder)
        assert same == groups
        fall = 1 - (times @ ours / (times @ counts)) / (times @ theirs / (times @ tokens))
        low, high = np.percentile(fall, [2.5, 97.5])
        value = 1 - ours.sum() / theirs.sum()
        found[f"{name}-{seed}"] = {"nats": ours.sum() / counts.sum(), "fall": value, "low": low, "high": high}
    return found


def speed(options: argparse.Namespace) -> dict:
    """Tokens a second of both loops over the same first steps, in turns, one process; the first step of each is not counted."""
    from efficient_empathy.experts.loss import IGNORED
    from efficient_empathy.experts.options import ExpertOptions, FitOptions
    from efficient_empathy.experts.training import ExpertRequest, prepare

    steps = options.speed_steps
    fit = FitOptions(max_steps=steps)
    request = ExpertRequest((str(options.subsets / "sensibility"),), options.keep / "none", ExpertOptions(fit=fit))
    prepared = prepare(request)
    rounds = [(ours(prepared, steps), trainer(prepared, steps, IGNORED)) for _ in range(options.rounds)]
    result = {
        "rows_a_batch": 4,
        "batches_a_step": 4,
        "steps": steps,
        "ours": [first for first, _ in rounds],
        "trainer": [second for _, second in rounds],
    }
    result["ratio"] = float(np.median([first / second for first, second in rounds]))
    print(f"\nreal tokens/s, ours {result['ours']}, Trainer {result['trainer']}; ratio {result['ratio']:.2f}")
    return result


def ours(prepared, steps: int) -> float:
    import lightning as L

    from efficient_empathy.distill.training import quiet
    from efficient_empathy.experts.module import ResponseData, ResponseModule
    from efficient_empathy.experts.options import FitOptions

    class Clock(L.Callback):
        def __init__(self):
            self.tokens, self.begin = 0, 0.0

        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if index < FitOptions().accumulate:
                self.begin = time.perf_counter()
            else:
                self.tokens += int(batch["attention_mask"].sum())

    clock = Clock()
    data = ResponseData(prepared.train, prepared.held_out, prepared.plan, steps)
    with quiet():
        trainer = L.Trainer(
            max_steps=steps,
            accumulate_grad_batches=FitOptions().accumulate,
            accelerator="cpu",
            callbacks=[clock],
            gradient_clip_val=1.0,
            logger=False,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(ResponseModule(prepared.model, FitOptions(max_steps=steps), 0), datamodule=data)
    return round(clock.tokens / (time.perf_counter() - clock.begin), 1)


def trainer(prepared, steps: int, ignored: int) -> float:
    """What most people write: Trainer, its collator, rows in random order; PEFT's own adapter with torch's dropout."""
    import tempfile

    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    from efficient_empathy.experts.bases import load_base

    model, tokenizer = load_base(prepared.base)
    tokenizer.pad_token = tokenizer.eos_token
    config = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    rows = []
    for row in prepared.train.rows:
        tokens = row.tokens.tolist()
        labels = [ignored] * row.start + tokens[row.start :]
        rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels})

    class Clock(TrainerCallback):
        begin = end = 0.0

        def on_step_end(self, args, state, control, **more):
            self.end = time.perf_counter()
            if state.global_step == 1:
                self.begin = self.end

    seen: list[int] = []

    class Collator(DataCollatorForSeq2Seq):
        def __call__(self, features, return_tensors=None):
            seen.append(sum(len(feature["input_ids"]) for feature in features))
            return super().__call__(features, return_tensors)

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            max_steps=steps,
            learning_rate=5e-4,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
        )
        Trainer(model, arguments, Collator(tokenizer), rows, callbacks=[clock]).train()
    return round(sum(seen[4 : 4 * steps]) / (clock.end - clock.begin), 1)


def answers(options: argparse.Namespace) -> dict:
    """The same contexts in batches of 16 and one by one."""
    found = {}
    for batch in (16, 1):
        out = options.keep / "answers-speed" / str(batch)
        shutil.rmtree(out, ignore_errors=True)
        arguments = [
            "--limit",
            str(options.speed_contexts),
            "--max-new-tokens",
            "48",
            "--batch-size",
            str(batch),
            "--no-nll",
        ]
        run_command(["generate", str(DATA / POOL), "--examples", "every-turn", *arguments, "-o", str(out)])
        # Of the answers alone, without loading the model.
        seconds = json.loads((out / "run.json").read_text())["seconds"]
        found[batch] = {"seconds": seconds, "answers": [row["answer"] for row in saved(out)]}
    same = sum(a == b for a, b in zip(found[16]["answers"], found[1]["answers"], strict=True))
    result = {
        "contexts": options.speed_contexts,
        "same": same,
        "seconds": {str(batch): round(value["seconds"], 1) for batch, value in found.items()},
        "ratio": found[1]["seconds"] / found[16]["seconds"],
    }
    print(f"\n{same} of {options.speed_contexts} answers the same; {result['ratio']:.1f} × as fast in batches of 16")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subsets", type=Path, required=True)
    parser.add_argument("--scorer", type=Path, required=True)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--contexts", type=int, default=300)
    parser.add_argument("--speed-steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--speed-contexts", type=int, default=64)
    parser.add_argument("--parts", default="controls,speed,answers")
    options = parser.parse_args()
    made_of = {name: sha256_file(getattr(options, name) / MANIFEST) for name in ("subsets", "scorer")}
    note_settings(options.keep, {"steps": options.steps, "contexts": options.contexts, **made_of})
    parts = {"controls": controls, "speed": speed, "answers": answers}
    for part in options.parts.split(","):
        result = read_result("experts")
        result[part] = parts[part](options)
        write_result("experts", result)


if __name__ == "__main__":
    try:
        main()
    except EmpathyError as error:
        sys.exit(f"Error: {error}")
