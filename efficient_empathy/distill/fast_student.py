"""The fast tier's model: trained on the transformer's scores of unlabelled examples, written as ONNX.

One vector a hashed n-gram, averaged over the response, over the turn it answers and over what was said before; the averages and
the lengths go through one hidden layer to a probability for each point of each scale, as in ``Student``.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from efficient_empathy.distill.calibration import Line
from efficient_empathy.distill.settings import FastOptions
from efficient_empathy.distill.student import exceedances
from efficient_empathy.errors import EmpathyError
from efficient_empathy.manifest import write_atomic
from efficient_empathy.scorer.artifact import Scale
from efficient_empathy.scorer.fast import FIELDS, NUMBERS, FastRows, FastSpec
from efficient_empathy.scorer.session import open_session, run_batch

_OPSET = 17
_IR_VERSION = 8
_TOLERANCE = 1e-4
_ROWS = 1024
_log = logging.getLogger(__name__)


class FastStudent(nn.Module):
    """Averaged n-gram vectors under a small network.

    The names' suffixes are B batch, N n-grams, V size of a vector, P points of all scales.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, spec: FastSpec, points: int, options: FastOptions):
        super().__init__()
        self.spec = spec
        self.line: Line | None = None
        """How expected scores become final ones; None leaves them as they are."""
        self.response, self.context, self.earlier = (_table(spec, options.vector) for _ in FIELDS)
        self.hidden = nn.Linear(options.vector * len(FIELDS) + NUMBERS, options.hidden)
        self.out = nn.Linear(options.hidden, points)
        self.dropout = nn.Dropout(options.dropout)
        self.register_buffer("mean", torch.zeros(NUMBERS))
        self.register_buffer("spread", torch.ones(NUMBERS))

    def forward(self, response: Tensor, context: Tensor, earlier: Tensor, numbers: Tensor) -> Tensor:
        """Log-odds that the score is more than each point, (batch, points), from padded n-grams and the lengths."""
        averages_BV = torch.cat([self.response(response), self.context(context), self.earlier(earlier)], 1)
        known = torch.cat([self.dropout(averages_BV), (numbers - self.mean) / self.spread], 1)
        return self.out(self.dropout(torch.relu(self.hidden(known))))

    def tables(self) -> dict[str, nn.EmbeddingBag]:
        """The vectors of each of ``FIELDS``; the last row is padding and stays 0."""
        return {"response": self.response, "context": self.context, "earlier": self.earlier}


def _table(spec: FastSpec, size: int) -> nn.EmbeddingBag:
    table = nn.EmbeddingBag(spec.buckets + 1, size, mode="mean", padding_idx=spec.buckets)
    nn.init.normal_(table.weight, 0, 0.1)
    with torch.no_grad():
        table.weight[spec.buckets] = 0
    return table


