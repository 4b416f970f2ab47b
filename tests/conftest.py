"""Fixtures that several packages' tests share."""

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from efficient_empathy.dialogues.types import Example, Turn
from efficient_empathy.manifest import write_manifest
from efficient_empathy.scorer.artifact import KIND, SPEC_FILE, TOKENIZER_FILE, Scale, ScorerSpec, write_spec
from efficient_empathy.scorer.encoding import EncodingSpec

# No time limit an example: a busy machine is no failure; and the same examples each time.
settings.register_profile("ee", deadline=None, derandomize=True)
settings.load_profile("ee")

_MAY_BE_SKIPPED = ("no real data at", "ONNX Runtime has")
"""What a machine may lack, or have, that has all extras installed."""
_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what is skipped."""
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note what is skipped as a whole."""
    _note(report)


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(known in reason for known in _MAY_BE_SKIPPED):
            _skipped.append(f"{report.nodeid}: {reason}")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With ``EE_TEST_NO_SKIPS``, as in CI, what an extra is missing for is a failure."""
    if _skipped and os.environ.get("EE_TEST_NO_SKIPS"):
        said = session.config.get_terminal_writer()
        said.line("\nskipped, though EE_TEST_NO_SKIPS is set:\n  " + "\n  ".join(_skipped))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real dialogues and labels, which is not part of the project: skipped, aloud, where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}: this check did not run")
    return SHARED_DATA


@pytest.fixture
def example() -> Example:
    """One small example: a speaker's turn and a listener's response."""
    return Example(
        "d1_turn:1", "d1", 1, (Turn("speaker", "My dog died last night."),), "I am so sorry, that must hurt."
    )


# Responses hold warm words, thoughtful words and fillers; how many of each decides the two scores.
_WARM = ["sorry", "hug", "feel", "care", "hurt", "tears", "gentle", "heart"]
_THOUGHTFUL = ["because", "plan", "first", "maybe", "reason", "option", "step", "learn"]
_FILLERS = ["the", "a", "so", "it", "was", "then", "there", "some", "day", "thing", "now", "very", "well", "just"]
_STORIES = [
    "dog",
    "exam",
    "job",
    "rain",
    "friend",
    "mother",
    "train",
    "party",
    "doctor",
    "garden",
    "lost",
    "won",
    "broke",
]
_WORDS = [*_WARM, *_THOUGHTFUL, *_FILLERS, *_STORIES, "speaker", "listener", "system"]


def _save_tiny_encoder(folder: Path, model_type: str) -> Path:
    """An encoder of two layers with random weights, and a tokenizer that knows some 50 words, as a Hub folder."""
    torch = pytest.importorskip("torch", reason="torch is part of the distill extra")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import AutoModel, BertConfig, DebertaV2Config, PreTrainedTokenizerFast, RobertaConfig

    bert = model_type != "roberta"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] if bert else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    names = ("pad", "unk", "cls", "sep", "mask") if bert else ("cls", "pad", "sep", "unk", "mask")
    roles = {f"{name}_token": token for name, token in zip(names, special, strict=True)}
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate([*special, *_WORDS])}, unk_token=roles["unk_token"])
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    size["vocab_size"] = len(special) + len(_WORDS)
    torch.manual_seed(0)
    if model_type == "bert":
        config = BertConfig(**size, max_position_embeddings=64, initializer_range=0.2)
    elif model_type == "deberta":
        relative = {"relative_attention": True, "position_buckets": 16, "position_biased_input": False}
        kinds = {"pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm"}
        config = DebertaV2Config(**size, **relative, **kinds, type_vocab_size=2, initializer_range=0.2)
    else:
        # No token types, and the first two positions are taken by padding: 64 tokens at most.
        positions = {"max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1}
        config = RobertaConfig(**size, **positions, bos_token_id=0, eos_token_id=2, initializer_range=0.2)
    AutoModel.from_config(config).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 32 hidden units that nobody has to download."""
    return _save_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny-bert", "bert")


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoBERTa of 32 hidden units: an encoder without token types."""
    return _save_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny-roberta", "roberta")


@pytest.fixture(scope="session")
def tiny_deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeBERTa of 32 hidden units: it multiplies a table of relative positions, too."""
    return _save_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny-deberta", "deberta")


def _make_synthetic(count: int, seed: int = 0, prefix: str = "c") -> tuple[list[Example], np.ndarray]:
    """Examples, two a conversation, and scores that count their words: 2 points a warm word, 2 a thoughtful one."""
    rng = np.random.default_rng(seed)
    examples, scores = [], []
    for index in range(count):
        warm, thoughtful = rng.integers(0, 5, 2)
        chosen = [*rng.choice(_WARM, warm), *rng.choice(_THOUGHTFUL, thoughtful)]
        chosen += list(rng.choice(_FILLERS, rng.integers(2, 6)))
        response = " ".join(rng.permutation(chosen))
        story = " ".join(rng.choice([*_STORIES, *_FILLERS], rng.integers(3, 9)))
        conversation, turn = f"{prefix}{index // 2}", 1 + 2 * (index % 2)
        context = (Turn("speaker", story),) * turn
        examples.append(Example(f"{conversation}_turn:{turn}", conversation, turn, context, response))
        scores.append([1 + 2 * warm, 1 + 2 * thoughtful])
    return examples, np.array(scores, np.float32)


@pytest.fixture(scope="session")
def make_synthetic() -> Callable[..., tuple[list[Example], np.ndarray]]:
    """Makes ``count`` examples and their (count, 2) scores, which a tiny encoder can learn."""
    return _make_synthetic


