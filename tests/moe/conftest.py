"""Experts of a tiny model, made without training: adapters with random weights."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

# The tiny model, its tokenizer and the subsets are those of the experts' tests.
_spec = importlib.util.spec_from_file_location(
    "experts_fixtures", Path(__file__).parents[1] / "experts" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
sys.modules["experts_fixtures"] = _fixtures
_spec.loader.exec_module(_fixtures)
make_tiny_lm, tiny_lm, subsets = _fixtures.make_tiny_lm, _fixtures.tiny_lm, _fixtures.subsets


@pytest.fixture(scope="session")
def make_expert(tiny_lm: Path) -> Callable[..., Path]:
    """Writes an expert folder whose adapter is random, strong enough to change what the model says."""
    torch = pytest.importorskip("torch", reason="torch is part of the experts extra")
    pytest.importorskip("peft", reason="peft is part of the experts extra")
    from efficient_empathy.experts.artifact import LOG_FILE, Expert, write_expert
    from efficient_empathy.experts.bases import find_base, load_base
    from efficient_empathy.experts.options import ExpertOptions, LoraOptions
    from efficient_empathy.experts.rendering import Renderer
    from efficient_empathy.experts.training import add_adapter

    def make(
        folder: Path, seed: int, rank: int = 2, base: Path | None = None, system: str = "be kind", **lora: Any
    ) -> Path:
        found = find_base(str(base or tiny_lm))
        model, tokenizer = load_base(found)
        options = ExpertOptions(
            base=str(base or tiny_lm), system=system, holdout=0.2, seed=seed, lora=LoraOptions(rank=rank, **lora)
        )
        model = add_adapter(model, options.lora, options)
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.08)
        renderer = Renderer(tokenizer, 64, system)
        expert = Expert(found.describe(), renderer.describe(), asdict(options), {"selection": {}}, {})
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_name(f"{folder.name}-{LOG_FILE}")
        log.write_text("step\n")
        write_expert(model, expert, "# a card", folder, log)
        log.unlink()
        return folder

    return make


@pytest.fixture(scope="session")
def experts(make_expert: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three experts of different ranks and scales."""
    folder = tmp_path_factory.mktemp("experts")
    return [
        make_expert(folder / "sensibility", 1),
        make_expert(folder / "rationality", 2, rank=3, alpha=12.0),
        make_expert(folder / "third", 3, rank=4, rslora=True, alpha=8.0),
    ]
