"""Sessions: the device that was asked for runs, or the user is told."""

import logging
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from efficient_empathy.environment import usable_cores
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer import session as sessions
from efficient_empathy.scorer.batching import OutOfMemoryError
from efficient_empathy.scorer.session import EXACT_INT8, open_session, run_batch

NO_CUDA = "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def model(scorer_folder):
    return scorer_folder / "transformer.fp32.onnx"


def test_an_unknown_device_is_refused(model):
    with pytest.raises(EmpathyError, match="device must be one of auto, cpu, cuda, tensorrt, openvino, not 'tpu'"):
        open_session(model, "tpu")


@pytest.mark.skipif(not NO_CUDA, reason="this build of ONNX Runtime has CUDA")
def test_cuda_without_its_provider_is_an_error_and_no_fallback(model):
    with pytest.raises(EmpathyError, match=r"--device cuda: .* has no CUDAExecutionProvider .* use --device cpu"):
        open_session(model, "cuda")


@pytest.mark.skipif(not NO_CUDA, reason="this build of ONNX Runtime has CUDA")
def test_auto_runs_on_the_cpu_where_nothing_else_is_offered(model, caplog):
    with caplog.at_level(logging.WARNING):
        assert open_session(model, "auto").get_providers() == ["CPUExecutionProvider"]
    assert not caplog.records


def test_auto_says_so_when_cuda_is_offered_but_does_not_start(model, caplog, monkeypatch):
    # A machine whose build has CUDA and whose driver does not: the session comes up on the CPU.
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, options, providers, **_: real(path, options, [offered[1]])
    )
    with caplog.at_level(logging.WARNING):
        assert open_session(model, "auto").get_providers() == ["CPUExecutionProvider"]
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "CUDA is offered by ONNX Runtime but did not start"
    ]
    with pytest.raises(EmpathyError, match="installed but did not start"):
        open_session(model, "cuda")
    caplog.clear()
    open_session(model, "cpu")
    assert not caplog.records


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (3, 3), (None, usable_cores())])
def test_threads(model, threads, expected):
    options = open_session(model, "cpu", threads).get_session_options()
    assert options.intra_op_num_threads == expected
    assert options.inter_op_num_threads == 1


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(EmpathyError, match=r"cannot open '.*broken\.onnx'"):
        open_session(path, "cpu")


def test_inputs_that_the_graph_lacks_are_left_out(model):
    ones = np.ones((2, 5), np.int64)
    batch = {"input_ids": ones, "attention_mask": ones, "token_type_ids": np.array([[0, 0, 1, 1, 1]] * 2)}
    # Response tokens, all tokens minus those.
    assert run_batch(open_session(model, "cpu"), batch).tolist() == [[3.0, 2.0], [3.0, 2.0]]


@pytest.mark.parametrize(
    "words",
    [
        "bfc_arena.cc:360 AllocateRawInternal Failed to allocate memory for requested buffer of size 50331648",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
        "bad allocation",
    ],
)
def test_want_of_memory_is_told_from_other_faults(model, words):
    class Refuses:
        """A session that fails with words that ONNX Runtime has been seen to use."""

        get_inputs = open_session(model, "cpu").get_inputs

        def __init__(self, words):
            self.words = words

        def run(self, names, feeds):
            raise onnxruntime.capi.onnxruntime_pybind11_state.Fail(f"[ONNXRuntimeError] : 1 : FAIL : {self.words}")

    batch = {"attention_mask": np.ones((2, 5), np.int64), "token_type_ids": np.ones((2, 5), np.int64)}
    with pytest.raises(OutOfMemoryError, match="ONNXRuntimeError"):
        run_batch(Refuses(words), batch)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="Invalid rank"):
        run_batch(Refuses("Invalid rank for input"), batch)


@pytest.fixture(scope="module")
def product_of_bytes(tmp_path_factory):
    """What int8 files are made of: unsigned bytes times signed ones, here the larger of two neighbouring inputs' weights."""
    onnx = pytest.importorskip("onnx", reason="onnx is part of the distill extra")
    make, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    nodes = [
        make("Cast", ["attention_mask"], ["bytes"], to=onnx.TensorProto.UINT8),
        make(
            "MatMulIntegerToFloat",
            ["bytes", "weight", "one", "ones", "zero", "", "bias"],
            ["scores"],
            domain="com.microsoft",
        ),
    ]
    constants = {
        "weight": np.array([[127, -127], [127, 1], [0, 0], [0, 0]], np.int8),
        "one": np.float32(1),
        "ones": np.ones(2, np.float32),
        "zero": np.uint8(0),
        "bias": np.zeros(2, np.float32),
    }
    mask = onnx.helper.make_tensor_value_info("attention_mask", onnx.TensorProto.INT64, ["rows", 4])
    scores = onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["rows", 2])
    tensors = [tensor(np.array(value), name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "bytes", [mask], [scores], tensors)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path_factory.mktemp("bytes") / "bytes.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


@pytest.mark.parametrize("saturates", [False, True])
def test_bytes_are_multiplied_exactly_where_the_processor_would_not(product_of_bytes, monkeypatch, saturates):
    monkeypatch.setattr(sessions, "int8_saturates_here", lambda: saturates)
    session = open_session(product_of_bytes, "cpu", 1)
    options = session.get_session_options()
    if not saturates:
        with pytest.raises(RuntimeError, match=EXACT_INT8):  # it has no such entry
            options.get_session_config_entry(EXACT_INT8)
    else:
        assert options.get_session_config_entry(EXACT_INT8) == "1"
        # 255 * 127 + 255 * 127 = 64,770, where 16 bits end at 32,767; 255 * -127 + 255 = -32,130.
        scores = run_batch(session, {"attention_mask": np.array([[255, 255, 0, 0]])})
        assert scores.tolist() == [[64770.0, -32130.0]]


LITTLE_MEMORY = """
import resource, sys
import numpy as np
from efficient_empathy.scorer.batching import TokenBudget, run_batches
from efficient_empathy.scorer.session import open_session, run_batch
session, budget = open_session(sys.argv[1], "cpu", 1), TokenBudget(10**9)
sums = np.zeros(2000)
def run(rows):
    sums[rows] = run_batch(session, {"attention_mask": np.ones((len(rows), 50), np.int64)})
run(np.array([0]))
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (80 << 20), held + (80 << 20)))
run_batches(np.full(2000, 50), budget, run)
assert (sums == 50 * 256).all()
print(budget.tokens)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space, as Linux does")
def test_a_real_session_that_runs_out_of_memory_goes_on_with_smaller_batches(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is part of the distill extra")
    make, single = onnx.helper.make_node, onnx.TensorProto.FLOAT
    # Each token becomes 256 numbers, 1 KiB: 2,000 rows of 50 tokens take 100 MB, and there are 80 MiB.
    nodes = [
        make("Cast", ["attention_mask"], ["mask"], to=single),
        make("Unsqueeze", ["mask", "last"], ["column"]),
        make("Expand", ["column", "shape"], ["wide"]),
        make("ReduceSum", ["wide", "inner"], ["scores"], keepdims=0),
    ]
    constants = {"last": [2], "shape": [1, 1, 256], "inner": [1, 2]}
    tensors = [onnx.numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()]
    mask = onnx.helper.make_tensor_value_info("attention_mask", onnx.TensorProto.INT64, ["rows", "length"])
    scores = onnx.helper.make_tensor_value_info("scores", single, ["rows"])
    graph = onnx.helper.make_graph(nodes, "wide", [mask], [scores], tensors)
    path = tmp_path / "wide.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path))
    result = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert 1000 < int(result.stdout) < 100_000
