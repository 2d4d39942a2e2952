"""The callback in Lightning's own Trainer: what it writes, where, from which step to which."""

from __future__ import annotations

import warnings

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from torch.nn import functional

import gradscope
from gradscope.capture.steps import LOOP
from gradscope.integrations.lightning import GradscopeCallback
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from gradscope.records import PULSE_FIELDS
from gradscope.records import Severity
from tests.stacks.tasks import perceptron
from tests.stacks.trainer_stacks import batches

STEP, LOSS = PULSE_FIELDS.index("step"), PULSE_FIELDS.index("loss")


class Steps:
    """What the module of either library does; ``raises_at`` is a batch that breaks, ``rate`` the learning rate."""

    raises_at, rate = -1, 0.1

    def training_step(self, batch, number):
        if number == self.raises_at:
            raise KeyError("broken batch")
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, _):
        functional.cross_entropy(self.net(batch[0]), batch[1])

    def predict_step(self, batch, _):
        return self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=self.rate)


class Module(Steps, lightning.pytorch.LightningModule):
    def __init__(self, *, raises_at=-1, rate=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.raises_at, self.rate = perceptron(), raises_at, rate


class OtherModule(Steps, pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = perceptron()


def trainer(directory, callback, *, made_by=lightning.pytorch.Trainer, **settings):
    defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "log_every_n_steps": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made_by(
            default_root_dir=directory, callbacks=[callback], accelerator="cpu", enable_progress_bar=False,
            enable_model_summary=False, **{**defaults, **settings},
        )  # fmt: skip


@pytest.fixture(autouse=True)
def silent():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning|pytorch_lightning")
        warnings.filterwarnings("error", category=gradscope.GradscopeWarning)
        yield


def pulses(logdir, *, column=LOSS):
    (run,) = find_runs(logdir)
    return read_run(run).pulses[:, column].tolist()


def test_one_log_directory_shows_the_trainers_curves_and_ours_and_they_agree(tmp_path):
    trainer(tmp_path, GradscopeCallback(every=1), logger=TensorBoardLogger(tmp_path)).fit(Module(), batches(6), batches(2))
    multiplexer = EventMultiplexer(tensor_size_guidance={"tensors": 0})
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    assert set(multiplexer.Runs()) == {"lightning_logs/version_0", "lightning_logs/version_0/gradscope"}
    both = [
        [(point.step, float(point.tensor_proto.float_val[0])) for point in multiplexer.Tensors(run, tag)]
        for run, tag in (("lightning_logs/version_0", "train/loss"), ("lightning_logs/version_0/gradscope", "gradscope/loss"))
    ]
    assert len(both[0]) == 6
    assert both[0] == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in both[1]]


def test_with_another_logger_it_writes_there_and_with_none_below_the_root(tmp_path):
    trainer(tmp_path, GradscopeCallback(), logger=CSVLogger(tmp_path / "csv")).fit(Module(), batches(4))
    assert len(pulses(tmp_path / "csv" / "lightning_logs" / "version_0")) == 4
    trainer(tmp_path / "root", GradscopeCallback()).fit(Module(), batches(4))
    assert len(pulses(tmp_path / "root" / "runs")) == 4
    trainer(tmp_path / "root", GradscopeCallback(tmp_path / "mine")).fit(Module(), batches(4))
    assert len(pulses(tmp_path / "mine")) == 4


def test_sanity_check_validation_and_prediction_are_no_steps(tmp_path):
    made = trainer(tmp_path, GradscopeCallback(every=1), val_check_interval=2, num_sanity_val_steps=2)
    module = Module()
    made.fit(module, batches(20), batches(2))
    made.predict(module, batches(2))
    report = gradscope.read(tmp_path)
    assert [(run.steps, run.verdict < Severity.WARNING) for run in report.runs] == [(20, True)]
    assert not LOOP.listeners


def test_micro_batches_of_a_step_have_its_loss_together(tmp_path):
    module = Module(rate=0.0)
    trainer(tmp_path, GradscopeCallback(every=1), accumulate_grad_batches=4).fit(module, batches(8))
    alone = [float(functional.cross_entropy(module.net(inputs), labels).detach()) for inputs, labels in batches(8)]
    assert pulses(tmp_path) == pytest.approx([sum(alone[:4]) / 4, sum(alone[4:]) / 4], rel=1e-6)
    info = read_run(find_runs(tmp_path)[0]).info
    assert info.losses_add_up


def test_a_fit_that_is_resumed_goes_on_in_the_same_run(tmp_path):
    first = trainer(tmp_path, GradscopeCallback(tmp_path / "logs", every=1), max_steps=5)
    first.fit(Module(), batches(8))
    first.save_checkpoint(tmp_path / "at5.ckpt")
    trainer(tmp_path, GradscopeCallback(tmp_path / "logs", every=1), max_epochs=2, max_steps=8).fit(
        Module(), batches(8), ckpt_path=tmp_path / "at5.ckpt", weights_only=False
    )
    assert pulses(tmp_path / "logs", column=STEP) == list(range(8))


def test_an_exception_ends_the_watching_and_what_was_seen_is_there(tmp_path):
    with pytest.raises(KeyError):
        trainer(tmp_path, GradscopeCallback()).fit(Module(raises_at=3), batches(8))
    assert not LOOP.listeners
    assert len(pulses(tmp_path)) == 3


def test_a_critical_finding_ends_the_fit_where_that_is_asked_for(tmp_path):
    made = trainer(tmp_path, GradscopeCallback(every=1, budget=1.0, stop_on="critical"))
    made.fit(Module(rate=1e4), batches(60))
    assert made.global_step < 60


def test_a_fast_dev_run_leaves_nothing_behind(tmp_path):
    trainer(tmp_path, GradscopeCallback(), fast_dev_run=True).fit(Module(), batches(4), batches(2))
    assert not list(tmp_path.iterdir())


def test_the_same_callback_serves_the_library_under_its_other_name(tmp_path):
    trainer(tmp_path, GradscopeCallback(), made_by=pytorch_lightning.Trainer).fit(OtherModule(), batches(6), batches(2))
    assert len(pulses(tmp_path)) == 6
