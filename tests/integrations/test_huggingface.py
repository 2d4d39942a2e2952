"""The callback in Hugging Face's own Trainer: what it writes, where, from which step to which."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
import transformers
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from transformers import PrinterCallback
from transformers import Trainer
from transformers import TrainerCallback
from transformers import TrainingArguments

import gradscope
from gradscope.capture.steps import LOOP
from gradscope.integrations.huggingface import GradscopeCallback
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from gradscope.records import PULSE_FIELDS
from gradscope.records import Severity
from tests.stacks.trainer_stacks import LENGTH
from tests.stacks.trainer_stacks import WORDS
from tests.stacks.trainer_stacks import sentences

transformers.logging.set_verbosity_error()
STEP, LOSS = PULSE_FIELDS.index("step"), PULSE_FIELDS.index("loss")


def gpt() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=16, n_layer=1, n_head=2))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=LENGTH,
        )
    )  # fmt: skip


def trainer(directory, *callbacks, model=None, **settings) -> Trainer:
    defaults = {"max_steps": 6, "logging_steps": 1, "save_strategy": "no", "report_to": "tensorboard"}
    made = Trainer(
        model=model or gpt(),
        args=TrainingArguments(
            output_dir=str(directory),
            per_device_train_batch_size=4,
            use_cpu=True,
            disable_tqdm=True,
            **{**defaults, **settings},
        ),
        train_dataset=sentences(64, labelled=False),
        eval_dataset=sentences(8, labelled=False),
        callbacks=list(callbacks),
    )
    made.remove_callback(PrinterCallback)
    return made


def pulses(logdir, *, column=LOSS):
    (run,) = find_runs(logdir)
    return read_run(run).pulses[:, column].tolist()


@pytest.mark.parametrize("make", [gpt, llama])
def test_one_log_directory_shows_the_trainers_curves_and_ours_and_they_agree(tmp_path, make):
    trainer(tmp_path, GradscopeCallback(every=1), model=make(), gradient_accumulation_steps=2).train()
    multiplexer = EventMultiplexer(tensor_size_guidance={"tensors": 0})
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    (own,) = (run for run in multiplexer.Runs() if run.endswith("/gradscope"))
    theirs = multiplexer.Tensors(own.removesuffix("/gradscope"), "train/loss") or []
    assert [point.step for point in theirs] == [1, 2, 3, 4, 5, 6]
    logged = [float(point.tensor_proto.float_val[0]) for point in theirs]
    assert [float(point.tensor_proto.float_val[0]) for point in multiplexer.Tensors(own, "gradscope/loss")] == pytest.approx(
        logged, rel=1e-5
    )
    assert pulses(tmp_path) == pytest.approx(logged, rel=1e-5)


def test_without_tensorboard_logs_it_writes_below_the_output_directory_or_where_it_is_told(tmp_path):
    trainer(tmp_path / "out", GradscopeCallback(), report_to="none").train()
    assert len(pulses(tmp_path / "out" / "runs")) == 6
    trainer(tmp_path / "out2", GradscopeCallback(tmp_path / "mine")).train()
    assert len(pulses(tmp_path / "mine")) == 6


def test_evaluation_best_model_and_prediction_leave_the_steps_and_the_verdict_alone(tmp_path):
    callback = GradscopeCallback(every=1)
    made = trainer(
        tmp_path, callback, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, eval_on_start=True, learning_rate=1e-2, logging_steps=2,
    )  # fmt: skip
    made.train()
    made.predict(sentences(4, labelled=False))
    report = gradscope.read(tmp_path)
    assert [run.steps for run in report.runs] == [6]
    assert [run.verdict < Severity.WARNING for run in report.runs] == [True]
    assert not LOOP.listeners


def test_a_training_that_is_resumed_goes_on_in_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    settings = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    trainer(tmp_path / "out", GradscopeCallback(every=1), max_steps=5, **settings).train()
    before = pulses(tmp_path / "logs")
    callback = GradscopeCallback(every=1)
    trainer(tmp_path / "out", callback, max_steps=8, **settings).train(
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3")
    )
    assert pulses(tmp_path / "logs", column=STEP) == list(range(8))
    assert pulses(tmp_path / "logs")[:5] == pytest.approx(before, rel=1e-6)
    (run,) = find_runs(tmp_path / "logs")
    assert [frame.step for frame in read_run(run).frames] == list(range(8))
    assert callback.scope is not None
    assert callback.scope.report().runs[0].steps == 8


def test_trainings_one_after_the_other_each_have_a_run_of_their_own(tmp_path):
    callback = GradscopeCallback()
    for trial, steps in enumerate((3, 5)):
        trainer(tmp_path / str(trial), callback, max_steps=steps).train()
        assert len(pulses(tmp_path / str(trial))) == steps
    assert not LOOP.listeners


class Raising(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_after_an_exception_the_next_training_closes_what_was_open_or_the_user_does(tmp_path):
    callback = GradscopeCallback()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "first", callback, Raising()).train()
    first = callback.scope
    trainer(tmp_path / "second", callback).train()
    assert first is not callback.scope
    assert len(pulses(tmp_path / "first")) == 3
    assert not LOOP.listeners
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "third", callback, Raising()).train()
    callback.close()
    assert not LOOP.listeners


def test_a_critical_finding_ends_the_training_where_that_is_asked_for(tmp_path):
    found = []
    callback = GradscopeCallback(every=1, budget=1.0, stop_on="critical", on_finding=found.append)
    made = trainer(tmp_path, callback, max_steps=60, learning_rate=1e3, optim="sgd", max_grad_norm=0)
    made.train()
    assert made.state.global_step < 60
    assert [finding.rule for finding in found if finding.severity.label == "critical"]


@pytest.mark.parametrize("options", [{"bugdet": 0.1}, {"stop_on": "never"}])
def test_a_mistyped_argument_shows_when_the_callback_is_made(options):
    with pytest.raises((TypeError, ValueError), match=r"bugdet|never"):
        GradscopeCallback(**options)


def test_the_model_is_that_of_the_plain_training_bit_for_bit(tmp_path):
    bare, watched = gpt(), gpt()
    trainer(tmp_path / "bare", model=bare, gradient_accumulation_steps=2).train()
    trainer(tmp_path / "watched", GradscopeCallback(every=1), model=watched, gradient_accumulation_steps=2).train()
    for one, other in zip(bare.parameters(), watched.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach().numpy(), other.detach().numpy())
