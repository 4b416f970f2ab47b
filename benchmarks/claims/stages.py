"""The stages of one seed: what each prepares, which commands of ``ee-cli`` it runs, and what they are expected to take."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import draw_conversations, write_jsonl
from judging import EPITOME, epitome_arguments

from claims.data import DIMENSIONS, cut, draw_contexts, read_jsonl, subset_counts
from claims.plan import HOLDOUT, LABELLED, MEASURED, POOL, STEP, Ledger, Study, T
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import MANIFEST
from efficient_empathy.selection import PaperPolicy

STAGES = ("scorer", "pool", "experts", "mixture", "answers", "evaluation")
MAIN, RANDOM, ALL, COLD, MIXTURE, BASE = "sensibility-T5", "random", "all", "rationality", "mixture", "base"
# Before anything is rated: about what the paper's judge gives (see docs/concepts/selection.md).
EXPECTED = {"sensibility": 0.6, "rationality": 0.3}


@dataclass(frozen=True)
class Job:
    """One command; its folder is whole once it has a manifest."""

    name: str
    out: Path
    arguments: Callable[[], list[str]]
    """Called when it starts: what it needs may be made by the jobs before it."""
    minutes: float
    """What it is expected to take."""
    ledger: Ledger
    afresh: bool = False
    """A folder without a manifest is removed first: the command does not go on in it. (Checkpoints lie beside it.)"""

    @property
    def done(self) -> bool:
        """Whether it need not run."""
        return (self.out / MANIFEST).is_file()


class Seed:
    """One seed's folder: its own labels, scorer, pool, experts, mixture and answers."""

    def __init__(self, study: Study, number: int):
        self.study, self.plan, self.number = study, study.plan, number
        self.folder = study.keep / f"seed-{number}"
        self.ledger = Ledger(self.folder / "costs.json")
        self.pool_folder = self.folder / "pool"
        self.contexts_file = study.keep / "contexts.jsonl"

    def subset(self, threshold: float, name: str) -> Path:
        """A subset's folder; at T = 5 the one that ``ee-cli filter`` wrote."""
        return (self.pool_folder if threshold == T else self.folder / f"cut-T{threshold:g}") / name

    def jobs(self, stage: str) -> list[Job]:
        """The commands of a stage."""
        return getattr(self, f"_{stage}_jobs")()

    def prepare(self, stage: str) -> None:
        """See that the stages before are done, and write what this one reads."""
        if all(job.done for job in self.jobs(stage)):
            return
        for earlier in STAGES[: STAGES.index(stage)]:
            if missing := [job.name for job in self.jobs(earlier) if not job.done]:
                raise EmpathyError(f"seed {self.number}: {stage} needs {earlier} first; missing: {', '.join(missing)}.")
        self.folder.mkdir(parents=True, exist_ok=True)
        if stage == "scorer":
            self._write_rows()
        elif stage == "pool":
            write_jsonl(self.folder / "pool.jsonl", self._draw_pool())
        elif stage == "experts":
            for threshold in self.plan.thresholds:
                if threshold != T:
                    cut(self.pool_folder, self.folder / f"cut-T{threshold:g}", threshold)

    # -- scorer and pool

    def _write_rows(self) -> None:
        """Contexts, the same for all seeds, and labels from other conversations."""
        rows = self.study.rows(LABELLED)
        contexts = draw_contexts(rows, self.plan.contexts)
        write_jsonl(self.contexts_file, contexts)
        kept_away = {row["conv_id"] for row in contexts}
        rest = [row for row in rows if row["conv_id"] not in kept_away]
        write_jsonl(self.folder / "labels.jsonl", draw_conversations(rest, self.plan.labels, self.number)[0])

    def _scorer_jobs(self) -> list[Job]:
        backbone = ["--backbone", self.plan.backbone]
        if self.plan.tiny:
            backbone += ["--max-length", "48", "--epochs", "2"]
        keep, out, scale = self.study.keep, self.folder / "scorer", 0.03 if self.plan.tiny else 1.0

        def epitome() -> list[str]:
            given = epitome_arguments(keep, self.study.rows(EPITOME))
            return [*given, *backbone, "-o", str(keep / "scorer-epitome")]

        def own() -> list[str]:
            labels = ["--labels", str(self.folder / "labels.jsonl"), "--seed", str(self.number)]
            return ["distill", *labels, *backbone, "-o", str(out)]

        return [
            Job("scorer-epitome", keep / "scorer-epitome", epitome, 7.5 * scale, self.study.ledger),
            Job("scorer", out, own, 3.5 * scale * self.plan.labels / 1000, self.ledger),
        ]

    @property
    def _pool_examples(self) -> int:
        """So many that the sensibility subset has about ``examples`` to train on, by the labels' own share of it."""
        share, labels = EXPECTED["sensibility"], self.folder / "labels.jsonl"
        if labels.is_file():
            scores = np.array([[row[name] for name in DIMENSIONS] for row in read_jsonl(labels)], float)
            share = max(0.05, float((PaperPolicy(T).decide(scores, DIMENSIONS) == 0).mean()))
        return math.ceil(self.plan.examples / share / (1 - HOLDOUT))

    def _draw_pool(self) -> list[dict]:
        rows = self.study.rows(POOL)
        drawn, turns = [], 0
        for index in np.random.default_rng(self.number).permutation(len(rows)):
            if turns >= self._pool_examples:
                break
            drawn.append(rows[index])
            turns += sum(turn["role"] == "listener" for turn in rows[index]["turns"][1:])
        return drawn

    def _pool_jobs(self) -> list[Job]:
        def arguments() -> list[str]:
            given = ["filter", str(self.folder / "pool.jsonl"), "--scorer", str(self.folder / "scorer")]
            one = ["--workers", "1"] if self.plan.tiny else []
            return [*given, "--threshold", f"{T:g}", *one, "-o", str(self.pool_folder)]

        return [Job("pool", self.pool_folder, arguments, self._pool_examples / 75 / 60 + 0.2, self.ledger)]

    # -- trainings

    def size(self, threshold: float, names: tuple[str, ...]) -> float:
        """Training examples of some subsets; what is to be expected while they are not there."""
        counts = subset_counts(self.subset(threshold, "x").parent)
        if counts:
            return sum(counts[name] for name in names) * (1 - HOLDOUT)
        share = sum(EXPECTED.get(name, 1 - sum(EXPECTED.values())) for name in names)
        return self._pool_examples * share * (1 - HOLDOUT)

    def _experts_jobs(self) -> list[Job]:
        everything = ("sensibility", "rationality", "discarded")
        jobs = [
            self._training(f"sensibility-T{t:g}", [self.subset(t, "sensibility")], self.size(t, everything[:1]))
            for t in sorted(self.plan.thresholds, key=lambda t: (t != T, t))
        ]
        random = ("--control", "random")
        jobs.append(self._training(RANDOM, [self.subset(T, "sensibility")], self.size(T, everything[:1]), *random))
        jobs.append(self._training(ALL, [self.subset(T, name) for name in everything], self.size(T, everything)))
        return [*jobs, self._training(COLD, [self.subset(T, "rationality")], self.size(T, everything[1:2]))]

    def _training(self, name: str, data: list[Path], examples: float, *more: str) -> Job:
        out = self.folder / "experts" / name

        def arguments() -> list[str]:
            given = [part for folder in data if any(folder.glob("*")) for part in ("--data", str(folder))]
            options = ["--base", self.plan.base, "--holdout", str(HOLDOUT), *more]
            return ["train-expert", *given, *options, *self._fit(), "-o", str(out)]

        return Job(f"experts/{name}", out, arguments, self.study.speed.training(examples), self.ledger, afresh=True)

    def _fit(self) -> list[str]:
        rows = self.plan.rows_at_once
        sizes = ["--batch-size", str(rows), "--accumulate", str(STEP // rows)]
        measured = ["--validations", "1", "--patience", "0", "--validation-examples", str(MEASURED)]
        return [*sizes, *measured, "--seed", str(self.number)]

    def _mixture_jobs(self) -> list[Job]:
        """The router sees as many examples as the sensibility expert did, from both subsets."""
        out = self.folder / "experts" / MIXTURE

        def arguments() -> list[str]:
            experts = [part for one in (MAIN, COLD) for part in ("--expert", str(self.folder / "experts" / one))]
            data = [part for name in DIMENSIONS for part in ("--data", str(self.subset(T, name)))]
            steps = json.loads((self.folder / "experts" / MAIN / "expert.json").read_text())["result"]["planned_steps"]
            return ["train-moe", *experts, *data, "--max-steps", str(steps), *self._fit(), "-o", str(out)]

        minutes = self.study.speed.training(self.size(T, ("sensibility",)))
        return [Job("mixture", out, arguments, minutes, self.ledger)]

    # -- answers and their evaluation

    @property
    def systems(self) -> dict[str, Path]:
        """Answers folder of each system; the base's is that of all seeds."""
        names = [*(f"sensibility-T{t:g}" for t in self.plan.thresholds), RANDOM, ALL, COLD, MIXTURE]
        own = {name: self.folder / "answers" / name for name in names}
        return {BASE: self.study.keep / "answers-base", **own}

    def _answers_jobs(self) -> list[Job]:
        return [self._answering(name, out) for name, out in self.systems.items()]

    def _answering(self, name: str, out: Path) -> Job:
        base = name == BASE

        def arguments() -> list[str]:
            model = self.plan.base if base else str(self.folder / "experts" / name)
            sizes = ["--batch-size", str(self.study.batch_size), "--max-new-tokens", str(self.plan.new_tokens)]
            return ["generate", str(self.contexts_file), "--model", model, *sizes, "-o", str(out)]

        minutes = self.study.speed.answering(self.plan.contexts)
        ledger = self.study.ledger if base else self.ledger
        return Job(f"answers/{name}", out, arguments, minutes, ledger)

    def _evaluation_jobs(self) -> list[Job]:
        out = self.folder / "evaluation"

        def arguments() -> list[str]:
            named = [f"{name}={folder}" for name, folder in self.systems.items()]
            judges = {"paper": self.folder / "scorer", "epitome": self.study.keep / "scorer-epitome"}
            scorers = [part for name, folder in judges.items() for part in ("--scorer", f"{name}={folder}")]
            resamples = "60" if self.plan.tiny else "1000"
            return ["evaluate", *named, "--baseline", MAIN, *scorers, "--resamples", resamples, "-o", str(out)]

        # Two judges, some 75 and 35 a second, and the resamples.
        minutes = self.plan.contexts * (len(self.systems) + 1) * (1 / 75 + 1 / 35) / 60 + 1.5
        return [Job("evaluation", out, arguments, minutes, self.ledger, afresh=True)]


def finish(job: Job, study: Study) -> None:
    """Run a job unless its folder is whole."""
    if job.done:
        return
    if job.afresh and job.out.is_dir():
        shutil.rmtree(job.out)
    job.ledger.begin(job.name)
    job.ledger.end(job.name, study.run(job.arguments()))
    if not job.done:
        raise EmpathyError(f"{job.name} ended without a manifest in '{job.out}'.")


def learn(job: Job, study: Study) -> None:
    """Let the estimates that follow be those of this machine, from a job that was done in one go."""
    facts, speed = job.ledger.read().get(job.name, {}), study.speed
    if not job.done or facts.get("attempts") != 1 or "seconds" not in facts:
        return
    if job.name.startswith("experts/"):
        data = json.loads((job.out / "expert.json").read_text(encoding="utf-8"))["data"]
        speed.tokens_an_example = data["tokens"] / data["examples"]
        measured = 2 * data["measured"] / 3 * speed.tokens_an_example
        speed.note("tokens", data["tokens"] + measured, facts["seconds"])
    elif job.name.startswith("answers/") and not job.name.endswith(BASE):  # the base is long-winded
        speed.note("answers", study.plan.contexts, facts["seconds"])
