"""What smoke runs use: models of some thousand parameters and rows that are made up. Figures from them mean nothing."""

import sys
from pathlib import Path

import numpy as np
from common import ROOT

sys.path.insert(0, str(ROOT / "tests" / "experts"))
from tiny_words import WORDS, make_tokenizer

WARM, THOUGHTFUL = ("sorry", "happy", "sad", "glad", "feel"), ("plan", "maybe", "how", "why", "exam")
ENCODER_SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def language_model(folder: Path) -> Path:
    """A Llama of two layers with random weights that knows thirty words, as ``--base`` takes it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if (folder / "tokenizer.json").is_file():
        return folder
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 6, "eos_token_id": 7, "pad_token_id": 1}
    tokenizer = make_tokenizer()
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, initializer_range=0.3, **sizes, **special)
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def encoder(folder: Path) -> Path:
    """A BERT of two layers with random weights that knows the same words, as ``--backbone`` takes it."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    if (folder / "tokenizer.json").is_file():
        return folder
    torch.manual_seed(0)
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = [*roles.values(), *WORDS, "speaker", "listener", "system"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    config = BertConfig(**ENCODER_SIZE, vocab_size=len(words), max_position_embeddings=64, initializer_range=0.2)
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    return folder


def reply(rng: np.random.Generator) -> tuple[str, int, int]:
    """A response, and how many warm and how many thoughtful words it holds: mostly many of one and few of the other."""
    kind = rng.choice(3, p=[0.6, 0.25, 0.15])
    warm = int(rng.integers(*[(3, 5), (3, 5), (0, 2)][kind]))
    thoughtful = int(rng.integers(*[(0, 2), (3, 5), (3, 5)][kind]))
    words = [*rng.choice(WARM, warm), *rng.choice(THOUGHTFUL, thoughtful), *rng.choice(WORDS, rng.integers(0, 3))]
    return " ".join(rng.permutation(words)), warm, thoughtful


def conversations(count: int, prefix: str, seed: int) -> list[dict]:
    """Conversations of two turns each way, the responses rated by the words they hold."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        turns, scores = [], []
        for _ in range(2):
            text, warm, thoughtful = reply(rng)
            turns.append({"role": "speaker", "text": " ".join(rng.choice(WORDS, rng.integers(2, 9)))})
            turns.append({"role": "listener", "text": text})
            scores.append({"sensibility": 1 + 2 * warm, "rationality": 1 + 2 * thoughtful})
        found.append({"id": f"{prefix}{index}", "turns": turns, "scores": scores})
    return found


def judged_rows(count: int) -> list[dict]:
    """Rows of the form of the paper's judge scores."""
    return [
        {
            "id": f"{one['id']}_turn:{turn}",
            "conv_id": one["id"],
            "context": one["turns"][:turn],
            "response": one["turns"][turn]["text"],
            **one["scores"][turn // 2],
        }
        for one in conversations(count, "v", 1)
        for turn in (1, 3)
    ]


def mechanism_rows(count: int) -> list[dict]:
    """Rows of the form of EPITOME's."""
    rng = np.random.default_rng(2)
    found = []
    for index in range(count):
        text, warm, thoughtful = reply(rng)
        row = {"id": f"e{index}", "sp_id": f"p{index}", "seeker": " ".join(rng.choice(WORDS, 4)), "response": text}
        levels = (warm, thoughtful, text.count("why") + text.count("how"))
        names = ("emotional_reactions", "interpretations", "explorations")
        found.append({**row, **{name: min(2, level) for name, level in zip(names, levels, strict=True)}})
    return found
