"""The values that travel from capture to reports: frozen dataclasses over numpy and plain Python, nothing else.

Two sorts of numbers leave a training run. A *pulse* is one row of cheap scalars for every optimizer step. A *frame* is one
sampled step: one float32 vector over sites for every statistic. In both, NaN means "not captured" in every column but
the pulse's ``loss``; a value that was captured and is not finite stands as infinity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

# Which rank's numbers stand apart from those of all the others, and which have some that are not finite.
_OF_RANKS: Mapping[str, str] = {
    "apart": "decades between the rms of the rank furthest from the others and their mean; of ranks that train together",
    "apart_rank": "that rank",
    "apart_spread": "standard deviation of the others' decades; NaN where there is but one other",
    "broken_ranks": "how many ranks have any that are not finite; of ranks that train together",
    "broken_rank": "the one that has most of them",
}

# What a site's numbers describe, and which statistics each kind has. A column is named "<kind>.<statistic>".
STATISTICS: Mapping[str, Mapping[str, str]] = {
    "input": {
        "mean": "mean of the sampled elements",
        "rms": "root mean square of the sampled elements",
        "absmax": "largest magnitude among the sampled elements",
        "signal": "std over the batch at a fixed feature and position, rms over both; NaN for a batch of one",
        "nonfinite": "fraction of sampled elements that are NaN or infinite",
        "repeated": "1 where the sampled elements are those of the sampled step before, bit for bit, else 0",
        **_OF_RANKS,
    },
    "activation": {
        "mean": "mean of the sampled elements",
        "rms": "root mean square of the sampled elements",
        "absmax": "largest magnitude among the sampled elements",
        "signal": "std over the batch at a fixed feature and position, rms over both; NaN for a batch of one",
        "nonfinite": "fraction of sampled elements that are NaN or infinite",
        "zero": "fraction of sampled elements that are exactly zero",
        "saturated": "fraction where the activation's derivative is under 5 % of its largest; NaN where it cannot saturate",
        "active_low": "sampled units 0 to 15 with any element above zero, as bits of an integer",
        "active_high": "sampled units 16 to 31 with any element above zero, as bits of an integer",
        **_OF_RANKS,
    },
    "activation_gradient": {
        "rms": "root mean square of the sampled elements of dL/d(output)",
        "absmax": "largest magnitude among the sampled elements",
        "nonfinite": "fraction of sampled elements that are NaN or infinite",
        "zero": "fraction of sampled elements that are exactly zero",
        "time_growth": "decades that a recurrent layer's gradient grows from the last time step back to the first",
        "time_steps": "time steps that a recurrent layer's gradient came back through",
        **_OF_RANKS,
    },
    "weight": {
        "norm": "exact Euclidean norm before the update",
        "nonfinite": "1 where the exact norm is not finite, else 0",
        "row_spread": "variance between rows, or columns if less, over mean square, of a sampled block; 0 where all are equal",
        "ranks_apart": "relative difference of the norms that ranks have of what should be the same; 0 by rounding alone",
        "ranks_apart_rank": "the rank whose norm is furthest from the others'; NaN where none differs",
    },
    "weight_gradient": {
        "norm": "exact Euclidean norm of the gradient that the optimizer used; NaN where there is none",
        "nonfinite": "1 where the exact norm is not finite, else 0; NaN where there is no gradient",
        "absmax": "largest magnitude among the sampled elements",
        "zero": "fraction of sampled elements that are exactly zero",
        "row_spread": "variance between rows, or columns if less, over mean square, of a sampled block; 0 where all are equal",
        "time_growth": "decades that the gradient grows from the last to the first use of a matrix that recurs over time",
        "time_steps": "uses of the matrix, each on what the one before came to",
        "carried": "1 where the gradient still held the previous step's when this step's backward began, else 0",
    },
    "update": {
        "ratio": "norm of the step's displacement over the norm of the weight, both of the same sampled elements",
        "unchanged": "fraction of sampled elements that the step left bit-identical",
        "outside_change": "norm of the change between the last step's end and this step, over the weight's norm",
        "outside_factor": "the factor c that fits best where weights changed between steps to c times themselves",
        "outside_residual": "what the factor leaves of the outside change, as a share of that change",
        "second_moment_ratio": "Adam: root of the mean of g² over the bias-corrected second moment before the step; else NaN",
        "epsilon_share": "Adam: fraction of elements with a gradient whose root second moment is under 10 eps; else NaN",
    },
    # One site for each recognised loss, in the order in which they come into the graph.
    "loss": {
        "weight": "derivative of what backward() was called on by this loss: 1, or 1/k where k micro-batches are averaged",
        "input_mean": "mean of the sampled elements of what the loss takes from the model",
        "input_rms": "their root mean square",
        "input_signal": "their std over the batch at a fixed feature and position, rms over both",
        "target_mean": "mean of the sampled elements of a floating-point target; NaN for class labels",
        "target_rms": "their root mean square",
        "target_low": "the smallest of them",
        "target_high": "the largest of them",
        "target_signal": "their std over the batch at a fixed feature and position, rms over both",
        "target_nonfinite": "fraction of them that are NaN or infinite",
        "target_count": "elements of the target in all, class labels that are ignored left out",
        "label_entropy": "entropy of the step's class labels in nats; NaN for other targets",
        "label_entropy_seen": "entropy of all class labels on sampled steps so far, in nats; NaN for other targets",
        "log_partition": "mean magnitude of log Z, the logsumexp of the logits of a cross-entropy; else NaN",
    },
    # One site for each scaled dot-product attention in the graph, named by the module whose projection feeds it.
    "attention": {
        "logit_max": "largest |q·k|/√d over a few heads and queries, masked keys left out",
        "entropy": "mean entropy of the attention weights over log(number of keys), of rows with 8 keys or more",
    },
    # One site for the whole step.
    "step": {
        "graph_nodes": "nodes of the autograd graph under the step's last loss; NaN where it was not read",
        "forwards": "forward passes of the model with gradients in this step",
        "evaluating": "share of dropout and batch-norm modules that ran in evaluation mode, with gradients",
        "untouched_statistics": "1 where a batch norm in evaluation mode has the running statistics of its start, else 0",
        "idle_training_forwards": "forward passes without gradients, since the last step, with batch norm or dropout training",
        "clip_norm": "global gradient norm that clip_grad_norm_ found; NaN where it was not called",
        "clip_limit": "the max_norm that it was given",
        "clip_place": "when: 0 between backward and step, 1 with no gradient, 2 after the step, 3 on scaled gradients",
        "loss_apart": "how far the rank furthest from the others is from their mean loss, since the ranks' last exchange",
        "loss_apart_rank": "that rank",
        "loss_apart_spread": "standard deviation of the others' losses; NaN where there is but one other",
    },
}

SITE_OF_STEP = "(step)"

CLOSE_STEPS = 100  # from the start, at which a run on a budget is looked at closely whatever that takes
HISTOGRAM_BINS = 64
HISTOGRAM_LOWEST = -48  # bin i counts 2^(i-48) <= |x| < 2^(i-47); the first also what is smaller, the last what is larger

PULSE_FIELDS = (
    "step",  # optimizer steps before this one, from 0
    # mean over the step's backward calls, their sum where RunInfo.losses_add_up; NaN and infinity stand as they are, and NaN
    # also where backwards is 0
    "loss",
    "gradient_norm",  # exact global norm of the gradients the optimizer used
    "learning_rate",  # largest over the optimizer's parameter groups
    "seconds",  # from the end of the previous step to the end of this one
    "own_seconds",  # of these, what gradscope itself took, as it measures it
    "backwards",  # backward calls since the last step
    "sampled",  # 1 where a frame was taken
    "foreign",  # 1 where the step was of an optimizer that holds none of the model's parameters
    "loss_scale",  # what a GradScaler multiplied the loss with; NaN without one
)


class Severity(IntEnum):
    """How bad a finding is: info is worth knowing, warning is likely harmful, critical wastes the training."""

    INFO = 0
    WARNING = 1
    CRITICAL = 2

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, order=True)
class Site:
    """One place that is watched: the n-th call of a module in a forward pass, a parameter, or an input of the model."""

    path: str  # the module's or parameter's dotted name; "" is the model itself
    call: int = 0

    @property
    def name(self) -> str:
        shown = self.path or "(model)"
        return shown if self.call == 0 else f"{shown}#{self.call}"


@dataclass(frozen=True)
class Schema:
    """Which sites the vectors of a frame are over, kind by kind, each in execution order."""

    inputs: tuple[Site, ...] = ()
    modules: tuple[Site, ...] = ()  # for activation and activation_gradient
    parameters: tuple[Site, ...] = ()  # for weight, weight_gradient and update
    losses: tuple[Site, ...] = ()
    attentions: tuple[Site, ...] = ()

    def sites(self, kind: str) -> tuple[Site, ...]:
        """The sites of a kind of STATISTICS. Raises KeyError for any other."""
        return {
            "input": self.inputs,
            "activation": self.modules,
            "activation_gradient": self.modules,
            "weight": self.parameters,
            "weight_gradient": self.parameters,
            "update": self.parameters,
            "loss": self.losses,
            "attention": self.attentions,
            "step": _STEP_SITES,
        }[kind]


_STEP_SITES = (Site(SITE_OF_STEP),)


@dataclass(frozen=True)
class Frame:
    """What one sampled step showed."""

    step: int
    schema: Schema
    columns: Mapping[str, Array]  # "activation.rms" -> float32 [sites of that kind]
    histograms: Mapping[str, Array] = field(default_factory=dict)  # kind -> share of elements, [sites, HISTOGRAM_BINS]


@dataclass(frozen=True)
class ModuleInfo:
    path: str
    type: str  # the class's name
    role: str  # linear conv embedding norm activation dropout recurrent attention container other
    parameters: tuple[str, ...] = ()  # full names of its own parameters, not its children's
    activation: str | None = None  # the nonlinearity that takes its output: "relu", "tanh", … as the graph shows it
    norm_follows: bool = False  # a normalisation takes its output, directly or after adding a bias
    dtype: str | None = None  # of its output as it was seen: "float16" under autocast, say
    samples: int | None = (
        None  # of a batch norm in training mode: the fewest values that a channel's statistics were taken over
    )
    ungraded: bool = False  # it ran under no_grad(), and what came of it went into a module that ran with gradients


@dataclass(frozen=True)
class ParameterInfo:
    name: str
    module: str  # the path of the module that owns it
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    zero_at_start: bool
    tied: tuple[str, ...] = ()  # other names of the same tensor

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def fan_in(self) -> int:
        """Inputs that one output unit sums over: the product of all dimensions but the first."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) if len(self.shape) > 1 else 1


