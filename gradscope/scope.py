"""``attach`` and the ``Scope`` it returns: capture, record and diagnosis of one model, live."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import sys
import time
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from numbers import Integral
from numbers import Real
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import final

import numpy as np
import torch

from gradscope import exits
from gradscope.capture.naming import as_written
from gradscope.capture.ranks.company import processes
from gradscope.capture.ranks.gathering import Gathering
from gradscope.capture.watch import Watch
from gradscope.diagnosis import chosen
from gradscope.diagnosis import diagnose
from gradscope.failures import warn
from gradscope.live import Archive
from gradscope.live import default_logdir
from gradscope.live import run_directory
from gradscope.live import usable_name
from gradscope.logdir.address import Address
from gradscope.logdir.address import is_address
from gradscope.logdir.address import unfit
from gradscope.records import Finding
from gradscope.records import Frame
from gradscope.records import RunInfo
from gradscope.report import Report
from gradscope.report import markdown
from gradscope.run_report import RunReport
from gradscope.timeline import Timeline
from gradscope.version import __version__

GROWTH_BETWEEN_JUDGEMENTS = 1.3  # frames must have grown by this factor before the rules look again; keeps their cost linear
SHARE_FOR_JUDGING = 0.1  # of the budget, at most
TERMINATION_SECONDS = 5.0  # for the last of a record on its way to a store, after SIGTERM
FIRST_JUDGING_SECONDS = 0.01  # what the first time takes, about: with a budget to keep, it is earned beforehand


def attach(
    model: torch.nn.Module,
    logdir: str | os.PathLike[str] | None = None,
    *,
    budget: float = 0.02,
    every: int | None = None,
    include: str | None = None,
    exclude: str | None = None,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    probe: bool = True,
    name: str | None = None,
    on_finding: Callable[[Finding], None] | None = None,
) -> Scope:
    """Watch a model's training from now on; the one line that a training script needs.

    It may stand before or after the optimizer is made. What is seen goes to ``logdir`` (default: ``runs/<time>_<host>``) for
    TensorBoard and ``gradscope report``; where that is an address such as ``s3://bucket/run``, it is recorded in
    ``Scope.logdir`` first, and another process ships it. ``budget`` is the share of the step time that watching may take;
    ``every=n`` samples each n-th optimizer step instead. ``include`` and ``exclude`` are regular expressions that module names
    are searched for; ``select`` and ``ignore`` name rules. ``name`` tells several models in one logdir apart (default: the
    model's class).
    A model that is watched already, or a ``name`` that is in use in this logdir, is taken over: the scope before is closed.
    ``on_finding`` is called once with each finding when it first appears. ``probe=False`` leaves out the step-quality probe,
    which runs the model again, on copies, after at most six steps that look too long; where it runs it waits for the device.

    Raises TypeError for a model that is no ``torch.nn.Module``, ValueError for a budget or cadence that cannot be kept, a
    pattern that is no regular expression or a name that is no name of a directory, and UnknownRule (a ValueError) for a rule
    that does not exist. The call itself does not wait for the device.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"attach() expects a torch.nn.Module to watch, and was given a {type(model).__name__}.")
    model = as_written(model)
    _check_cadence(budget, every)
    _check_pattern("include", include)
    _check_pattern("exclude", exclude)
    _check_name(name)
    _check_logdir(logdir)
    if on_finding is not None and not callable(on_finding):
        raise TypeError(
            f"on_finding is called with each new finding; found a {type(on_finding).__name__}, which cannot be called."
        )
    title = name or type(model).__name__
    info = RunInfo(
        name=title,
        model=type(model).__name__,
        versions=_versions(),
        started=time.time(),
        budget=float(budget),
        every=None if every is None else int(every),
        select=None if select is None else _names(select),
        ignore=_names(ignore or ()),
        probe="not needed so far" if probe else "switched off with probe=False",
    )
    chosen(info.select, info.ignore)
    remote = Address(logdir) if is_address(logdir) else None
    where = remote.mirror if remote is not None else Path(logdir) if logdir is not None else default_logdir(Path())
    _close_replaced(model, None if name is None else run_directory(where, name, explicit=True, taken=()))
    directory = run_directory(where, title, explicit=name is not None, taken=exits.EXITS.directories())
    scope = Scope(model, info, directory, include=include, exclude=exclude, probe=bool(probe), on_finding=on_finding)
    if remote is not None:
        scope.ship_to(remote)
    return scope


