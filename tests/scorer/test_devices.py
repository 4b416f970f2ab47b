"""Devices by name, and the GPU's way of running, exercised on the CPU provider: no GPU is needed here."""

import hashlib
import logging
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from efficient_empathy.dialogues.types import Example, Turn
from efficient_empathy.environment import cache_folder
from efficient_empathy.errors import EmpathyError, MissingExtraError
from efficient_empathy.scorer import devices, tiers
from efficient_empathy.scorer.batching import TokenBudget, TokenCount, run_batches
from efficient_empathy.scorer.devices import bucket, first_choice, int8_saturates, providers_for
from efficient_empathy.scorer.scorer import Scorer, _precision
from efficient_empathy.scorer.session import open_session, run_batch, run_bound

OFFERED = onnxruntime.get_available_providers()
ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture(scope="module")
def model(scorer_folder):
    return scorer_folder / "transformer.fp32.onnx"


@pytest.mark.parametrize(
    ("device", "provider", "mend"),
    [
        ("cuda", "CUDAExecutionProvider", r"\[gpu\] extra instead of \[cpu\]"),
        ("tensorrt", "TensorrtExecutionProvider", r"\[gpu\] extra .* TensorRT version"),
        ("openvino", "OpenVINOExecutionProvider", "pip install onnxruntime-openvino"),
    ],
)
def test_a_provider_that_is_missing_is_an_error_that_says_how_to_install_it(scorer_folder, device, provider, mend):
    if provider in OFFERED:
        pytest.skip(f"this ONNX Runtime has {provider}")
    with pytest.raises(EmpathyError, match=f"--device {device}: .* has no {provider} .*{mend}.* use --device cpu"):
        Scorer.load(scorer_folder, device=device)


@pytest.mark.parametrize("device", ["cuda", "tensorrt", "openvino"])
def test_a_provider_that_is_offered_and_cannot_be_had_is_an_error(model, device, monkeypatch, tmp_path):
    if devices.provider_of(device) in OFFERED:
        pytest.skip(f"this ONNX Runtime has {device}")
    monkeypatch.setenv("EE_CACHE", str(tmp_path))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    # This build has none of them: ONNX Runtime leaves them out with a warning of its own, as it does without a driver.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(EmpathyError, match=f"--device {device}: .* did not start"):
            open_session(model, device)


def test_a_provider_that_breaks_off_is_told_and_auto_falls_back(model, monkeypatch, caplog, capfd):
    real = onnxruntime.InferenceSession

    def breaks(path, options, providers, **rest):
        if len(providers) > 1:
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
        return real(path, options, providers, **rest)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    monkeypatch.setattr(onnxruntime, "InferenceSession", breaks)
    with pytest.raises(EmpathyError, match=r"--device cuda: .* CUDA failure 100"):
        open_session(model, "cuda")
    with caplog.at_level(logging.WARNING):
        assert open_session(model, "auto").get_providers() == ["CPUExecutionProvider"]
    assert "CUDA failure 100" in caplog.text
    assert capfd.readouterr().out == ""


def test_providers_in_order_with_their_options(model, monkeypatch, tmp_path):
    monkeypatch.setenv("EE_CACHE", str(tmp_path))
    found = {device: providers_for(device, model, ALL, 3, True) for device in devices.DEVICES if device != "auto"}
    cpu = ("CPUExecutionProvider", {})
    cuda = ("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"})
    engines = str(tmp_path / "tensorrt" / hashlib.sha256(model.read_bytes()).hexdigest()[:32])
    tensorrt = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": engines,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": engines,
        "trt_fp16_enable": "1",
    }
    openvino = {"device_type": "CPU", "precision": "FP32", "num_of_threads": "3"}
    assert found == {
        "cpu": [cpu],
        "cuda": [cuda, cpu],
        "tensorrt": [("TensorrtExecutionProvider", tensorrt), cuda, cpu],
        "openvino": [("OpenVINOExecutionProvider", openvino), cpu],
    }


def test_tensorrt_keeps_the_engines_of_each_file_apart(model, monkeypatch, tmp_path):
    monkeypatch.setenv("EE_CACHE", str(tmp_path / "cache"))
    other = tmp_path / model.name  # the same name, other weights
    other.write_bytes(model.read_bytes() + b"\0")
    first, half, second = (
        dict(providers_for("tensorrt", path, ALL, 1, fp16))["TensorrtExecutionProvider"]
        for path, fp16 in ((model, False), (model, True), (other, False))
    )
    assert Path(first["trt_engine_cache_path"]).is_dir()
    assert Path(first["trt_engine_cache_path"]).parent == tmp_path / "cache" / "tensorrt"
    assert first["trt_engine_cache_path"] == half["trt_engine_cache_path"] != second["trt_engine_cache_path"]
    assert (first["trt_fp16_enable"], half["trt_fp16_enable"]) == ("0", "1")
    (tmp_path / "file").touch()
    monkeypatch.setenv("EE_CACHE", str(tmp_path / "file"))
    with pytest.raises(EmpathyError, match="Set EE_CACHE to a folder"):
        providers_for("tensorrt", model, ALL, 1, False)


def test_the_cache_is_the_user_s(monkeypatch):
    monkeypatch.delenv("EE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/efficient-empathy")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "efficient-empathy"


