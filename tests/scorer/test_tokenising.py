"""Which library tokenises: tokie only where its ids are those of ``tokenizers``."""

import itertools
import random
import sys
import types

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from efficient_empathy.dialogues.types import Example, Turn
from efficient_empathy.errors import EmpathyError, MissingExtraError
from efficient_empathy.scorer import Scorer
from efficient_empathy.scorer.encoding import Encoder, EncodingSpec
from efficient_empathy.scorer.tokenising import PROBES, choose_tokenizer, load_tokenizer

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"abcdefghijklmnopqrstuvwxyz'.,!?",
    *(f"##{c}" for c in "abcdehilnorst"),
    "你",
]
ALPHABETS = [
    "abc XYZ'.,!?",
    "éèñß",
    "\u0301\u0303",
    "😂❤️👍🏽",
    "你好",
    "\x00\x07\t\n\r\x7f\x85\u00a0\u200b",
    "[UNK][SEP]##",
    "“’—",
]


@pytest.fixture
def word_pieces(tmp_path):
    """A BERT tokenizer of some fifty pieces."""
    path = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(PIECES[:4])
    tokenizer.save(str(path))
    return path


def ids(tokenizer, texts):
    return [list(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def some_texts(n=3000):
    rng = random.Random(0)
    return ["".join(rng.choice(rng.choice(ALPHABETS)) for _ in range(rng.randint(0, 20))) for _ in range(n)]


def stand_in(monkeypatch, encode):
    """Puts a library in tokie's place whose batches are what ``encode`` makes of the true ones."""

    class Stand:
        def __init__(self, path):
            self.true = load_tokenizer(path)
            self.seen = []

        def encode_batch(self, texts, add_special_tokens=True):
            self.seen += texts
            return encode(texts, self.true.encode_batch_fast(texts, add_special_tokens=add_special_tokens))

        def no_padding(self):
            self.true.no_padding()

        no_truncation = no_padding

    module = types.ModuleType("tokie")
    module.Tokenizer = types.SimpleNamespace(from_json=Stand)
    module.TokieError = type("TokieError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "tokie", module)
    return module


def test_tokie_gives_the_ids_of_tokenizers(word_pieces):
    pytest.importorskip("tokie", reason="tokie is part of the fast-tokenizer extra")
    tokenizer, library = choose_tokenizer(word_pieces)
    assert library == "tokie"
    reference = load_tokenizer(word_pieces)
    assert ids(tokenizer, some_texts()) == ids(reference, some_texts())
    assert ids(tokenizer, []) == []


def test_where_one_probe_differs_tokie_is_not_used(word_pieces, monkeypatch):
    def wrong_for_one(texts, encodings):
        odd = types.SimpleNamespace(ids=[1, 2, 3])
        return [odd if text == PROBES[-1] else encoding for text, encoding in zip(texts, encodings, strict=True)]

    stand_in(monkeypatch, wrong_for_one)
    assert choose_tokenizer(word_pieces)[1] == "tokenizers"
    with pytest.raises(EmpathyError, match="tokie gives other ids than tokenizers, for example for '😂"):
        choose_tokenizer(word_pieces, "tokie")
    stand_in(monkeypatch, lambda texts, encodings: list(encodings))
    assert choose_tokenizer(word_pieces)[1] == "tokie"
    assert choose_tokenizer(word_pieces, "tokenizers")[1] == "tokenizers"


def test_texts_with_control_characters_are_left_to_tokenizers(word_pieces, monkeypatch):
    def wrong_for_control(texts, encodings):
        odd = types.SimpleNamespace(ids=[1])
        return [odd if "\x7f" in text else encoding for text, encoding in zip(texts, encodings, strict=True)]

    stand_in(monkeypatch, wrong_for_control)
    tokenizer, library = choose_tokenizer(word_pieces)
    assert library == "tokie"
    texts = ["\x7f", "ab\x7f", "ab\ncd"]
    assert ids(tokenizer, texts) == ids(load_tokenizer(word_pieces), texts)


def test_a_file_that_tokie_cannot_read(word_pieces, monkeypatch):
    module = stand_in(monkeypatch, None)

    def refuse(path):
        raise module.TokieError("merges should be array")

    module.Tokenizer.from_json = refuse
    assert choose_tokenizer(word_pieces)[1] == "tokenizers"
    with pytest.raises(EmpathyError, match=r"tokie cannot read .*merges should be array"):
        choose_tokenizer(word_pieces, "tokie")


def test_without_tokie(word_pieces, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokie", None)
    assert choose_tokenizer(word_pieces)[1] == "tokenizers"
    with pytest.raises(MissingExtraError, match="pip install tokie"):
        choose_tokenizer(word_pieces, "tokie")
    with pytest.raises(EmpathyError, match="tokenizer must be one of auto, tokie, tokenizers, not 'fast'"):
        choose_tokenizer(word_pieces, "fast")


def test_encoded_examples_are_the_same(word_pieces):
    pytest.importorskip("tokie", reason="tokie is part of the fast-tokenizer extra")
    spec = EncodingSpec(2, 3, 0, {"speaker": [4], "listener": [5], "system": [6]}, 32)
    texts = some_texts(200)
    examples = [Example(str(n), "d", 1, (Turn("speaker", a),), b) for n, (a, b) in enumerate(itertools.pairwise(texts))]
    both = [
        Encoder(choose_tokenizer(word_pieces, library)[0], spec).encode(examples) for library in ("tokie", "tokenizers")
    ]
    assert all(np.array_equal(a, b) for a, b in zip(both[0].ids, both[1].ids, strict=True))


def test_a_scorer_says_which_library_it_uses(scorer_folder):
    # Its tokenizer is a list of words, which tokie does not read.
    assert Scorer.load(scorer_folder).tokenizer == "tokenizers"
    with pytest.raises(EmpathyError, match="tokenizer must be one of"):
        Scorer.load(scorer_folder, tokenizer="fast")