def train_fast(
    rows: FastRows, scores: np.ndarray, scales: tuple[Scale, ...], options: FastOptions, seed: int
) -> FastStudent:
    """Train a student on the transformer's scores.

    Args:
        rows: the examples.
        scores: what the transformer gave them, (n, d).
        scales: the dimensions.
        options: how to train.
        seed: of the weights, the order of the rows and dropout.
    """
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    targets = torch.from_numpy(exceedances(scores, scales))
    student = FastStudent(options.spec, targets.shape[1], options)
    numbers = torch.from_numpy(rows.numbers)
    student.mean.copy_(numbers.mean(0))
    student.spread.copy_(numbers.std(0).clamp(min=1e-3))
    vectors = [table.weight for table in student.tables().values()]
    above = [*student.hidden.parameters(), *student.out.parameters()]
    groups: list[dict[str, Any]] = [{"params": vectors}, {"params": above, "lr": options.learning_rate / 3}]
    optimizer = torch.optim.Adam(groups, lr=options.learning_rate)
    loss_of = nn.BCEWithLogitsLoss()
    for epoch in range(options.epochs):
        total = 0.0
        for some in np.array_split(draw.permutation(len(rows)), max(1, len(rows) // options.batch_size)):
            optimizer.zero_grad()
            loss = loss_of(student(**_tensors(rows, some, options.spec)), targets[torch.from_numpy(some)])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(some)
        _log.info("fast tier: epoch %d of %d, loss %.4f", epoch + 1, options.epochs, total / len(rows))
    with torch.no_grad():  # the file holds half precision: what is measured from here on is what is shipped
        for table in vectors:
            table.copy_(table.half().float())
    return student.eval()


def fast_scores(student: FastStudent, rows: FastRows, scales: tuple[Scale, ...]) -> np.ndarray:
    """Scores by the torch model, float32 (n, d)."""
    sums = _Sums(scales)
    found = np.zeros((len(rows), len(scales)), np.float32)
    with torch.inference_mode():
        for start in range(0, len(rows), _ROWS):
            some = np.arange(start, min(start + _ROWS, len(rows)))
            shares = torch.sigmoid(student(**_tensors(rows, some, student.spec))).numpy()
            found[some] = shares @ sums.membership + sums.low
    if student.line is not None:
        found = student.line.apply(found).astype(np.float32)
    return np.clip(found, sums.low, sums.high)


def _tensors(rows: FastRows, some: np.ndarray, spec: FastSpec) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in rows.batch(some, spec).items()}


@dataclass(frozen=True)
class _Sums:
    """How probabilities of points become scores."""

    scales: tuple[Scale, ...]

    @property
    def low(self) -> np.ndarray:
        return np.array([scale.low for scale in self.scales], np.float32)

    @property
    def high(self) -> np.ndarray:
        return np.array([scale.high for scale in self.scales], np.float32)

    @property
    def membership(self) -> np.ndarray:
        """float32 (points, d), 1 where a point is of a dimension's scale."""
        points = [round(scale.high - scale.low) for scale in self.scales]
        found = np.zeros((sum(points), len(points)), np.float32)
        found[np.arange(sum(points)), np.repeat(np.arange(len(points)), points)] = 1
        return found


def export_fast(student: FastStudent, path: Path, scales: tuple[Scale, ...]) -> None:
    """Write the student as an ONNX file: the vectors in half precision, all arithmetic in single."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    make, sums = helper.make_node, _Sums(scales)
    line = student.line or Line(np.ones(len(scales)), np.zeros(len(scales)))
    constants: dict[str, np.ndarray] = {
        "axis": np.array([1], np.int64),
        "pad": np.array(student.spec.buckets, np.int64),
        "one": np.array(1, np.float32),
        "mean": student.mean.numpy(),
        "spread": student.spread.numpy(),
        "low": sums.low,
        "high": sums.high,
        "membership": sums.membership,
        "slope": line.slope.astype(np.float32),
        "intercept": line.intercept.astype(np.float32),
    }
    for name, layer in (("hidden", student.hidden), ("out", student.out)):
        constants[f"{name}.weight"] = layer.weight.detach().numpy()
        constants[f"{name}.bias"] = layer.bias.detach().numpy()
    nodes: list[Any] = []
    for field, table in student.tables().items():
        constants[f"{field}.vectors"] = table.weight.detach().half().numpy()
        nodes += [
            make("Gather", [f"{field}.vectors", field], [f"{field}.halves"], axis=0),
            make("Cast", [f"{field}.halves"], [f"{field}.singles"], to=TensorProto.FLOAT),
            make("ReduceSum", [f"{field}.singles", "axis"], [f"{field}.sum"], keepdims=0),
            make("Less", [field, "pad"], [f"{field}.real"]),
            make("Cast", [f"{field}.real"], [f"{field}.ones"], to=TensorProto.FLOAT),
            make("ReduceSum", [f"{field}.ones", "axis"], [f"{field}.count"], keepdims=1),
            make("Max", [f"{field}.count", "one"], [f"{field}.divisor"]),
            make("Div", [f"{field}.sum", f"{field}.divisor"], [f"{field}.average"]),
        ]
    nodes += [
        make("Sub", ["numbers", "mean"], ["centred"]),
        make("Div", ["centred", "spread"], ["scaled"]),
        make("Concat", [*(f"{field}.average" for field in FIELDS), "scaled"], ["known"], axis=1),
        make("Gemm", ["known", "hidden.weight", "hidden.bias"], ["before"], transB=1),
        make("Relu", ["before"], ["after"]),
        make("Gemm", ["after", "out.weight", "out.bias"], ["odds"], transB=1),
        make("Sigmoid", ["odds"], ["shares"]),
        make("Gemm", ["shares", "membership", "low"], ["expected"]),
        make("Mul", ["expected", "slope"], ["stretched"]),
        make("Add", ["stretched", "intercept"], ["calibrated"]),
        make("Max", ["calibrated", "low"], ["raised"]),
        make("Min", ["raised", "high"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", f"{name}_ngrams"]) for name in FIELDS]
    inputs.append(helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["rows", NUMBERS]))
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", len(scales)])]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "fast", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    write_atomic(path, model.SerializeToString())


def check_fast(path: Path, expected: np.ndarray, rows: FastRows, spec: FastSpec) -> float:
    """Largest difference of a score between the file and torch.

    Raises:
        EmpathyError: it is over 1e-4: the export is wrong and nothing is shipped.
    """
    session = open_session(path, "cpu", 1)
    order = rows.order
    found = np.zeros_like(expected)
    for start in range(0, len(order), _ROWS):
        some = order[start : start + _ROWS]
        found[some] = run_batch(session, rows.batch(some, spec))
    difference = float(np.abs(found - expected).max(initial=0.0))
    if not difference <= _TOLERANCE:  # so put, NaN does not pass
        raise EmpathyError(
            f"the exported fast tier's scores differ from torch's by up to {difference:.2g} (allowed: {_TOLERANCE:g}). "
            "Report this with the output of 'ee-cli doctor'; --fast-examples 0 distils without a fast tier."
        )
    return difference