def make_counting_scorer(folder: Path, dimensions: tuple[str, str]) -> Path:
    """A real scorer folder whose ONNX graph counts tokens, so that its scores can be worked by hand.

    Column 0: tokens of the response plus 2 (its role and the last SEP); column 1: all tokens minus those.
    """
    onnx = pytest.importorskip("onnx", reason="onnx is part of the distill extra")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True)
    int64, single = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    make = onnx.helper.make_node
    nodes = [
        make("ReduceSum", ["token_type_ids", "axis"], ["response"], keepdims=1),
        make("ReduceSum", ["attention_mask", "axis"], ["all"], keepdims=1),
        make("Sub", ["all", "response"], ["context"]),
        make("Concat", ["response", "context"], ["counts"], axis=1),
        make("Cast", ["counts"], ["scores"], to=single),
    ]
    inputs = [
        onnx.helper.make_tensor_value_info(name, int64, ["rows", "length"])
        for name in ("attention_mask", "token_type_ids")
    ]
    outputs = [onnx.helper.make_tensor_value_info("scores", single, ["rows", 2])]
    axis = onnx.numpy_helper.from_array(np.array([1], np.int64), "axis")
    graph = onnx.helper.make_graph(nodes, "counts", inputs, outputs, [axis])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "transformer.fp32.onnx"))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / TOKENIZER_FILE))
    roles = {"speaker": [4], "listener": [5], "system": [6]}
    write_spec(
        folder,
        ScorerSpec(
            dimensions=tuple(Scale(name, 0.0, 10.0) for name in dimensions),
            encoding=EncodingSpec(cls=1, sep=2, pad=3, roles=roles, max_tokens=64),
            tiers={"transformer": {"fp32": "transformer.fp32.onnx"}},
            quality={
                "rows": 120,
                "conversations": 40,
                "decision": "paper rule, T = 5",
                "systems": {
                    "scorer": {"spearman/sensibility": {"value": 0.512345, "low": 0.4, "high": 0.6}},
                    "mean": {"spearman/sensibility": {"value": 0.0, "low": 0.0, "high": 0.0}},
                },
            },
        ),
    )
    write_manifest(folder, KIND, {}, ["transformer.fp32.onnx", TOKENIZER_FILE, SPEC_FILE])
    return folder


@pytest.fixture(scope="session")
def scorer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer of the paper's two dimensions."""
    return make_counting_scorer(tmp_path_factory.mktemp("scorers") / "paper", ("sensibility", "rationality"))


@pytest.fixture(scope="session")
def other_scorer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer of another rubric's dimensions."""
    return make_counting_scorer(tmp_path_factory.mktemp("scorers") / "other", ("warmth", "clarity"))


@pytest.fixture(scope="session")
def tiny_options() -> Callable[..., Any]:
    """``DistillOptions`` under which a tiny encoder learns the synthetic scores in a second or two."""
    pytest.importorskip("torch", reason="torch is part of the distill extra")
    from efficient_empathy.distill.settings import DistillOptions, TrainingOptions

    def make(backbone: Path, epochs: int = 10, **changes: Any) -> DistillOptions:
        training = TrainingOptions(
            epochs=epochs, batch_size=8, learning_rate=1e-2, head_learning_rate=0.1, patience=epochs
        )
        return DistillOptions(backbone=str(backbone), max_tokens=64, holdout=0.3, training=training, **changes)

    return make


@pytest.fixture(scope="session")
def distilled(
    tiny_bert: Path, make_synthetic: Any, tiny_options: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A scorer folder that the whole pipeline made from 240 synthetic labels."""
    from efficient_empathy.distill.pipeline import LabelledData, distill
    from efficient_empathy.distill.rubric import Rubric

    out = tmp_path_factory.mktemp("distilled") / "scorer"
    distill(LabelledData(*make_synthetic(240)), Rubric.load(), tiny_options(tiny_bert), out)
    return out


@dataclass
class Reply:
    """What the server sends back; ``content`` is the judge's words, ``body`` overrides the whole of it."""

    content: str = '{"sensibility": 7, "rationality": 3}'
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    usage: bool = True
    message: str = "no"

    def encode(self) -> bytes:
        """The body of the response."""
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": self.message, "type": "test"}}).encode()
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.content}}
        value: dict[str, Any] = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
        }
        if self.usage:
            value["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        return json.dumps(value).encode()


class JudgeServer:
    """Counts what it was asked, by the text of the question, and answers as ``behave(request, times asked)`` says."""

    def __init__(self) -> None:
        self.behave: Callable[[dict[str, Any], int], Reply] = lambda request, times: Reply()
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str] = []
        self.paths: list[str] = []
        self.asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.paths.append(self.path)
                reply = outer._reply(request, self.headers.get("Authorization", ""))
                data = reply.encode()
                try:
                    self.send_response(reply.status)
                    for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *args: Any) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def _reply(self, request: dict[str, Any], authorization: str) -> Reply:
        with self._lock:
            text = request["messages"][-1]["content"]
            self.asked[text] += 1
            self.requests.append(request)
            self.authorizations.append(authorization)
            times = self.asked[text]
        return self.behave(request, times)

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def judge_server() -> Iterator[JudgeServer]:
    """A running server; it answers every question with 7 and 3 until told otherwise."""
    server = JudgeServer()
    yield server
    server.close()


@pytest.fixture
def reply() -> type[Reply]:
    """The class of the server's replies."""
    return Reply