@dataclass(frozen=True)
class OptimizerInfo:
    type: str
    learning_rate: float
    parameters: tuple[str, ...]  # names of the watched model's parameters that it holds
    strangers: int  # tensors it holds that are not parameters of the watched model
    settings: Mapping[str, float]  # momentum, beta1, beta2, eps, weight_decay, where it has them


@dataclass(frozen=True)
class LossInfo:
    """The contract between model and loss, as the autograd graph shows it."""

    kind: str  # cross_entropy nll mse l1 smooth_l1 bce bce_with_logits kl_div ctc hinge soft_margin gaussian_nll … other
    node: str  # name of the autograd node
    reduction: str | None = None  # mean sum none
    input_shape: tuple[int, ...] | None = None
    target_shape: tuple[int, ...] | None = None
    classes: int | None = None
    producer: str | None = None  # what made the loss's input, views looked through: softmax, log_softmax, sigmoid, …
    baseline: float | None = None  # the loss of the best constant prediction: ln C or Var(y), where it is known
    target_dtype: str | None = None


@dataclass(frozen=True)
class Broadcast:
    """A subtraction of two tensors of different shapes whose result is larger than either: (N, 1) - (N,)."""

    node: str
    left: tuple[int, ...]
    right: tuple[int, ...]
    result: tuple[int, ...]


