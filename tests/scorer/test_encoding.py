"""From examples to token ids, worked by hand with a tokenizer whose words are numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from efficient_empathy.dialogues.types import Example, Turn
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.encoding import Encoder, EncodingSpec, spec_from_json
from efficient_empathy.scorer.tokenising import load_tokenizer

CLS, SEP, PAD, SPEAKER, LISTENER, SYSTEM = 1, 2, 0, 3, 4, 5
# The words are the numbers 10 to 99, and the id of a word is that number.
NUMBERS = {str(n): n for n in range(10, 100)}


def word_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 9, **NUMBERS}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def make_encoder(max_tokens: int = 16) -> Encoder:
    roles = {"speaker": [SPEAKER], "listener": [LISTENER], "system": [SYSTEM]}
    return Encoder(word_tokenizer(), EncodingSpec(CLS, SEP, PAD, roles, max_tokens))


def make_example(response: str, *context: tuple[str, str]) -> Example:
    return Example("e", "d", len(context), tuple(Turn(role, text) for role, text in context), response)


def words(*numbers: int) -> str:
    return " ".join(map(str, numbers))


def encode(example: Example, max_tokens: int = 16) -> tuple[list[int], int]:
    encoded = make_encoder(max_tokens).encode([example])
    return encoded.ids[0].tolist(), int(encoded.response_starts[0])


def test_turns_keep_their_roles_and_the_response_is_segment_one():
    example = make_example("20 21", ("system", "10"), ("speaker", "11 12"), ("listener", "13"), ("speaker", "14"))
    ids, start = encode(example, 32)
    context = [SYSTEM, 10, SEP, SPEAKER, 11, 12, SEP, LISTENER, 13, SEP, SPEAKER, 14]
    assert ids == [CLS, *context, SEP, LISTENER, 20, 21, SEP]
    assert start == 14 == ids.index(20) - 1


def test_without_context_the_frame_stays():
    assert encode(make_example("20 21")) == ([CLS, SEP, LISTENER, 20, 21, SEP], 2)


def test_an_unknown_word_is_one_unknown_token_and_an_empty_turn_still_has_its_role():
    assert encode(make_example("nonsense", ("speaker", ""))) == ([CLS, SPEAKER, SEP, LISTENER, 9, SEP], 3)


def test_the_oldest_context_goes_first():
    example = make_example("20 21 22 23", ("speaker", "10 11 12"), ("listener", "13 14"), ("speaker", "15 16"))
    # 16 places: CLS, two SEP and five of the response leave 8 for the context's newest ids.
    # All context: S 10 11 12 SEP L 13 14 SEP S 15 16; the last 8: SEP L 13 14 SEP S 15 16.
    ids, start = encode(example)
    assert ids == [CLS, SEP, LISTENER, 13, 14, SEP, SPEAKER, 15, 16, SEP, LISTENER, 20, 21, 22, 23, SEP]
    assert (len(ids), start) == (16, 10)


@pytest.mark.parametrize(
    ("response_words", "kept_context", "kept_response"),
    [
        (11, [12], 11),  # 12 ids of the response, 3 of the frame: room for 1 of the context
        (12, [], 12),  # exactly full: the whole response, no context
        (13, [], 12),  # the response alone is too long: its end is cut
        (60, [], 12),
    ],
)
def test_the_response_is_cut_only_when_it_alone_is_too_long(response_words, kept_context, kept_response):
    numbers = list(range(20, 20 + response_words))
    ids, start = encode(make_example(words(*numbers), ("speaker", "10 11 12")))
    assert ids == [CLS, *kept_context, SEP, LISTENER, *numbers[:kept_response], SEP]
    assert start == 2 + len(kept_context)
    assert len(ids) == 16


@given(
    context=st.lists(st.lists(st.integers(10, 99), max_size=12), max_size=5),
    response=st.lists(st.integers(10, 99), min_size=1, max_size=40),
    max_tokens=st.integers(16, 48),
)
def test_what_is_kept_is_the_end_of_the_context_and_the_start_of_the_response(context, response, max_tokens):
    example = make_example(words(*response), *[("speaker", words(*turn)) for turn in context])
    ids, start = encode(example, max_tokens)
    whole, whole_start = encode(example, 1000)
    assert len(ids) == min(len(whole), max_tokens)
    assert (ids[0], ids[start - 1], ids[start], ids[-1]) == (CLS, SEP, LISTENER, SEP)
    assert ids[start + 1 : -1] == response[: max_tokens - 4]
    kept = ids[1 : start - 1]
    assert kept == whole[1 : whole_start - 1][len(whole[1 : whole_start - 1]) - len(kept) :]
    if kept:
        assert len(ids[start + 1 : -1]) == len(response)


@given(texts=st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=20), min_size=1, max_size=8), data=st.data())
def test_company_does_not_change_an_example(texts, data):
    examples = [make_example(words(*numbers), ("speaker", words(*numbers[::-1]))) for numbers in texts]
    order = data.draw(st.permutations(range(len(examples))))
    encoder = make_encoder()
    together = encoder.encode([examples[i] for i in order])
    for place, index in enumerate(order):
        alone = encoder.encode([examples[index]])
        assert together.ids[place].tolist() == alone.ids[0].tolist()
        assert together.response_starts[place] == alone.response_starts[0]


def test_a_batch_is_padded_to_its_own_longest_row():
    encoded = make_encoder().encode([make_example("20"), make_example("21 22", ("speaker", "10")), make_example("23")])
    assert encoded.lengths.tolist() == [5, 8, 5]
    batch = encoded.batch([1, 2], PAD)
    assert batch["input_ids"].tolist() == [
        [CLS, SPEAKER, 10, SEP, LISTENER, 21, 22, SEP],
        [CLS, SEP, LISTENER, 23, SEP, PAD, PAD, PAD],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 8, [1] * 5 + [0] * 3]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 0, 0]]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
    assert encoded.batch([0, 2], PAD)["input_ids"].shape == (2, 5)


def test_the_tokenizer_s_own_padding_and_cutting_are_switched_off():
    tokenizer = word_tokenizer()
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(2)
    roles = {"speaker": [SPEAKER], "listener": [LISTENER], "system": [SYSTEM]}
    encoded = Encoder(tokenizer, EncodingSpec(CLS, SEP, PAD, roles, 16)).encode([make_example("20 21 22")])
    assert encoded.ids[0].tolist() == [CLS, SEP, LISTENER, 20, 21, 22, SEP]


def test_no_examples_give_no_rows():
    encoded = make_encoder().encode([])
    assert (encoded.ids, encoded.lengths.tolist()) == ([], [])


@pytest.mark.parametrize("max_tokens", [15, 8193])
def test_the_longest_input_has_a_range(max_tokens):
    with pytest.raises(EmpathyError, match=f"max_tokens must be from 16 to 8,192, not {max_tokens}"):
        EncodingSpec(CLS, SEP, PAD, {}, max_tokens)


def test_the_spec_survives_json():
    record = {"cls": 1, "sep": 2, "pad": 0, "roles": {"speaker": [3]}, "max_tokens": 20}
    assert spec_from_json(record) == EncodingSpec(1, 2, 0, {"speaker": [3]}, 20)


@pytest.mark.parametrize("content", ["", "{}", "no JSON"])
def test_a_broken_tokenizer_file_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(EmpathyError, match=r"tokenizer\.json' is not a tokenizer file"):
        load_tokenizer(path)
