"""A real scorer folder, tiny: its ONNX graph counts tokens, so its scores can be worked by hand."""

from pathlib import Path

import numpy as np
import pytest

from efficient_empathy.manifest import write_manifest
from efficient_empathy.scorer.artifact import KIND, SPEC_FILE, TOKENIZER_FILE, Scale, ScorerSpec, write_spec
from efficient_empathy.scorer.encoding import EncodingSpec


def make_counting_scorer(folder: Path, dimensions: tuple[str, str]) -> Path:
    """Column 0: tokens of the response plus 2 (its role and the last SEP); column 1: all tokens minus those."""
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
