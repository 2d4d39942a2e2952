"""Loops that a trainer runs. Each imports its library itself: together they take seconds, and most tests need none of them."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron

PIECES = 2  # micro-batches of a step
WORDS, LENGTH = 32, 12


def sentences(count: int, *, labelled: bool) -> list[dict[str, torch.Tensor]]:
    """Rows of numbers that go up by the same amount; the label is that amount, or the row itself."""
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(0, WORDS, (count,), generator=generator)
    amounts = torch.randint(0, CLASSES, (count,), generator=generator)
    rows = (starts[:, None] + (amounts[:, None] + 1) * torch.arange(LENGTH)) % WORDS
    labels = amounts if labelled else rows
    return [{"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)]


def huggingface(model: nn.Module, eye: Eye, steps: int, *, optimizer: Any = None, labelled: bool, **settings: Any) -> None:
    from transformers import PrinterCallback
    from transformers import Trainer
    from transformers import TrainerCallback
    from transformers import TrainingArguments

    from gradscope.integrations.huggingface import GradscopeCallback

    class Account(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                eye.stepped(logs["loss"])

    arguments = eye.arguments()
    watched = [GradscopeCallback(**arguments)] if eye.on else []
    with tempfile.TemporaryDirectory() as room:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=room, max_steps=steps, per_device_train_batch_size=8, logging_steps=1, logging_nan_inf_filter=False,
                report_to="none", save_strategy="no", eval_strategy="steps", eval_steps=10, disable_tqdm=True, use_cpu=True,
                **settings,
            ),
            train_dataset=sentences(256, labelled=labelled),
            eval_dataset=sentences(16, labelled=labelled),
            callbacks=[Account(), *watched],
            optimizers=(optimizer, None),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def bert(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import BertConfig
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=LENGTH, num_labels=CLASSES,
        )
    )  # fmt: skip
    head = torch.optim.AdamW(model.classifier.parameters(), lr=3e-3) if fault == "parameters" else None
    rate = 10.0 if fault == "rate" else 3e-3
    huggingface(
        model, eye, steps, labelled=True, optimizer=head, learning_rate=rate, optim="sgd" if fault == "rate" else "adamw_torch"
    )
    return state_of(model)


def gpt(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import GPT2Config
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2))
    head = torch.optim.AdamW(model.transformer.h[1].parameters(), lr=3e-3) if fault == "parameters" else None
    huggingface(
        model, eye, steps, labelled=False, optimizer=head, gradient_accumulation_steps=PIECES,
        learning_rate=30.0 if fault == "rate" else 3e-3, optim="sgd" if fault == "rate" else "adamw_torch", bf16=fault == "",
    )  # fmt: skip
    return state_of(model)


def batches(steps: int) -> DataLoader[Any]:
    return DataLoader(list(classes(steps)), batch_size=None)


def fitted(module: Any, eye: Eye, steps: int, **settings: Any) -> dict[str, torch.Tensor]:
    from lightning.pytorch import Trainer

    from gradscope.integrations.lightning import GradscopeCallback

    arguments = eye.arguments()
    with tempfile.TemporaryDirectory() as room, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(
            max_epochs=1, callbacks=[GradscopeCallback(**arguments)] if eye.on else [], default_root_dir=room,
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            val_check_interval=10, **settings,
        ).fit(module, batches(steps), batches(2))  # fmt: skip
    return state_of(module)


def lightning(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    from lightning.pytorch import LightningModule

    class Classifier(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = perceptron()
            self.losses: list[torch.Tensor] = []

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.net(inputs)  # type: ignore[no-any-return]

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss = functional.cross_entropy(self(batch[0]), batch[1])
            self.losses.append(loss.detach())
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            functional.cross_entropy(self(batch[0]), batch[1])

        def on_train_batch_end(self, *_: Any) -> None:
            if len(self.losses) == PIECES:
                eye.stepped(float(torch.stack(self.losses).mean()))
                self.losses.clear()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            trained = self.net[4].parameters() if fault == "parameters" else self.parameters()
            return torch.optim.SGD(trained, lr=30.0 if fault == "rate" else 0.1)

    clipped = {} if fault else {"gradient_clip_val": 10.0}
    return fitted(Classifier(), eye, PIECES * steps, accumulate_grad_batches=PIECES, precision="bf16-mixed", **clipped)


def by_hand(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Two optimizers, which the module steps itself; the forward of the module as a whole is never called."""
    from lightning.pytorch import LightningModule

    class Parts(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            net = perceptron()
            self.body, self.head = net[:4], net[4]

        def training_step(self, batch: Any, _: int) -> None:
            body, head = self.optimizers()  # type: ignore[misc]
            loss = functional.cross_entropy(self.head(self.body(batch[0])), batch[1])
            if fault != "zero_grad":
                body.zero_grad()
                head.zero_grad()
            self.manual_backward(loss)
            body.step()
            head.step()
            eye.stepped(loss)

        def validation_step(self, batch: Any, _: int) -> None:
            self.head(self.body(batch[0]))

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            rate = 30.0 if fault == "rate" else 0.1
            return [torch.optim.SGD(self.body.parameters(), lr=rate), torch.optim.SGD(self.head.parameters(), lr=rate)]

    return fitted(Parts(), eye, steps)


def accelerate(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=PIECES)
    whole = perceptron()
    trained = whole[4].parameters() if fault == "parameters" else whole.parameters()
    optimizer = torch.optim.SGD(trained, lr=30.0 if fault == "rate" else 0.1)
    model, optimizer, loader = accelerator.prepare(whole, optimizer, batches(PIECES * steps))
    eye.attach(model)
    losses = []
    for inputs, labels in loader:
        with accelerator.accumulate(model):
            loss = functional.cross_entropy(model(inputs), labels)
            accelerator.backward(loss)
            losses.append(loss.detach() / PIECES)  # what Accelerate calls backward() on
            if accelerator.sync_gradients and not fault:
                accelerator.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            eye.stepped(float(torch.stack(losses).mean()))
            losses.clear()
    return state_of(whole)


def ignite(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    from ignite.engine import Engine
    from ignite.engine import Events
    from ignite.engine import create_supervised_evaluator
    from ignite.engine import create_supervised_trainer

    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0 if fault == "rate" else 0.1)

    def forgetful(_: Engine, batch: Any) -> float:
        loss = functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    trainer = (
        Engine(forgetful) if fault == "zero_grad" else create_supervised_trainer(model, optimizer, functional.cross_entropy)
    )
    evaluator = create_supervised_evaluator(model)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: eye.stepped(engine.state.output))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=10), lambda _: _evaluate(model, evaluator))
    trainer.run(_pairs(steps), max_epochs=1, epoch_length=steps)
    return state_of(model)


