"""A tiny scorer and tiny inputs for tests of the engine: scores come from text lengths, worked by hand."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import orjson

from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer import Scorer


class LengthScorer:
    """Sensibility: characters of the response; rationality: of the last context turn; both modulo 11."""

    dimensions = ("sensibility", "rationality")
    digest = "lengths"

    def __init__(self, seconds_an_example=0.0):
        self.seconds = seconds_an_example
        self.calls = []

    def score(self, examples):
        """Rate examples, as slowly as asked."""
        self.calls.append(len(examples))
        time.sleep(self.seconds * len(examples))
        scores = [[len(e.response) % 11, len(e.context[-1].text) % 11 if e.context else 0] for e in examples]
        return np.array(scores, np.float32).reshape(-1, 2)


class FailsOnceMet(LengthScorer):
    """Fails, as it is told to, when it meets the example of a given id; else scores as ``LengthScorer``."""

    def __init__(self, example_id, how, seconds_an_example=0.0):
        super().__init__(seconds_an_example)
        self.example_id = example_id
        self.how = how

    def score(self, examples):
        """Rate examples, or fail."""
        if any(example.id == self.example_id for example in examples):
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "no number":
                return np.full((len(examples), 2), np.nan, np.float32)
            sys.exit(3)
        return super().score(examples)


class TellsItsThreads(Scorer):
    """Says, in place of a score, how many threads it was told of."""

    def score(self, examples, on_batch=None):
        """Raise what is to be told."""
        raise EmpathyError(f"told of {self.threads} threads")


def write_rows(path, n=300, seed=0, bad=()):
    """N conversations of four turns, two examples each; rows in ``bad`` cannot be read."""
    rng = random.Random(seed)

    def text():
        return "".join(rng.choice("abc ") for _ in range(rng.randint(1, 40))).strip() or "x"

    with open(path, "wb") as file:
        for index in range(n):
            roles = ("speaker", "listener", "speaker", "listener")
            row = {"id": f"c{index}", "turns": [{"role": r, "text": text()} for r in roles], "n": index}
            file.write(b"not json\n" if index in bad else orjson.dumps(row) + b"\n")
    return path


def tree(folder, without=("run.json", ".units/plan.json", ".units/lock")):
    """Every file of a folder with its bytes, but for what holds times."""
    files = {str(path.relative_to(folder)): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in without}


def rows_of(folder):
    return [
        orjson.loads(line) for path in sorted(Path(folder).glob("*.jsonl")) for line in path.read_bytes().splitlines()
    ]
