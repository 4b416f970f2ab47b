"""What a run of ``paper.py`` is made of: its settings, its data, how fast this machine is, and what each job took."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common import Cost, note_settings, read_rows, run_command, run_inside
from judging import EPITOME

from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import pretty_json, write_atomic

LABELLED, POOL = "ed_paper_scores.valid.jsonl.gz", "empathetic_dialogues.train.jsonl.gz"
T = 5.0
"""The paper's threshold; random data, rationality and the mixture belong to it."""
HOLDOUT, MEASURED = 0.05, 32
"""Share of the conversations that no training sees, and how many held-out examples are measured after one."""
STEP = 16
"""Examples an optimiser step, as in the paper."""


@dataclass(frozen=True)
class Plan:
    """The settings that figures depend on: a folder holds the runs of one plan."""

    examples: int = 1400
    """About how many examples the sensibility subset at T = 5 has to train on, by the labels' shares; all other sizes follow.
    The scorers' shares of that subset are larger: 1,400 have come out as some 1,530."""
    contexts: int = 500
    """Validation contexts that every system answers."""
    labels: int = 1000
    """Judge scores that a scorer is distilled from."""
    thresholds: tuple[float, ...] = (4.0, 5.0, 6.0, 7.0)
    """Where the same scores are cut."""
    base: str = "smollm2"
    """What the experts are tuned from."""
    backbone: str = "minilm"
    """The encoder of the scorers."""
    rows_at_once: int = 8
    """Examples that go through the model at once in training."""
    new_tokens: int = 48
    """Longest answer."""
    resamples: int = 4000
    """Of conversations, for intervals and p-values."""
    tiny: bool = False
    """A smoke run on made-up rows: no figure of it means anything."""

    def __post_init__(self) -> None:
        if T not in self.thresholds:
            raise EmpathyError(f"--thresholds must hold {T:g}, which the others are compared with.")
        if min(self.examples, self.contexts, self.labels) < 40:
            raise EmpathyError("--examples, --contexts and --labels must be 40 or more.")
        if self.resamples < 200:
            raise EmpathyError("--resamples must be 200 or more: the spread of fewer is a guess.")


@dataclass
class Speed:
    """Rates of this machine: given at first, then those of the jobs that are done."""

    tokens: float = 150.0
    """Training, tokens a second, all counted."""
    answers: float = 2.0
    """Answers a second."""
    tokens_an_example: float = 85.0
    """Of EmpatheticDialogues, prompt and response."""
    seen: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {"tokens": [], "answers": []})
    """Work done and its seconds, by kind."""

    def note(self, kind: str, work: float, seconds: float) -> None:
        """Learn from a finished job."""
        self.seen[kind].append((work, seconds))
        done, took = (sum(column) for column in zip(*self.seen[kind], strict=True))
        setattr(self, kind, done / max(took, 1e-9))

    def training(self, examples: float) -> float:
        """Minutes of a training: one pass, two measurements without gradients (a third of the cost), and the start."""
        return (examples + 2 * MEASURED / 3) * self.tokens_an_example / self.tokens / 60 + 0.3

    def answering(self, contexts: int) -> float:
        """Minutes for the answers of one system."""
        return contexts / self.answers / 60 + 0.2


class Ledger:
    """What each job took, in a file."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, dict]:
        """By job."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}

    def begin(self, name: str) -> None:
        """Count an attempt: a killed one cannot tell what it took."""
        self._write(name, {"attempts": self.read().get(name, {}).get("attempts", 0) + 1})

    def end(self, name: str, cost: Cost) -> None:
        """Note what the last attempt took."""
        facts = {"seconds": round(cost.seconds, 1), "peak_mb": round(cost.peak_mb)}
        self._write(name, {**self.read()[name], **facts})

    def _write(self, name: str, facts: dict) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, pretty_json({**self.read(), name: facts}))


@dataclass(frozen=True)
class Study:
    """A plan and the folder that its runs are kept in."""

    plan: Plan
    keep: Path
    batch_size: int = 48
    """Contexts that are answered at once; changes no answer but for rounding."""
    speed: Speed = field(default_factory=Speed)

    def open(self) -> None:
        """Note the plan in the folder, or see that it is the one noted there.

        Raises:
            EmpathyError: the folder was begun with another plan.
        """
        note_settings(self.keep, asdict(self.plan), "plan.json")

    @property
    def ledger(self) -> Ledger:
        """Of the jobs that all seeds share."""
        return Ledger(self.keep / "costs.json")

    @property
    def run(self) -> Callable[[list[str]], Cost]:
        """What runs a command: a process each, so that its memory is known; in a smoke run this process."""
        return run_inside if self.plan.tiny else run_command

    def rows(self, name: str) -> list[dict]:
        """The rows of one of the data files, or made-up ones."""
        if not self.plan.tiny:
            return read_rows(name)
        import small

        made = {
            LABELLED: lambda: small.judged_rows(260),
            POOL: lambda: small.conversations(400, "t", 3),
            EPITOME: lambda: small.mechanism_rows(160),
        }
        return made[name]()
