"""Optional modules: present, absent, and present but broken are three different things."""

import pytest

from efficient_empathy.errors import EmpathyError, MissingExtraError, require


def test_a_module_that_is_there_is_imported():
    import json.decoder

    assert require("json.decoder", "distill", "anything") is json.decoder


def test_an_absent_module_names_its_extra_and_the_purpose():
    with pytest.raises(MissingExtraError) as caught:
        require("surely_not_installed.part", "distill", "training a scorer")
    assert isinstance(caught.value, EmpathyError)
    assert str(caught.value) == (
        "'surely_not_installed' is not installed; it is needed for training a scorer. "
        "Install it with: pip install 'efficient-empathy[distill]'"
    )


def test_a_module_that_lacks_something_itself_is_not_called_absent(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        require("needs_more", "distill", "anything")