@dataclass(frozen=True)
class Stray:
    """A layer or parameter that the forward pass uses, that is not registered with the model, and that nothing changes."""

    place: str  # the way there from the model: "hidden[0]"; "" where no attribute leads there
    type: str  # the class's name
    elements: int


@dataclass(frozen=True)
class Wiring:
    """What the autograd graph of the first losses says about how model, loss and optimizer are joined."""

    losses: tuple[LossInfo, ...] = ()
    broadcasts: tuple[Broadcast, ...] = ()
    residual_additions: int = 0  # additions of two branches that both come out of the model
    norms: int = 0  # normalisation nodes, of modules and of functions alike
    reached: tuple[str, ...] = ()  # parameters that a loss reached in any of the graphs read
    graphs: int = 0  # how many graphs were read
    cuts: tuple[tuple[str, str], ...] = ()  # (module, next module): gradient leaves the second and never enters the first
    strays: tuple[Stray, ...] = ()  # what no optimizer holds because the model does not know that it is its own


@dataclass(frozen=True)
class StepQuality:
    """What replaying a step's batch along the update that was made has shown.

    phi(s) is the loss of that batch at ``weights before the step + s · update``. The overshoot is O = 1 / s_c, where s_c is
    the smallest s > 0 at which phi(s) > phi(0): above 1, the step went up.
    """

    step: int
    overshoot: float  # O; infinite where every step that was tried goes up; 0 where not even 64 updates do
    loss_before: float  # phi(0)
    loss_after: float  # phi(1)
    slope: float  # phi'(0), the gradient times the update: below 0 where the step follows the gradient down
    learning_rate: float  # that the step was made with
    without: Mapping[str, float] = field(default_factory=dict)  # rule -> O once what that rule blames is taken away


