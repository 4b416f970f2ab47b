"""What the kill tests run in processes of their own: a scorer that counts its work, and a distillation that is killed."""

import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from efficient_empathy.scorer.scorer import Scorer

_HEAVY = (
    "efficient_empathy.distill.high_effort",
    "efficient_empathy.distill.pipeline",
    "onnxruntime.quantization.shape_inference",
    "optimum.exporters.onnx.convert",
    "optimum.exporters.tasks",
    "scipy.sparse",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "transformers.models.bert.modeling_bert",
)
"""What distilling imports: before the children are made, so that they are killed in their work and not while they import."""


class CountedScorer(Scorer):
    """A real scorer, a little slow, that notes in a file how many examples it is asked to rate."""

    def score(self, examples, on_batch=None):
        """Rate examples."""
        with open(os.environ["COUNTED"], "ab") as file:
            file.write(f"{len(examples)}\n".encode())  # one write, appended: processes do not disturb each other
        time.sleep(0.01)
        return super().score(examples, on_batch)


def filter_rows(rows, out, scorer, workers):
    """Filter in many small units."""
    from efficient_empathy.scorer.engine import run
    from efficient_empathy.scorer.job import Job
    from efficient_empathy.selection import PaperPolicy

    job = Job((rows,), Path(out), unit_bytes=6000, chunk=10, workers=int(workers))
    run(job, CountedScorer.load(scorer, threads=1), PaperPolicy())


def distill_with_kills(labels, dialogues, backbone, folder, kills):
    """Distil once without interruption, then with kills at random moments; says on stdout what was seen.

    Children are forked from a process in which everything is imported, so that the moments fall into the work.
    """
    for name in _HEAVY:
        importlib.import_module(name)
    from efficient_empathy.distill.from_files import DistillRequest, distill_from_files
    from efficient_empathy.distill.settings import DistillOptions, PoolOptions, TrainingOptions

    training = TrainingOptions(epochs=2, batch_size=8, learning_rate=1e-2, head_learning_rate=0.1, patience=2)
    pool = PoolOptions(teachers=2, rated_examples=60, student_epochs=2)
    options = DistillOptions(backbone, "high", max_tokens=64, holdout=0.3, training=training, pool=pool)

    def start(out):
        pid = os.fork()
        if pid == 0:
            request = DistillRequest(Path(out), (dialogues,), Path(labels), options=options)
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            distill_from_files(request)
            os._exit(0)
        return pid

    straight, out = Path(folder) / "straight", Path(folder) / "killed"
    began = time.monotonic()
    _, status = os.waitpid(start(straight), 0)
    whole = time.monotonic() - began
    seen = {"straight": status, "seconds": round(whole, 2), "killed": 0, "finished": 0, "resumed": 0, "half_written": 0}
    moments, before = random.Random(0), {}
    while seen["killed"] < int(kills):
        pid = start(out)
        end, ended = time.monotonic() + moments.uniform(0.0, whole), 0
        while not ended and time.monotonic() < end:
            time.sleep(0.01)
            ended = os.waitpid(pid, os.WNOHANG)[0]
        if ended or os.waitpid(pid, os.WNOHANG)[0]:
            seen["finished"] += 1
            shutil.rmtree(out)
            before = {}
            continue
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        seen["killed"] += 1
        if out.exists():  # the kill came between the last rename and the end of the process
            seen["finished"] += 1
            shutil.rmtree(out)
        work = out.with_name("killed.work")
        stages = {p.name: p.stat().st_mtime_ns for p in work.glob("[!.]*.safetensors")} if work.is_dir() else {}
        seen["resumed"] += bool(before) and all(stages.get(name) == when for name, when in before.items())
        seen["half_written"] += out.exists() and not (out / "manifest.json").exists()
        before = stages
    _, status = os.waitpid(start(out), 0)
    sys.stdout.write(json.dumps({**seen, "last": status}))


if __name__ == "__main__":
    {"filter": filter_rows, "distill": distill_with_kills}[sys.argv[1]](*sys.argv[2:])
