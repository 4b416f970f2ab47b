"""The static merge: an adapter that PEFT loads, with the mean gates, and its likelihood beside the routed one's."""

import pytest

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")
pytest.importorskip("peft", reason="peft is part of the experts extra")

from click.testing import CliRunner  # noqa: E402

from efficient_empathy.errors import EmpathyError  # noqa: E402
from efficient_empathy.experts.models import load_language_model  # noqa: E402
from efficient_empathy.moe.adapters import read_adapters  # noqa: E402
from efficient_empathy.moe.artifact import read_mixture  # noqa: E402
from efficient_empathy.moe.commands import merge_moe_command  # noqa: E402
from efficient_empathy.moe.merging import merge_mixture  # noqa: E402
from efficient_empathy.moe.options import MixtureOptions, RouterFit, RouterOptions  # noqa: E402
from efficient_empathy.moe.training import MixtureRequest, train_mixture  # noqa: E402

IDS = torch.tensor([[8, 9, 10, 11, 20]])


def train(subsets, experts, out, granularity="token", max_steps=3):
    fit = RouterFit(batch_size=8, learning_rate=0.05, max_steps=max_steps)
    data = (str(subsets / "sensibility"), str(subsets / "rationality"))
    router = RouterOptions(granularity=granularity)
    train_mixture(MixtureRequest(tuple(experts[:2]), data, out, MixtureOptions(router=router, fit=fit)))
    return data


@pytest.mark.parametrize("granularity", ["token", "layer", "sequence"])
def test_the_merge_is_what_peft_makes_of_it(subsets, experts, tiny_lm, tmp_path, granularity):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    data = train(subsets, experts, tmp_path / "moe", granularity)
    expert = merge_mixture(tmp_path / "moe", data, tmp_path / "merged")
    result = expert.result
    assert result["rank"] == 2 + 3
    assert result["rows"] > 5
    assert result["difference"]["value"] == pytest.approx(result["val_nll"] - result["routed_val_nll"], abs=1e-9)
    assert abs(result["difference"]["value"]) < 0.3
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_lm), str(tmp_path / "merged")).eval()
    ours = load_language_model(str(tmp_path / "merged"))
    assert ours.description["control"] == "merge"
    with torch.no_grad():
        assert torch.allclose(theirs(IDS).logits, ours.model(IDS).logits, atol=1e-5)
    # One linear by hand: the experts' own products, weighted by the mean gates that the mixture's folder tells.
    name = "model.layers.0.mlp.up_proj"
    mixture, _ = read_mixture(tmp_path / "moe")
    gate = {"token": name, "layer": "model.layers.0", "sequence": "prompt"}[granularity]
    (a1, b1), (a2, b2) = (adapter.pairs[name] for adapter in read_adapters(experts[:2]))
    share = mixture.routing["sites"][gate]
    wanted = share[0] * b1 @ a1 + share[1] * b2 @ a2
    assert torch.allclose(
        theirs.get_submodule(f"base_model.model.{name}").get_delta_weight("default"), wanted, atol=1e-6
    )
    attention = theirs.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").get_delta_weight("default")
    (a1, b1), (a2, b2) = (adapter.pairs["model.layers.0.self_attn.q_proj"] for adapter in read_adapters(experts[:2]))
    assert torch.allclose(attention, (b1 @ a1 + b2 @ a2) / 2, atol=1e-6)


def test_the_command_says_what_is_lost(subsets, experts, tmp_path):
    data = train(subsets, experts, tmp_path / "moe", max_steps=1)
    arguments = [str(tmp_path / "moe"), "--data", data[0], "-o", str(tmp_path / "merged")]
    found = CliRunner().invoke(merge_moe_command, arguments, catch_exceptions=False)
    assert "difference" in found.output
    with pytest.raises(EmpathyError, match="already there"):
        CliRunner().invoke(merge_moe_command, arguments, catch_exceptions=False)