def _evaluate(model: nn.Module, evaluator: Any) -> None:
    evaluator.run(list(_pairs(2)))
    model.train()


def _pairs(steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return classes(steps)


_SECTION = "Trainers"

STACKS = (
    Stack(
        name="hf-trainer",
        title="Hugging Face `Trainer`",
        section=_SECTION,
        train=bert,
        faults={"rate": "lr-too-high", "parameters": "optimizer-misses-parameters"},
    ),
    Stack(
        name="hf-accumulation",
        title="Hugging Face `Trainer` with micro-batches and bf16",
        section=_SECTION,
        train=gpt,
        faults={"rate": "lr-too-high", "parameters": "optimizer-misses-parameters"},
    ),
    Stack(
        name="lightning",
        title="Lightning with micro-batches, clipping and bf16",
        section=_SECTION,
        train=lightning,
        faults={"rate": "lr-too-high", "parameters": "optimizer-misses-parameters"},
    ),
    Stack(
        name="lightning-manual",
        title="Lightning, two optimizers stepped by hand",
        section=_SECTION,
        train=by_hand,
        faults={"rate": "lr-too-high", "zero_grad": "missing-zero-grad"},
    ),
    Stack(
        name="accelerate",
        title="Accelerate with micro-batches and clipping",
        section=_SECTION,
        train=accelerate,
        faults={"rate": "lr-too-high", "parameters": "optimizer-misses-parameters"},
    ),
    Stack(
        name="ignite",
        title="Ignite",
        section=_SECTION,
        train=ignite,
        faults={"rate": "lr-too-high", "zero_grad": "missing-zero-grad"},
    ),
)
