"""Training a whole expert on a model of a few thousand parameters: arithmetic, resuming, the folder that comes out."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_hybrids import make_hybrid
from tiny_words import make_tokenizer

torch = pytest.importorskip("torch", reason="torch is part of the experts extra")
pytest.importorskip("peft", reason="peft is part of the experts extra")

from efficient_empathy.dialogues.types import Turn  # noqa: E402
from efficient_empathy.errors import EmpathyError  # noqa: E402
from efficient_empathy.experts.artifact import read_expert  # noqa: E402
from efficient_empathy.experts.checkpoints import SafeCheckpointIO  # noqa: E402
from efficient_empathy.experts.commands import train_expert_command  # noqa: E402
from efficient_empathy.experts.fitting import fit_module  # noqa: E402
from efficient_empathy.experts.loss import response_nll  # noqa: E402
from efficient_empathy.experts.models import LoadOptions, load_language_model  # noqa: E402
from efficient_empathy.experts.module import CsvLog, ResponseModule  # noqa: E402
from efficient_empathy.experts.options import ExpertOptions, FitOptions, LoraOptions  # noqa: E402
from efficient_empathy.experts.training import ExpertRequest, prepare, train_expert  # noqa: E402
from efficient_empathy.manifest import changed_files  # noqa: E402

ROOT = Path(__file__).parents[2]


def request(subsets, base, out, save_seconds=60.0, **fit):
    fit = {"batch_size": 4, "accumulate": 1, "learning_rate": 1e-2, "epochs": 2.0, "patience": 0, **fit}
    options = ExpertOptions(base=str(base), max_tokens=128, holdout=0.2, fit=FitOptions(**fit))
    return ExpertRequest((str(subsets / "sensibility"),), out, options, save_seconds)


def losses(folder):
    with open(folder / "log.csv", newline="") as file:
        return [(int(row["step"]), float(row["train/nll"])) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def expert(subsets, tiny_lm, tmp_path_factory):
    """An expert that was trained without interruption."""
    wanted = request(subsets, tiny_lm, tmp_path_factory.mktemp("experts") / "sensibility")
    return wanted.out, train_expert(wanted)


def gradients(subsets, base, tmp_path, batch_size, accumulate, dropout=0.0, checkpointing=False):
    """Loss and gradients of one step of eight ragged rows, with the arithmetic that training uses."""
    fit = {"batch_size": batch_size, "accumulate": accumulate, "gradient_checkpointing": checkpointing}
    wanted = request(subsets, base, tmp_path / "x", **fit)
    lora = LoraOptions(dropout=dropout)
    options = ExpertOptions(base=str(base), max_tokens=128, holdout=0.2, lora=lora, fit=wanted.options.fit)
    prepared = prepare(ExpertRequest(wanted.data, wanted.out, options))
    module = ResponseModule(prepared.model, options.fit, 0)
    module.model.train()
    module.shares = not dropout  # a prefix that is read once has its dropout drawn once: other draws than row by row
    with torch.no_grad():  # fresh adapters are zero on one side, and so would half of the gradients be
        for name, parameter in module.trained().items():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).reshape(parameter.shape))
    pieces = next(iter(prepared.plan.steps(1)))
    tokens = sum(prepared.train.rows[row].supervised for piece in pieces for row in piece)
    module._trainer = type("OneDevice", (), {"world_size": 1, "global_rank": 0})()
    total = 0.0
    for index, piece in enumerate(pieces):
        loss = module.training_step({**prepared.train.collate(piece), "step_tokens": tokens}, index) / accumulate
        again = []
        hooks = [part.register_forward_pre_hook(lambda *_, again=again: again.append(1)) for part in module.modules()]
        loss.backward()
        for hook in hooks:
            hook.remove()
        assert bool(again) == checkpointing  # what was not kept is computed once more on the way back
        total += float(loss.detach())
    return total, {name: parameter.grad.clone() for name, parameter in module.trained().items()}


@pytest.mark.parametrize(("batch_size", "accumulate"), [(2, 4), (4, 2), (1, 8)])
def test_accumulated_batches_are_one_big_batch(subsets, tiny_lm, tmp_path, batch_size, accumulate):
    loss, whole = gradients(subsets, tiny_lm, tmp_path, 8, 1)
    other, divided = gradients(subsets, tiny_lm, tmp_path, batch_size, accumulate)
    assert other == pytest.approx(loss, abs=1e-5)
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-3
    for name, gradient in whole.items():
        assert torch.allclose(gradient, divided[name], atol=1e-5), name


def test_a_batch_without_rows_has_a_backward_pass_too(subsets, tiny_lm, tmp_path):
    # As the last of an epoch when its step has fewer rows than batches.
    prepared = prepare(request(subsets, tiny_lm, tmp_path / "x"))
    module = ResponseModule(prepared.model, FitOptions(), 0)
    module._trainer = type("OneDevice", (), {"world_size": 1, "global_rank": 0})()
    loss = module.training_step({**prepared.train.collate([]), "step_tokens": 5}, 0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(float(parameter.grad.abs().max()) == 0 for parameter in module.trained().values())


def test_a_loss_without_gradients_is_no_batch_without_rows(subsets, tiny_lm, tmp_path, monkeypatch):
    prepared = prepare(request(subsets, tiny_lm, tmp_path / "x"))
    module = ResponseModule(prepared.model, FitOptions(), 0)
    module._trainer = type("OneDevice", (), {"world_size": 1, "global_rank": 0})()
    monkeypatch.setattr(module, "_nll", lambda *_: (torch.ones(2), torch.tensor([3, 2])))
    loss = module.training_step({"step_tokens": 5}, 0)
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss.backward()


def test_only_the_adapter_is_trained_in_train_mode(subsets, tiny_lm, tmp_path):
    prepared = prepare(request(subsets, tiny_lm, tmp_path / "x"))
    module = ResponseModule(prepared.model, FitOptions(), 0)
    module.on_fit_start()
    assert all("lora_" in name for name in module.trained())
    # 2 layers × (q 16→16, k and v 16→8, o 16→16, gate, up 16→32, down 32→16), rank 8: (32+24+24+32+48+48+48) × 8 × 2.
    assert sum(p.numel() for p in module.trained().values()) == 256 * 8 * 2
    assert all(m.training for m in prepared.model.modules())


def test_the_expert_learns_and_says_so(expert):
    out, found = expert
    assert found.result["val_nll"] < 0.8 * found.result["base_val_nll"]
    assert found.result["steps"] == found.result["planned_steps"] == 26  # 49 to 52 rows, 4 a step, twice
    assert [step for step, _ in losses(out)] == list(range(1, 27))
    assert found.data["read"] == {"sensibility": 60}
    assert found.data["examples"] + found.data["held_out"] == 60
    assert changed_files(out) == []
    assert not out.with_name(out.name + ".work").exists()
    card = (out / "README.md").read_text()
    assert f"{found.data['examples']:,} dialogue examples" in card
    assert "control random" in card


def test_it_learns_in_bf16_too(subsets, tiny_lm, tmp_path, monkeypatch):
    monkeypatch.setattr("efficient_empathy.experts.fitting.choose_precision", lambda device: "bf16-mixed")
    found = train_expert(request(subsets, tiny_lm, tmp_path / "e"))
    assert found.result["val_nll"] < 0.8 * found.result["base_val_nll"]


def test_it_stops_when_it_gets_worse_and_writes_its_best_state(subsets, tiny_lm, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "efficient_empathy.experts.fitting.choose_precision", lambda device: "32-true"
    )  # bf16 takes another course
    wanted = request(subsets, tiny_lm, tmp_path / "e", learning_rate=0.05, validations=12, patience=2)
    result = train_expert(wanted).result
    measured = dict(result["measurements"])
    assert 0 < result["best_step"] < result["steps"] < result["planned_steps"] == 26
    assert [step for step in measured if step > result["best_step"]] == [result["best_step"] + 2, result["steps"]]
    assert result["val_nll"] == measured[result["best_step"]] == min(measured.values())
    assert measured[result["steps"]] > result["val_nll"] + 1e-2  # so that the last state would show below
    held_out = prepare(wanted).held_out
    batch = held_out.collate(range(len(held_out.rows)))
    with torch.no_grad():
        written = load_language_model(str(wanted.out)).model
        nll, tokens = response_nll(written, batch["input_ids"], batch["attention_mask"], batch["labels"])
    assert float(nll.sum() / tokens.sum()) == pytest.approx(result["val_nll"], abs=1e-4)


def test_anyone_can_load_it_with_peft(expert, tiny_lm):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out, _ = expert
    ours = load_language_model(str(out))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_lm), str(out)).eval()
    ids, _ = ours.renderer.prompt([Turn("speaker", "i lost your dog")])
    inputs = torch.tensor([ids])
    with torch.no_grad():
        assert torch.allclose(ours.model(inputs).logits, theirs(inputs).logits, atol=1e-5)
        base = AutoModelForCausalLM.from_pretrained(tiny_lm)(inputs).logits
        assert not torch.allclose(ours.model(inputs).logits, base, atol=1e-2)
    assert ours.description["kind"] == "expert"


@pytest.mark.slow
def test_killed_and_resumed_it_goes_on_as_if_uninterrupted(expert, subsets, tiny_lm, tmp_path):
    out, _ = expert
    again = tmp_path / "again" / "sensibility"
    code = (
        "import sys; sys.path.insert(0, sys.argv[4])\n"
        "from pathlib import Path\n"
        "from test_training import request\n"
        "import os, signal\n"
        "from efficient_empathy.experts.module import Resumable\n"
        "save = Resumable.on_train_batch_end\n"
        "def save_and_die(self, trainer, *rest):\n"
        "    save(self, trainer, *rest)\n"
        "    if trainer.global_step == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Resumable.on_train_batch_end = save_and_die\n"
        "from efficient_empathy.experts.training import train_expert\n"
        "train_expert(request(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), 0.0))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [str(subsets), str(tiny_lm), str(again), str(Path(__file__).parent)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment)
    work = again.with_name(again.name + ".work")
    assert process.wait(300) == -signal.SIGKILL
    assert not again.exists()
    checkpoint = SafeCheckpointIO().load_checkpoint(next(work.glob("last-*.safetensors")))
    assert 1 <= checkpoint["global_step"] < 26
    assert all("lora_" in name for name in checkpoint["state_dict"])
    train_expert(request(subsets, tiny_lm, again))
    assert [step for step, _ in losses(again)] == list(range(1, 27))
    for (_, ours), (_, theirs) in zip(losses(again), losses(out), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    measured = [read_expert(folder)[0].result["measurements"] for folder in (again, out)]
    assert [step for step, _ in measured[0]] == [step for step, _ in measured[1]] == [0, 6, 12, 18, 24, 26]
    assert [nll for _, nll in measured[0]] == pytest.approx([nll for _, nll in measured[1]], abs=1e-5)


# A validation follows each step, or every second: of the latter none is saved before it.
@pytest.mark.parametrize("fit", [{"validations": 5}, {"validations": 2}, {"validations": 5, "accumulate": 2}])
def test_stopped_between_two_steps_it_goes_on_from_the_last(subsets, tiny_lm, tmp_path, monkeypatch, fit):
    monkeypatch.setattr("efficient_empathy.experts.fitting.choose_precision", lambda device: "32-true")
    ours, theirs = (request(subsets, tiny_lm, tmp_path / name, 0.0, max_steps=5, **fit) for name in ("a", "b"))
    note = CsvLog.on_train_batch_end

    def note_and_stop(self, trainer, *rest):
        note(self, trainer, *rest)
        if trainer.global_step == 4:
            raise RuntimeError("stopped")

    with monkeypatch.context() as context:
        context.setattr(CsvLog, "on_train_batch_end", note_and_stop)
        with pytest.raises(RuntimeError, match="stopped"):
            train_expert(ours)
    (path,) = ours.out.with_name("a.work").glob("last-*.safetensors")
    assert SafeCheckpointIO().load_checkpoint(path)["global_step"] == 3
    assert train_expert(ours).result == train_expert(theirs).result
    assert losses(ours.out) == losses(theirs.out)


def test_a_training_that_ended_early_is_not_trained_on_when_it_is_run_again(subsets, tiny_lm, tmp_path, monkeypatch):
    monkeypatch.setattr("efficient_empathy.experts.fitting.choose_precision", lambda device: "32-true")
    fit = {"learning_rate": 0.05, "validations": 26, "patience": 1}
    ours, theirs = (request(subsets, tiny_lm, tmp_path / name, 0.0, **fit) for name in ("a", "b"))
    with monkeypatch.context() as context:
        context.setattr("efficient_empathy.experts.artifact.write_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_expert(ours)
    assert list(ours.out.with_name("a.work").glob("last-*.safetensors"))
    result = train_expert(ours).result
    assert result == train_expert(theirs).result
    assert result["steps"] < result["planned_steps"]


def test_stopped_while_it_writes_it_leaves_no_half_folder_and_writes_it_when_run_again(
    subsets, tiny_lm, tmp_path, monkeypatch
):
    wanted = request(subsets, tiny_lm, tmp_path / "e", max_steps=2)
    with monkeypatch.context() as context:
        context.setattr("efficient_empathy.experts.artifact.write_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_expert(wanted)
    assert not wanted.out.exists()
    train_expert(wanted)
    assert read_expert(wanted.out)[0].result["steps"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_gradient_checkpointing_changes_no_gradient(subsets, tiny_lm, tmp_path):
    loss, kept = gradients(subsets, tiny_lm, tmp_path, 4, 2, dropout=0.5)
    other, computed = gradients(subsets, tiny_lm, tmp_path, 4, 2, dropout=0.5, checkpointing=True)
    assert other == pytest.approx(loss, abs=1e-6)
    assert kept.keys() == computed.keys()
    assert max(float(gradient.abs().max()) for gradient in kept.values()) > 1e-3
    for name, gradient in kept.items():
        assert torch.allclose(gradient, computed[name], atol=1e-6), name


def test_a_training_with_gradient_checkpointing_begins_as_one_without(expert, subsets, tiny_lm, tmp_path):
    out, _ = expert
    wanted = request(subsets, tiny_lm, tmp_path / "e", gradient_checkpointing=True, max_steps=4)
    train_expert(wanted)
    first = [loss for _, loss in losses(out)][:1]
    assert losses(wanted.out)[0][1] == pytest.approx(first[0], abs=1e-5)
    assert len(losses(wanted.out)) == 4


def test_a_changed_file_or_another_base_is_refused(expert, tmp_path, make_tiny_lm):
    out, _ = expert
    other = tmp_path / "other-lm"
    make_tiny_lm(seed=1).save_pretrained(other, safe_serialization=True)
    make_tokenizer().save_pretrained(other)
    with pytest.raises(EmpathyError, match="is another model"):
        load_language_model(str(out), LoadOptions(base=str(other)))
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    weights = copy / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(EmpathyError, match=r"adapter_model.safetensors.*has changed"):
        load_language_model(str(copy))


def test_examples_longer_than_the_base_reads_are_refused_before_training(subsets, tiny_lm, tmp_path):
    options = ExpertOptions(base=str(tiny_lm), max_tokens=129, holdout=0.2)
    with pytest.raises(EmpathyError, match=r"129 tokens, but 'tiny-lm' reads 128 at most.*--max-length 128"):
        prepare(ExpertRequest((str(subsets / "sensibility"),), tmp_path / "x", options))


def test_a_base_that_peft_has_no_adapter_for_is_refused(subsets, tmp_path):
    make_hybrid("falcon-h1").save_pretrained(tmp_path / "base", safe_serialization=True)
    make_tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(EmpathyError, match=r"PEFT cannot put an adapter.*'out_proj' is incompatible.*another base"):
        prepare(request(subsets, tmp_path / "base", tmp_path / "x"))


def test_an_existing_folder_is_left_alone(subsets, tiny_lm, tmp_path):
    with pytest.raises(EmpathyError, match="already there"):
        train_expert(request(subsets, tiny_lm, tmp_path))


def test_a_gpu_whose_memory_does_not_suffice_is_one_sentence(subsets, tiny_lm, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(ResponseModule, "training_step", full)
    with pytest.raises(
        EmpathyError, match=r"memory of the GPU does not suffice: lower --batch-size and raise --accumulate"
    ):
        train_expert(request(subsets, tiny_lm, tmp_path / "e"))


def test_only_the_first_process_of_several_says_what_came_of_it(subsets, tiny_lm, tmp_path, monkeypatch):
    """``fit_module`` tells whether this process is the one that writes."""

    def fit(run, prepared, module):
        best, _ = fit_module(run, prepared, module)
        return best, False

    monkeypatch.setattr("efficient_empathy.experts.training.fit_module", fit)
    wanted = ["--data", str(subsets / "sensibility"), "--base", str(tiny_lm), "--max-length", "128", "--max-steps", "1"]
    wanted += ["--holdout", "0.2"]
    done = CliRunner().invoke(
        train_expert_command, [*wanted, "-o", str(tmp_path / "e"), "--json"], catch_exceptions=False
    )
    assert (done.exit_code, done.stdout) == (0, "")
    assert not (tmp_path / "e").exists()


def test_as_many_examples_are_shown_as_were_asked_for(subsets, tiny_lm, tmp_path):
    arguments = ["--data", str(subsets / "sensibility"), "--base", str(tiny_lm), "--max-length", "128"]
    arguments += [
        "--holdout",
        "0.2",
        "--batch-size",
        "4",
        "--accumulate",
        "2",
        "--show-batch",
        "9",
        "-o",
        str(tmp_path / "e"),
    ]
    shown = CliRunner().invoke(train_expert_command, arguments, catch_exceptions=False).stdout
    assert shown.count("<|assistant|>") >= 9
    assert not (tmp_path / "e").exists()
