"""A language model of a few thousand parameters, and subsets to train it on."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from efficient_empathy.manifest import write_manifest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not; the tests import the tokenizer from here
from tiny_words import WORDS, make_tokenizer


@pytest.fixture(scope="session")
def make_tiny_lm() -> Callable[..., Any]:
    """Makes a Llama of 5,000 or so parameters with random weights; ``spread`` large enough has no near-ties."""
    torch = pytest.importorskip("torch", reason="torch is part of the experts extra")
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0, spread: float = 0.3, **changes: Any) -> Any:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(make_tokenizer()),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            initializer_range=spread,
            bos_token_id=6,
            eos_token_id=7,
            pad_token_id=1,
            **changes,
        )
        return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture(scope="session")
def tiny_lm(make_tiny_lm: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with such a model and its tokenizer, as ``--base`` takes it."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-lm"
    make_tiny_lm().save_pretrained(folder, safe_serialization=True)
    make_tokenizer().save_pretrained(folder)
    return folder


def _rows(name: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows as ``filter`` writes them, of ragged lengths; responses of a subset begin in its own way."""
    rng = np.random.default_rng(seed)
    first = {"sensibility": "i am so sorry", "rationality": "maybe plan"}.get(name, "why")
    rows = []
    for index in range(count):
        context = [" ".join(rng.choice(WORDS, rng.integers(2, 12))) for _ in range(1 + 2 * int(rng.integers(0, 2)))]
        response = f"{first} {' '.join(rng.choice(WORDS, rng.integers(1, 9)))}"
        conversation = f"{name}-{index // 2}"
        rows.append(
            {
                "id": f"{conversation}_turn:{index % 2}",
                "conv_id": conversation,
                "context": context,
                "response": response,
                "ee_subset": name,
            }
        )
    return rows


@pytest.fixture(scope="session")
def subsets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filter run's folder: 60 rows of sensibility, 40 of rationality, 20 discarded."""
    folder = tmp_path_factory.mktemp("filtered") / "subsets"
    counts = {"sensibility": 60, "rationality": 40, "discarded": 20}
    for seed, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        lines = [orjson.dumps(row) for row in _rows(name, count, seed)]
        (folder / name / "part-00000.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    body = {
        "scorer": {"folder": "scorer", "digest": "0" * 64},
        "policy": {"name": "paper", "threshold": 5.0},
        "subsets": {name: {"examples": count} for name, count in counts.items()},
    }
    write_manifest(folder, "subsets", body, [f"{name}/part-00000.jsonl" for name in counts])
    return folder