@final
class Scope:
    """The watch over one model. Made by ``attach``; a context manager that closes itself."""

    def __init__(
        self,
        model: torch.nn.Module,
        info: RunInfo,
        directory: Path,
        *,
        include: str | None,
        exclude: str | None,
        probe: bool,
        on_finding: Callable[[Finding], None] | None,
    ) -> None:
        self._rules = chosen(info.select, info.ignore)
        self._on_finding = on_finding
        # Of a training in several processes it shows only after two steps whether this one is to record anything.
        self._ranks = Gathering(self, info.name) if processes() > 1 else None
        self._directory = directory
        self._remote: Address | None = None
        self._archive = Archive(directory, opened=self._ranks is None)
        self._findings: dict[str, Finding] = {}
        self._called_back: set[str] = set()  # rules whose finding the user's callback has been given
        self._judge_at = 1
        earned_in = FIRST_JUDGING_SECONDS / (SHARE_FOR_JUDGING * info.budget)
        self._judge_from = perf_counter() + earned_in if info.every is None else 0.0
        self._closed = False
        self._watch = Watch(
            model, info, self, include=include, exclude=exclude, guard=self._failed, probe=probe, ranks=self._ranks
        )
        (self._ranks or self).info(info)
        self._watch.start()
        exits.EXITS.register(self, directory)
        weakref.finalize(model, _close_if_there, weakref.ref(self)).atexit = False

    # -- for users

    @property
    def logdir(self) -> Path:
        """The directory of this machine that ``gradscope report`` and TensorBoard take."""
        return self._archive.logdir

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What has been found so far, most important first. Looks at what was judged last; waits for nothing."""
        return tuple(self._findings.values())

    def report(self) -> Report:
        """The report so far, over every step that has ended. Waits for the device.

        Of several ranks that train together the first has it, over every step of which they have exchanged their numbers.
        """
        if not self._closed:
            self._watch.settle()
        return Report((self._judge(),))

    def observe(self, *, loss: float | torch.Tensor | None = None, **scalars: float) -> None:
        """Tell what cannot be seen from outside: a loss that no ``backward()`` shows, and scalars for TensorBoard."""
        if self._closed:
            return
        if loss is not None:
            self._watch.observe_loss(loss)
        if scalars:
            self._archive.observe(self._watch.step, {name: _number(name, value) for name, value in scalars.items()})

    def step(self) -> None:
        """Say that a step has ended, in a loop that has no ``torch.optim.Optimizer``."""
        if not self._closed:
            self._watch.manual_step()

    def close(self) -> None:
        """Take every hook off and write what is left. Waits for the device; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        exits.EXITS.unregister(self)
        try:
            try:
                self._watch.stop()
                if self._ranks is not None:
                    self._ranks.close()
                self._archive.flush()  # first: what is rationed on its way to the disk is not judged either
                self._judge()
            finally:
                self._archive.close()
        except Exception as error:
            _say_failed("while closing", error)

    def __enter__(self) -> Scope:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def watches(self, model: torch.nn.Module) -> bool:
        """Whether it is this model that is watched."""
        return self._watch.watches(model)

    # -- for trainers

    def follow(self, *, first_step: int, losses_add_up: bool) -> None:
        """Count as a trainer does, from before the first step on.

        ``first_step`` is how many optimizer steps it has made already, as the checkpoint that it goes on from tells;
        ``losses_add_up`` says that it divides losses before ``backward()``, so that those of a step add up to its loss.
        """
        self._watch.follow(first_step=first_step, losses_add_up=losses_add_up)

    # -- for the watch

    def open(self, rank: int | None) -> None:
        """Record from now on; ``rank`` stands in the run's name where other ranks have runs of their own."""
        if rank is not None:
            self._directory = run_directory(self.logdir, f"{self._watch.info.name}-rank{rank}", explicit=True, taken=())
        self._archive.open(self._directory)
        exits.EXITS.register(self, self._directory)
        if self._remote is not None:
            self._archive.ship_to(self._remote)

    def info(self, info: RunInfo) -> None:
        self._archive.info(info)

    def frame(self, frame: Frame) -> None:
        self._archive.frame(frame, alarming=self._watch.alarmed)

    def pulse(self, row: tuple[float, ...]) -> None:
        self._archive.pulse(row)

    def ship_to(self, remote: Address) -> None:
        """Ship what is recorded to a store from now on."""
        self._remote = remote
        if self._ranks is None or self._ranks.is_here:
            self._archive.ship_to(remote)

    def step_done(self) -> None:
        """Judge what is there, where enough has come since the last time."""
        due = self._archive.sampled >= self._judge_at or self._watch.alarmed
        if due and perf_counter() >= self._judge_from:
            self._watch.alarmed = False
            started = perf_counter()
            self._judge()
            took = perf_counter() - started
            self._judge_from = started + took / (SHARE_FOR_JUDGING * self._watch.info.budget)

    def flush(self) -> None:
        """Put what was captured on the disk."""
        self._watch.settle()
        self._archive.flush()

    def save(self) -> None:
        """The process is told to end: put what was captured on the disk, and what is in the store's way there soon."""
        self.flush()
        self._archive.shipped(TERMINATION_SECONDS)

    # -- judging

    def _judge(self) -> RunReport:
        sampled = self._archive.sampled
        self._judge_at = max(sampled + 1, int(sampled * GROWTH_BETWEEN_JUDGEMENTS))
        timeline = Timeline(self._watch.info, self._archive.frames, self._archive.pulses, sampled=sampled)
        report = diagnose(timeline, self._rules, run=self._archive.run)
        self._tell(report)
        return report

    def _tell(self, report: RunReport) -> None:
        before = self._findings
        self._findings = {finding.rule: finding for finding in report.findings}
        if self._findings.keys() != before.keys() or self._closed:
            self._archive.text(markdown.render((report,)), max(report.steps - 1, 0))
        for rule, finding in self._findings.items():
            if rule not in self._called_back:
                self._called_back.add(rule)
                self._call_back(finding)

    def _call_back(self, finding: Finding) -> None:
        if self._on_finding is None:
            return
        try:
            self._on_finding(finding)
        except Exception as error:
            self._on_finding = None
            warn("callback-failed", f"on_finding raised {type(error).__name__}: {error}; it is not called again.")

    # -- failing

    def _failed(self) -> None:
        """Called from an except clause anywhere in the watching: say so once, and leave the training alone."""
        if self._closed:
            return
        self._closed = True
        error = sys.exc_info()[1]
        exits.EXITS.unregister(self)
        with contextlib.suppress(Exception):
            self._watch.stop()
        with contextlib.suppress(Exception):
            if self._ranks is not None:
                self._ranks.leave()
        with contextlib.suppress(Exception):
            self._archive.close(within=0)  # the training goes on, and waits for no store
        _say_failed("while watching", error)


