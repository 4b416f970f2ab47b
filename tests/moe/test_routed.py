"""The routed layer and its gates: against PEFT, against sums worked by hand, with and without a cache."""

import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")
pytest.importorskip("peft", reason="peft is part of the experts extra")

from efficient_empathy.errors import EmpathyError  # noqa: E402
from efficient_empathy.experts.bases import find_base, load_base  # noqa: E402
from efficient_empathy.experts.decoding import DecodingOptions, Prompt, answer  # noqa: E402
from efficient_empathy.experts.loss import response_nll  # noqa: E402
from efficient_empathy.experts.models import LanguageModel  # noqa: E402
from efficient_empathy.experts.prompt_states import read_prompts, told  # noqa: E402
from efficient_empathy.experts.rendering import Renderer  # noqa: E402
from efficient_empathy.moe.adapters import read_adapters  # noqa: E402
from efficient_empathy.moe.options import RouterOptions  # noqa: E402
from efficient_empathy.moe.routed import Gate, RoutedLinear  # noqa: E402
from efficient_empathy.moe.router import attach, fold  # noqa: E402

IDS = torch.tensor([[8, 9, 10, 11, 20], [13, 12, 30, 14, 15]])
GRANULARITIES = ["token", "layer", "sequence"]


def mixture(base, folders, seed: int | None = None, **options):
    """A routed model on the tiny base; with a seed its gates are random, and well away from uniform."""
    model, tokenizer = load_base(find_base(str(base)))
    router = attach(model, read_adapters(folders), RouterOptions(**options))
    if seed is not None:
        torch.manual_seed(seed)
        for parameter in router.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
    return model.eval(), router, tokenizer


def run(model, ids=IDS):
    mask = torch.ones_like(ids)
    with torch.no_grad(), told(model, read_prompts(model, ids, mask)):
        return model(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("sites", ["mlp", "all"])
def test_a_uniform_router_is_pefts_cat_merge_at_equal_weights(experts, tiny_lm, granularity, sites):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_lm), str(experts[0]), "a")
    for name, folder in zip("bc", experts[1:], strict=True):
        theirs.load_adapter(str(folder), name)
    theirs.add_weighted_adapter(["a", "b", "c"], [1 / 3] * 3, "mean", combination_type="cat")
    theirs.set_adapter("mean")
    with torch.no_grad():
        wanted = theirs.eval()(IDS).logits
    model, router, _ = mixture(tiny_lm, experts, granularity=granularity, sites=sites)
    assert torch.allclose(run(model), wanted, atol=1e-6)
    fold(model, router)
    assert torch.allclose(run(model), wanted, atol=1e-5)
    base, _ = load_base(find_base(str(tiny_lm)))
    with torch.no_grad():
        assert not torch.allclose(base(IDS).logits, wanted, atol=1e-2)


def test_the_layer_is_the_sum_over_experts_for_any_ranks():
    torch.manual_seed(0)
    base = torch.nn.Linear(5, 4)
    pairs = [(torch.randn(rank, 5), torch.randn(4, rank)) for rank in (1, 0, 3)]
    gates = torch.tensor([0.5, 0.2, 0.3])
    layer = RoutedLinear(base, pairs, lambda x: gates)
    x = torch.randn(2, 3, 5)
    wanted = base(x) + sum(gate * (x @ a.T @ b.T) for gate, (a, b) in zip(gates, pairs, strict=True))
    assert torch.allclose(layer(x), wanted, atol=1e-6)
    assert torch.allclose(x @ (base.weight + layer.delta(gates)).T + base.bias, wanted, atol=1e-5)
    assert not [name for name, p in layer.named_parameters() if not name.startswith("base.")]