@pytest.mark.parametrize(
    ("length", "padded"),
    [(1, 16), (16, 16), (17, 32), (33, 48), (100, 112), (128, 128), (129, 160), (256, 256), (257, 320), (513, 640)],
)
def test_buckets(length, padded):
    assert bucket(length, 8192) == padded


def test_no_bucket_is_longer_than_the_encoder_s_positions():
    assert bucket(50, 62) == 62


def test_batches_are_filled_by_padded_lengths():
    # Padded: 32, 32, 16, 16. A budget of 64 takes two of 32, then four of 16.
    lengths, batches = np.array([17, 5, 30, 16]), []
    count = run_batches(lengths, TokenBudget(64), lambda rows: batches.append(rows.tolist()), lambda n: bucket(n, 64))
    assert batches == [[2, 0], [3, 1]]
    assert count == TokenCount(real=68, computed=2 * 32 + 2 * 16)


def examples(count):
    context = (Turn("speaker", "My dog died."),)
    return [Example(str(n), str(n), 1, context, " ".join(["word"] * (n % 40 + 1))) for n in range(count)]


def test_io_binding_gives_the_scores_of_the_plain_path(model):
    session = open_session(model, "cpu")
    ones = np.ones((3, 5), np.int64)
    batch = {"input_ids": ones, "attention_mask": ones, "token_type_ids": np.tril(ones)}
    # Response tokens 1, 2, 3 of 5; the graph has no input_ids.
    assert run_bound(session, batch).tolist() == [[1, 4], [2, 3], [3, 2]]
    assert run_bound(session, batch).tolist() == run_batch(session, batch).tolist()


def test_the_gpu_s_way_gives_the_same_scores(scorer_folder, monkeypatch):
    rows = examples(90)
    plain = Scorer.load(scorer_folder, device="cpu")
    expected = plain.score(rows)
    shapes = []

    def seen(session, batch):
        shapes.append(batch["input_ids"].shape)
        return run_bound(session, batch)

    monkeypatch.setattr(tiers, "on_gpu", lambda session: True)
    monkeypatch.setattr(tiers, "run_bound", seen)
    monkeypatch.setattr(tiers, "GPU_BATCH_TOKENS", 640)
    bound = Scorer.load(scorer_folder, device="cpu")
    np.testing.assert_array_equal(bound.score(rows), expected)
    assert {length for _, length in shapes} <= {16, 32, 48, 64}
    assert max(count * length for count, length in shapes) <= 640
    assert bound.tokens.real == plain.tokens.real
    assert bound.tokens.computed == sum(count * length for count, length in shapes)


def test_precision_by_device(scorer_folder, monkeypatch):
    spec = Scorer.load(scorer_folder, device="cpu").spec
    files = {"fp32": "a", "fp16": "b", "int8": "c"}

    def chosen(device, *names):
        object.__setattr__(spec, "tiers", {"transformer": {name: files[name] for name in names}})
        return _precision("scorer", spec, "auto", device)

    every = ("fp32", "fp16", "int8")
    assert [chosen(d, *every) for d in ("cpu", "cuda", "tensorrt", "openvino")] == ["int8", "fp16", "fp16", "fp32"]
    assert [chosen(d, "fp32") for d in ("cpu", "cuda")] == ["fp32", "fp32"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    assert chosen("auto", *every) == "fp16"


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu sse4_2 avx2 avx512f avx512bw", True),
        ("x86_64", "fpu avx2 avx512f avx512_vnni amx_int8", False),
        ("AMD64", "fpu avx2 avx_vnni", False),
        ("x86_64", "fpu avx2 not_avx_vnni", True),
        ("aarch64", "fpu avx2", False),
    ],
)
def test_which_processors_add_bytes_in_too_few_bits(machine, flags, expected):
    cpuinfo = f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\nbugs\t\t: none\n"
    assert int8_saturates(machine, cpuinfo * 2) is expected


@pytest.mark.parametrize("cpuinfo", ["", "processor\t: 0\nFeatures\t: fp asimd\n", "vmx flags\t: ept\n"])
def test_of_an_unknown_processor_nothing_is_assumed(cpuinfo):
    assert not int8_saturates("x86_64", cpuinfo)


def test_the_command_line_names_the_devices_and_ray_has_two_of_them(scorer_folder, tmp_path):
    from efficient_empathy.scorer.commands import score_command

    args = [str(tmp_path / "x.jsonl"), "--scorer", str(scorer_folder), "-o", str(tmp_path / "o")]
    wrong = CliRunner().invoke(score_command, [*args, "--device", "tpu"])
    assert wrong.exit_code == 2
    assert "openvino" in wrong.output
    ray = CliRunner().invoke(score_command, [*args, "--engine", "ray", "--device", "tensorrt"])
    assert "--engine ray runs on cpu or cuda, not on tensorrt" in str(ray.exception)


def test_a_hollow_onnxruntime_is_an_error_and_a_missing_one_is_none(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(EmpathyError, match=r"installed but cannot be used: .*ee-cli doctor"):
        first_choice("auto")
    with pytest.raises(EmpathyError, match=r"installed but cannot be used: .*ee-cli doctor"):
        open_session(model)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert first_choice("auto") == "cpu"
    with pytest.raises(MissingExtraError, match=r"efficient-empathy\[cpu\]"):
        open_session(model)
