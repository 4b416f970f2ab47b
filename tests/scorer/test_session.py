"""Sessions: the device that was asked for runs, or the user is told."""

import logging

import numpy as np
import onnxruntime
import pytest

from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.session import open_session, run_batch, usable_cores

NO_CUDA = "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def model(scorer_folder):
    return scorer_folder / "transformer.fp32.onnx"


def test_an_unknown_device_is_refused(model):
    with pytest.raises(EmpathyError, match="device must be one of auto, cpu, cuda, not 'tpu'"):
        open_session(model, "tpu")


@pytest.mark.skipif(not NO_CUDA, reason="this build of ONNX Runtime has CUDA")
def test_cuda_without_its_provider_is_an_error_and_no_fallback(model):
    with pytest.raises(EmpathyError, match=r"--device cuda: .* has no CUDA provider .* use --device cpu"):
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
        onnxruntime, "InferenceSession", lambda path, options, providers: real(path, options, [offered[1]])
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