def test_top_k_of_three_leaves_one_out_and_sums_to_one():
    gate = Gate(1, 3, top_k=2)
    with torch.no_grad():
        gate.weight.copy_(torch.tensor([[2.0], [0.0], [1.0]]))
    routing = gate(torch.tensor([[1.0]]))
    # Logits 2, 0, 1: the second is left out; e²/(e²+e) = 1/(1+e⁻¹) = 0.731059.
    assert routing.gates[0].tolist() == pytest.approx([0.731059, 0.0, 0.268941], abs=1e-6)
    # Softmax over all: e² + 1 + e = 11.107338.
    assert routing.shares[0].tolist() == pytest.approx([0.665241, 0.090031, 0.244728], abs=1e-6)


def test_gates_are_fp32_under_autocast():
    gate = Gate(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert gate(torch.randn(3, 4, dtype=torch.bfloat16)).gates.dtype == torch.float32


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_router_learns_in_fp32_while_the_model_computes_in_bf16(experts, tiny_lm, granularity):
    model, router, _ = mixture(tiny_lm, experts[:2], seed=2, granularity=granularity)
    labels = IDS.clone()
    labels[:, :2] = -100
    with router.recording() as found, torch.autocast("cpu", torch.bfloat16):
        nll, _ = response_nll(model, IDS, torch.ones_like(IDS), labels)
    nll.sum().backward()
    assert all(routing.gates.dtype == torch.float32 for routing in found.values())
    assert all(p.grad.dtype == torch.float32 and bool(p.grad.any()) for p in router.parameters())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("count", [2, 3])
def test_cached_uncached_and_alone_are_the_same_tokens(experts, tiny_lm, granularity, count):
    """Prompts of different lengths are padded on the left, and rows leave the batch as they end."""
    options = {} if count == 2 else {"top_k": 2, "init": "prototypes"}
    model, _, tokenizer = mixture(tiny_lm, experts[:count], seed=5, granularity=granularity, **options)
    named = LanguageModel("mixture", model, Renderer(tokenizer, 64), {})
    generator = torch.Generator().manual_seed(1)
    lengths = [3, 9, 6, 14, 5]
    prompts = [
        Prompt(str(i), torch.randint(8, 32, (length,), generator=generator).tolist())
        for i, length in enumerate(lengths)
    ]
    named.renderer.end_ids = frozenset()
    endless = answer(named, prompts, DecodingOptions(max_new_tokens=12, batch_size=8))
    # Rows end early, at different steps, and leave the batch.
    named.renderer.end_ids = frozenset({endless[1].tokens[4], endless[3].tokens[7]})
    together = answer(named, prompts, DecodingOptions(max_new_tokens=12, batch_size=8))
    assert len({len(one.tokens) for one in together}) > 1
    uncached = answer(named, prompts, DecodingOptions(max_new_tokens=12, batch_size=8, use_cache=False))
    alone = answer(named, prompts, DecodingOptions(max_new_tokens=12, batch_size=1))
    assert [one.tokens for one in together] == [one.tokens for one in uncached] == [one.tokens for one in alone]


def test_gates_of_whole_answers_are_those_of_the_prompt_alone(experts, tiny_lm):
    model, router, _ = mixture(tiny_lm, experts[:2], seed=3, granularity="sequence")
    prompt = torch.tensor([[8, 9, 10, 11]])
    wanted = read_prompts(model, prompt, torch.ones_like(prompt)).detach()
    padded = torch.tensor([[1, 1, 8, 9, 10, 11], [20, 21, 22, 23, 24, 25]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    assert torch.allclose(read_prompts(model, padded, mask)[:1], wanted, atol=1e-6)
    # In training the response follows, and is not read: its gates are found by the labels.
    ids = torch.tensor([[8, 9, 10, 11, 30, 31, 7], [20, 21, 22, 23, 24, 25, 7]])
    labels = torch.tensor([[-100] * 4 + [30, 31, 7], [-100] * 6 + [7]])
    with router.recording() as found:
        response_nll(model, ids, torch.ones_like(ids), labels)
    assert torch.allclose(found["prompt"].gates[:1], wanted, atol=1e-6)
    assert not torch.allclose(found["prompt"].gates[1:], wanted, atol=1e-2)
    with torch.no_grad(), pytest.raises(RuntimeError, match="routes by the prompt"):
        model(ids)


def test_the_likelihood_of_a_response_is_that_of_decoding_it(experts, tiny_lm):
    """Teacher forcing and decoding agree on the gates of a whole answer."""
    model, _, tokenizer = mixture(tiny_lm, experts[:2], seed=3, granularity="sequence")
    named = LanguageModel("mixture", model, Renderer(tokenizer, 64), {})
    prompt = [8, 9, 10, 11, 12]
    (found,) = answer(named, [Prompt("a", prompt)], DecodingOptions(max_new_tokens=4))
    row = torch.tensor([[*prompt, *found.tokens]])
    labels = row.clone()
    labels[:, : len(prompt)] = -100
    states = read_prompts(model, row[:, : len(prompt)], torch.ones(1, len(prompt), dtype=torch.int64))
    with torch.no_grad(), told(model, states):
        logits = model(row).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert logits.argmax(-1).tolist() == found.tokens
    with torch.no_grad():
        nll, _ = response_nll(model, row, torch.ones_like(row), labels)
    assert float(nll) == pytest.approx(-float(logits.max(-1).values.sum()), abs=1e-4)


def test_experts_that_do_not_fit_are_refused(experts, make_expert, make_tiny_lm, tmp_path):
    from tiny_words import make_tokenizer

    other = tmp_path / "other-lm"
    make_tiny_lm(seed=1).save_pretrained(other, safe_serialization=True)
    make_tokenizer().save_pretrained(other)
    with pytest.raises(EmpathyError, match="different bases"):
        read_adapters([experts[0], make_expert(tmp_path / "elsewhere", 1, base=other)])
    with pytest.raises(EmpathyError, match="different prompts"):
        read_adapters([experts[0], make_expert(tmp_path / "rude", 1, system="be rude")])
    with pytest.raises(EmpathyError, match="DoRA"):
        read_adapters([experts[0], make_expert(tmp_path / "dora", 1, dora=True)])
    with pytest.raises(EmpathyError, match="two experts are called 'sensibility'"):
        read_adapters([experts[0], make_expert(tmp_path / "sensibility", 1)])


@pytest.mark.parametrize("kind", ["Olmoe", "Qwen2Moe"])
def test_a_base_with_sparse_layers_is_refused(make_expert, tmp_path, kind):
    import transformers
    from tiny_words import make_tokenizer

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(make_tokenizer()), **size, num_key_value_heads=1, num_experts=4, num_experts_per_tok=2
    )
    base = tmp_path / "sparse"
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(base, safe_serialization=True)
    make_tokenizer().save_pretrained(base)
    folders = [make_expert(tmp_path / name, seed, base=base) for seed, name in enumerate("ab")]
    with pytest.raises(EmpathyError, match=r"'model.layers.0.mlp.experts.0.\w+' belongs to a sparse layer"):
        mixture(base, folders)


def test_a_base_that_joins_its_tokens_is_refused_where_it_is_first_run(make_expert, tmp_path):
    import transformers
    from tiny_words import make_tokenizer

    size = {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    base = tmp_path / "opt"
    config = transformers.OPTConfig(vocab_size=len(make_tokenizer()), **size)
    transformers.OPTForCausalLM(config).save_pretrained(base, safe_serialization=True)
    make_tokenizer().save_pretrained(base)
    folders = [make_expert(tmp_path / name, seed, base=base) for seed, name in enumerate("ab")]
    model, _, _ = mixture(base, folders)
    with pytest.raises(EmpathyError, match="joins all tokens of a batch"):
        run(model)


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(EmpathyError, match="always 1"):
        RouterOptions(top_k=1)
    with pytest.raises(EmpathyError, match="must leave one out"):
        RouterOptions(top_k=2, init="prototypes").check(2)
    with pytest.raises(EmpathyError, match="tied"):
        RouterOptions(top_k=2).check(3)
    with pytest.raises(EmpathyError, match="two experts or more"):
        RouterOptions().check(1)