def _say_failed(when: str, error: BaseException | None) -> None:
    what = f"{type(error).__name__}: {error}"
    warn("watching-failed", f"gradscope failed {when} and has stopped watching; training goes on. {what}")


def _check_cadence(budget: object, every: object) -> None:
    if isinstance(budget, bool) or not isinstance(budget, Real) or not 0 < float(budget) <= 1:
        raise ValueError(
            f"budget is the share of the step time that watching may take, above 0 and at most 1; found {budget!r}."
        )
    if every is not None and (isinstance(every, bool) or not isinstance(every, Integral) or every < 1):
        raise ValueError(f"every=n samples each n-th step, so n is a whole number and at least 1; found {every!r}.")


def _check_pattern(argument: str, pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{argument} is a regular expression that module names are searched for; found {pattern!r}, which is none: {error}."
        ) from None


def _check_name(name: object) -> None:
    if name is not None and not (isinstance(name, str) and usable_name(name)):
        raise ValueError(f"name is what the run's directory is called, text of one line without a path; found {name!r}.")


def _names(given: Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _number(name: str, value: object) -> float:
    value = value.detach() if isinstance(value, torch.Tensor) else value
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"observe({name}=…) takes a number; found {value!r}.") from None


def _check_logdir(logdir: object) -> None:
    if is_address(logdir) and (lacking := unfit(Address(logdir))) is not None:
        raise ValueError(f"logdir is a directory or the address of a store; found {Address(logdir)}: {lacking}.")


def _close_replaced(model: torch.nn.Module, directory: Path | None) -> None:
    """Close what watches the model already, or writes under the name given, as where a notebook's cell is run again."""
    for scope, where in exits.EXITS.opened():
        if isinstance(scope, Scope) and (scope.watches(model) or where == directory):
            scope.close()


def _close_if_there(scope: weakref.ref[Scope]) -> None:
    found = scope()
    if found is not None:
        found.close()


def _versions() -> dict[str, str]:
    return {
        "gradscope": __version__,
        "torch": torch.__version__,
        "tensorboard": importlib.metadata.version("tensorboard"),
        "numpy": np.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
