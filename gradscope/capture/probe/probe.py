"""The step-quality probe: on suspicion it replays a step's batch along the step that was made, and measures the overshoot.

A quadratic loss phi(s) = L(weights before + s · step) falls until s = 1/(2 O) and is as high as it began at s = 1/O. O is
proportional to the learning rate: above 1 the step was longer than the valley of the loss is wide.

What a step costs that may be probed (the sampled ones among the first six, and two after an alarm): a copy of the buffers and
of the random state, and two hooks on the model. Where it may turn out suspicious, by all that is known before it is made, also
a copy of what the optimizer holds; see ``foresight`` and ``room``. What a probe costs: three to seven forward passes; where the
loss went up fourteen at most, and then for each of at most four suspected faults what ``without_faults`` says. It reads losses,
so it waits for the device.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from typing import Any
from typing import final

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.hooks import ForwardHooks
from gradscope.capture.probe.counterfactuals import may_be_faulty
from gradscope.capture.probe.counterfactuals import without_faults
from gradscope.capture.probe.foresight import ahead
from gradscope.capture.probe.forward_again import Forward
from gradscope.capture.probe.linesearch import INSIDE
from gradscope.capture.probe.linesearch import TOLERANCE
from gradscope.capture.probe.linesearch import overshoot
from gradscope.capture.probe.loss_again import NotUnderstood
from gradscope.capture.probe.loss_again import loss_again
from gradscope.capture.probe.replay import Replay
from gradscope.capture.probe.replay import Seen
from gradscope.capture.probe.replay import Weights
from gradscope.capture.probe.replay import along
from gradscope.capture.probe.replay import is_small
from gradscope.capture.probe.replay import lacks_memory
from gradscope.capture.probe.replay import slope
from gradscope.capture.probe.suspicion import Suspicion
from gradscope.records import Frame
from gradscope.records import RunInfo
from gradscope.records import StepQuality

EARLY_STEPS = 6  # from the start, in which little makes suspicious
EARLY_PROBES = 3  # of them that are probed at most; none after one that went up
LATER_PROBES = 3  # after alarms
STEPS_AFTER_ALARM = 2  # sampled ones, that are remembered
SAME_LOSS = 1e-4  # by how much, relatively, the replayed loss may miss the one that was seen
HALF_TOLERANCE = 3e-3  # rise that counts where weights or outputs are of 16 bits

_NOTHING: weakref.ref[torch.nn.Module] = weakref.ref(torch.nn.Identity())  # dead from the start
_WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


@final
class Probe:
    """Remembers the steps that may be probed, and probes those that look suspicious. Nothing of the training changes by it.

    What it raises while it replays is taken as a reason not to have run; it does not end the watching.
    """

    def __init__(self, hooks: ForwardHooks, *, enabled: bool) -> None:
        self._hooks = hooks
        self._listening = False
        self._root: weakref.ref[torch.nn.Module] = _NOTHING  # the model that hooks are for
        self._suspicion = Suspicion()
        self._early_left = EARLY_PROBES if enabled else 0
        self._later_left = LATER_PROBES if enabled else 0
        self._alarmed = 0  # sampled steps still to be remembered since the last alarm
        self._model: weakref.ref[torch.nn.Module] = _NOTHING  # while a step of it is remembered
        self._kind: tuple[str | None] | None = None  # why a model of its kind is never replayed, once that was looked at
        self._forward: Forward | None = None  # of the step so far, where there is but one
        self._forwards = 0
        self._backwards = 0
        self._seen: Seen | None = None
        self._optimizers: list[Optimizer] = []
        self._replay: Replay | None = None
        self._spared = False  # whether this step was not remembered, as nothing spoke for it
        self._obstacle: str | None = None
        self._step = 0
        self.ran: list[int] = []
        self.note: str | None = None  # why a step could not be probed: the first suspicious one, or the first
        self._wanted = False  # whether that one was suspicious
        self._suspected = False  # whether this one is
        self._after_alarm = False  # and for an alarm's sake

    # -- what the watch tells, all of it on sampled steps but the alarms

    def frame(self, frame: Frame, info: RunInfo) -> None:
        """A frame has reached the host."""
        self._suspicion.frame(frame, info)

    def pulse(self, row: tuple[float, ...], *, alarming: bool) -> None:
        """A pulse has reached the host."""
        self._suspicion.pulse(row)
        if alarming and self._later_left > 0:
            self._alarmed = STEPS_AFTER_ALARM

    @property
    def is_idle(self) -> bool:
        """Whether nothing is remembered, of this step or the ones to come, unless an alarm comes."""
        return not (self._alarmed or self._listening or self.holds)

    def begin_step(self, model: torch.nn.Module | None, step: int, *, sampled: bool) -> None:
        """A step begins: remember it if it may be probed."""
        self._forget()
        self._step = step
        early = step < EARLY_STEPS and self._early_left > 0
        remembered = model is not None and sampled and (early or self._alarmed > 0)
        if remembered and model is not None:
            self._model = self._root = weakref.ref(model)
            self._kind = self._kind or (_kind_obstacle(model),)
            (self._obstacle,) = self._kind
        self._listen(remembered and self._obstacle is None)

    def _listen(self, listening: bool) -> None:
        if listening == self._listening:
            return
        self._listening = listening
        model = self._root()
        key = [id(model)] if listening and model is not None else []
        after, before = dict.fromkeys(key, self._after_forward), dict.fromkeys(key, self._before_forward)
        self._hooks.listen(self, after=after, before=before, light=True)

    def release(self) -> None:
        """Let go of the step."""
        self._listen(False)
        self._forget()

    def _forget(self) -> None:
        self._optimizers = []
        self._model, self._forward, self._seen, self._replay, self._obstacle = _NOTHING, None, None, None, None
        self._forwards, self._backwards, self._spared = 0, 0, False

    def before_backward(self, loss: torch.Tensor, scale: torch.Tensor | None, *, first: bool) -> None:
        """A backward call on the model's loss, the ``first`` of the step or a later one."""
        if not self.holds:
            return
        self._backwards = 1 if first else self._backwards + 1
        forward, calls = self._forward, self._forwards
        self._forward, self._forwards, self._seen = None, 0, None
        if self._obstacle is not None or self._backwards > 1:
            return
        if calls == 0:
            self._obstacle = "no call of the model was seen in the step, as where compiled code runs it"
        elif forward is None or calls != 1:
            self._obstacle = f"the model ran {calls} times with gradients in the step, where one call is replayed"
        else:
            self._seen, self._obstacle = _understood(loss, scale, forward)

    def before_step(self, optimizer: Optimizer, info: RunInfo) -> None:
        """An optimizer of the model's is about to step."""
        self._optimizers.append(optimizer)
        if not self.holds or self._obstacle is not None:
            return
        self._obstacle = self._step_obstacle(optimizer)
        model, seen, self._seen = self._model(), self._seen, None
        if self._obstacle is None and seen is not None and model is not None:
            self._remember(seen, optimizer, model, info)

    def _remember(self, seen: Seen, optimizer: Optimizer, model: torch.nn.Module, info: RunInfo) -> None:
        """Copy what the step is about to change, if it may come to be looked into."""
        try:
            small = is_small(optimizer)
            if not (small or self._may_be_wanted(seen, optimizer, model, info)):
                self._spared = True
                return
            again = small or may_be_faulty(seen, optimizer, model, info, untrained=self._step == 0)
            self._obstacle = lacks_memory(optimizer, again=again)
            if self._obstacle is None:
                self._replay = Replay(seen, optimizer, again=again)
        except Exception as error:
            self._obstacle = _failure("the step could not be remembered", error)

    def _may_be_wanted(self, seen: Seen, optimizer: Optimizer, model: torch.nn.Module, info: RunInfo) -> bool:
        if self._alarmed > 0:
            return True
        return self._suspicion.may_come(ahead(seen, optimizer, model, info), info, structure=not self.ran)

    def wants(self, step: int, info: RunInfo) -> bool:
        """The step is over: whether it is suspicious, and can be probed as far as is known."""
        if not self.holds:
            return False
        self._suspected = self._alarmed > 0 or self._suspicion.early(info, structure=not self.ran)
        if len(self._optimizers) > 1 or info.shared_process or len(info.optimizers) > 1:
            self._obstacle = "several optimizers, or several models, step in the loop"
        elif self._spared:
            self._obstacle = (
                "nothing spoke for it before the step was made, and no copies were taken" if self._suspected else None
            )
        elif self._replay is None and self._obstacle is None:
            self._obstacle = "no step of an optimizer was seen"
        self._note(step, self._obstacle)
        self._after_alarm = self._alarmed > 0
        self._alarmed = max(self._alarmed - 1, 0)
        return self._suspected and self._replay is not None and self._obstacle is None

    def measure(self, step: int, learning_rate: float, info: RunInfo) -> StepQuality | None:
        """Probe the step, with none of gradscope's hooks on. Waits for the device."""
        model, replay = self._model(), self._replay
        if model is None or replay is None:
            return None
        found, obstacle = self._measured(replay, model, step, learning_rate, info)
        self._note(step, obstacle)
        if found is not None:
            self._count(found)
        return found

    def _note(self, step: int, obstacle: str | None) -> None:
        if obstacle is not None and (self.note is None or (self._suspected and not self._wanted)):
            self.note = f"{'could not run' if self._suspected else 'could not have run'} at step {step}: {obstacle}"
            self._wanted = self._suspected

    @property
    def holds(self) -> bool:
        """Whether this step may be probed."""
        return self._model is not _NOTHING

    @property
    def sentence(self) -> str:
        """When it ran, or why it did not."""
        if self.ran:
            return f"ran at step{'s' if len(self.ran) > 1 else ''} {', '.join(map(str, self.ran))}"
        return self.note or "not needed: none of the steps that it may look at was suspicious"

    # -- hooks

    def _before_forward(self, module: torch.nn.Module, args: Any) -> None:
        if module is not self._model() or self._obstacle is not None or not _counts():
            return
        self._forwards += 1
        self._forward = None
        if self._forwards > 1:
            return
        try:
            self._forward = Forward(module)
            self._forward.began(args)
        except Exception as error:
            self._obstacle = _failure("the model's state could not be copied", error)

    def _after_forward(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if module is not self._model() or self._forward is None or not _counts():
            return
        try:
            self._forward.ended(args, kwargs, output)
        except Exception as error:
            self._obstacle = _failure("the model's state could not be read", error)

    # -- measuring

    def _step_obstacle(self, optimizer: Optimizer) -> str | None:
        if self._backwards == 0:
            return "the optimizer works out its gradients in a closure"
        if self._backwards > 1:
            return f"the step's gradient came of {self._backwards} backward calls"
        if len(self._optimizers) > 1:
            return "several optimizers step in the loop"
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        model = self._model()
        if model is not None and any(p.grad is not None and id(p) not in held for p in model.parameters()):
            return "the optimizer holds only part of what has a gradient"
        return None

    def _measured(
        self, replay: Replay, model: torch.nn.Module, step: int, learning_rate: float, info: RunInfo
    ) -> tuple[StepQuality | None, str | None]:
        """What the step shows, or why it could not be told."""
        obstacle = replay.forward.obstacle
        if obstacle is not None:
            return None, obstacle
        try:
            return self._measure(replay, model, step, learning_rate, info)
        except Exception as error:
            return None, _failure("the step could not be replayed", error)

    def _measure(
        self, replay: Replay, model: torch.nn.Module, step: int, learning_rate: float, info: RunInfo
    ) -> tuple[StepQuality | None, str | None]:
        before, after, seen = replay.before, replay.after, replay.seen
        if not math.isfinite(seen):
            return None, "the loss was not finite before the step"
        start = replay.loss(before)
        if not abs(start - seen) <= SAME_LOSS * abs(seen):
            return None, f"the replayed loss is {start:.6g} where {seen:.6g} was seen, so part of it is not understood"
        tolerance = HALF_TOLERANCE if _has_halves(before) or replay.forward.in_halves else TOLERANCE

        def phi(length: float) -> float:
            return replay.loss(along(before, after, length))

        end = phi(1.0)
        inside = INSIDE if self._suspicion.long_step else ()
        length = overshoot(phi, start, end, inside=inside, tolerance=tolerance)
        others = without_faults(replay, model, info, untrained=step == 0, tolerance=tolerance) if length > 1 else {}
        return StepQuality(step, length, start, end, slope(replay), learning_rate, others), None

    def _count(self, found: StepQuality) -> None:
        self.ran.append(found.step)
        if self._after_alarm:
            self._later_left -= 1
            self._alarmed = 0
        else:
            self._early_left = 0 if found.overshoot > 1 else self._early_left - 1


def _understood(loss: torch.Tensor, scale: torch.Tensor | None, forward: Forward) -> tuple[Seen | None, str | None]:
    """The step's one forward pass with its loss, or why it cannot be replayed."""
    try:
        term = loss_again(loss, forward.ends, forward.outputs)
    except NotUnderstood as reason:
        return None, f"the loss is not understood: {reason}"
    except Exception as error:
        return None, _failure("the loss is not understood", error)
    finally:
        forward.release_outputs()
    return Seen(forward, term, loss.detach().clone(), scale), None


def _kind_obstacle(model: torch.nn.Module) -> str | None:
    """Why a model of this kind is never replayed, as a clause."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "the training runs in several processes, which would have to replay together"
    for module in model.modules():
        if isinstance(module, _WRAPPERS):
            return f"the model is wrapped by {type(module).__name__}"
        if isinstance(module, torch.jit.ScriptModule):
            return "the model is scripted, which hooks do not see"
    return None


def _counts() -> bool:
    """Whether this forward pass is one of the training's: with gradients, and not a checkpoint's that is made again."""
    return torch.is_grad_enabled() and not torch._C._is_tracing() and torch._C._current_graph_task_id() == -1


def _has_halves(weights: Weights) -> bool:
    return any(weight.element_size() < 4 for weight in _floats(weights))


def _floats(weights: Weights) -> Iterator[torch.Tensor]:
    return (weight for weight in weights.values() if weight.is_floating_point())


def _failure(what: str, error: Exception) -> str:
    told = str(error).partition("\n")[0][:120]
    return f"{what} ({type(error).__name__}: {told})"