@dataclass(frozen=True)
class Origin:
    """Where the first value that is not finite came from, found at the step itself: the black box."""

    step: int
    place: str  # parameter input forward between loss target backward; target: what the loss is compared or weighed with
    module: str | None = None  # the first module, in the order of the pass, whose result is not finite
    before: str | None = None  # the last one before it whose result is finite
    node: str | None = None  # the operation's autograd node: "LogBackward0"
    dtype: str | None = None
    largest: float | None = None  # largest finite magnitude that went into it


@dataclass(frozen=True)
class RunInfo:
    """What does not change from step to step; written at the start and again when more is known."""

    name: str
    model: str  # the class of the model
    modules: tuple[ModuleInfo, ...] = ()
    parameters: tuple[ParameterInfo, ...] = ()
    optimizers: tuple[OptimizerInfo, ...] = ()
    wiring: Wiring | None = None
    shared_process: bool = False  # another model was watched, or another optimizer stepped, in the same loop
    by_hand: bool = False  # no optimizer that holds its parameters has stepped, and scope.step() tells where a step ends
    losses_add_up: bool = False  # a step's loss is the sum of those of its backward calls, each of which is a share of it
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)
    started: float = 0.0  # seconds since the epoch
    budget: float = 0.02
    every: int | None = None
    select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    probe: str = "not needed so far"  # why the step-quality probe did not run, or when it did
    probes: tuple[StepQuality, ...] = ()  # what the step-quality probe found, where it ran
    ranks: int = 1  # processes that train the model together, whose numbers are in the record
    origin: Origin | None = None  # of the first value that was not finite
    notes: tuple[str, ...] = ()  # what could not be captured and why, a sentence each


@dataclass(frozen=True)
class Remedy:
    text: str  # one sentence: the change to make
    code: str | None = None  # torch code with the values worked out from the evidence


@dataclass(frozen=True)
class Hit:
    """A rule's claim: this held, here, from this step to that, and these numbers say so."""

    modules: tuple[str, ...]
    first_step: int  # the first step whose numbers show it
    last_step: int
    evidence: Mapping[str, Any]  # numbers, strings, booleans and lists of them
    message: str  # one sentence with the numbers
    remedy: Remedy
    severity: Severity
    strength: float  # how much it proves: 10 a broken contract, 5 a counterfactual, 4 structure at step 0, 3 onset, 1 a trend


@dataclass(frozen=True)
class Finding:
    """A hit after diagnosis: placed among the others, with what it explains and how sure it is."""

    rule: str
    kind: str  # "cause" or "symptom"
    severity: Severity
    confidence: float
    modules: tuple[str, ...]
    first_step: int
    last_step: int
    explains: tuple[str, ...]
    evidence: Mapping[str, Any]
    message: str
    remedy: Remedy
