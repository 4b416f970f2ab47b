"""Checkpoints are tensors and JSON: what comes back is what went in, and nothing else goes in."""

import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")

from efficient_empathy.errors import EmpathyError  # noqa: E402
from efficient_empathy.experts.checkpoints import SafeCheckpointIO  # noqa: E402


def test_what_comes_back_is_what_went_in(tmp_path):
    weights = torch.arange(6.0).reshape(2, 3)
    checkpoint = {
        "state_dict": {"a.b": weights, "transposed": weights.T},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]}],
        "loops": {"done": True, "none": None, "rate": 1e-4, "name": "fit", "empty": {}},
    }
    path = tmp_path / "last.safetensors"
    SafeCheckpointIO().save_checkpoint(checkpoint, path)
    found = SafeCheckpointIO().load_checkpoint(path)
    assert found["loops"] == checkpoint["loops"]
    assert found["optimizer_states"][0]["param_groups"] == [{"betas": (0.9, 0.999)}]
    assert found["optimizer_states"][0]["state"][0]["step"] == 3.0
    assert torch.equal(found["state_dict"]["transposed"], weights.T)
    assert list(found) == list(checkpoint)
    assert b"pickle" not in path.read_bytes()


def test_code_is_not_written(tmp_path):
    with pytest.raises(TypeError, match="cannot hold function"):
        SafeCheckpointIO().save_checkpoint({"hook": lambda: 1}, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_broken_file_is_said(tmp_path):
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"\x80\x04pickled")
    with pytest.raises(EmpathyError, match="remove it to start over"):
        SafeCheckpointIO().load_checkpoint(path)
