"""Run reports built by hand: one of each sort that a user meets."""

from __future__ import annotations

import math
from dataclasses import replace

from gradscope.records import Finding
from gradscope.records import Remedy
from gradscope.records import RunInfo
from gradscope.records import Severity
from gradscope.run_report import ProfileRow
from gradscope.run_report import RunReport

RATE = Finding(
    rule="lr-too-high",
    kind="cause",
    severity=Severity.CRITICAL,
    confidence=0.934,
    modules=("layers.0", "layers.3"),
    first_step=2,
    last_step=41,
    explains=("exploding-gradients", "loss-divergence"),
    evidence={"update_ratio": 0.31, "healthy_update_ratio": 0.001},
    message="An optimizer step moves the weights by 31 % of their norm, where about 0.1 % is usual, and the loss rose from "
    "2.31 to 87.4 within 5 steps.",
    remedy=Remedy(
        "Lower the learning rate from 0.1 to 0.003.",
        'for group in optimizer.param_groups:\n    group["lr"] = 0.003  # was 0.1',
    ),
)
EXPLOSION = replace(
    RATE,
    rule="exploding-gradients",
    kind="symptom",
    confidence=0.881,
    modules=tuple(f"layers.{i}" for i in range(8)),
    first_step=4,
    explains=(),
    evidence={"growth": math.inf, "norms": [1.5, math.nan, 8.0e12]},
    message="The gradient norm grew from 1.5 to 8e+12 in 12 steps.",
    remedy=Remedy("Clip the gradient norm at 1.", "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)"),
)
DIVERGENCE = replace(EXPLOSION, rule="loss-divergence", modules=(), first_step=6, message="The loss grew 38-fold.")
INPUT = replace(
    RATE,
    rule="unnormalized-input",
    severity=Severity.INFO,
    confidence=0.7,
    modules=("input",),
    first_step=0,
    last_step=399,
    explains=(),
    message="The input has mean 127 and standard deviation 74, where 0 and 1 are usual.",
    remedy=Remedy("Normalise the input.", "x = (x - 127.0) / 74.0"),
)
DEAD = replace(
    EXPLOSION,
    rule="dead-units",
    severity=Severity.WARNING,
    confidence=0.82,
    modules=("layers.3",),
    evidence={"share": 0.71, "candidates": ["init-too-large", "unnormalized-input"]},
    message="71 % of the units of layers.3 were zero for every input over 40 sampled steps.",
    remedy=Remedy("Use a LeakyReLU after layers.3."),
)


def rows(count: int, *, growth: float = 1.0, marked: tuple[int, ...] = ()) -> tuple[ProfileRow, ...]:
    return tuple(
        ProfileRow(f"layers.{i}", "Linear", 0.8 * growth**i, 2e-3 / growth ** (count - i), 1e-3 * (1 + i), i in marked)
        for i in range(count)
    )


HEALTHY = RunReport(
    run=".",
    info=RunInfo(name="GPT", model="GPT"),
    steps=400,
    sampled_steps=120,
    overhead=0.0131,
    verdict=Severity.INFO,
    diagnosis=None,
    findings=(),
    checked=tuple(f"rule-{i}" for i in range(20)),
    skipped={
        "loss-plateau": "needs 500 steps, the run has 400",
        "lr-too-low": "needs 1000 steps, the run has 400",
        "unnormalized-input": "no floating-point tensor was given to the model, or to the part of it that is called first",
    },
    profile=rows(6),
    profile_step=395,
    first_loss=4.174,
    last_loss=1.32,
)
NOTED = replace(HEALTHY, run="noted", findings=(INPUT,))
BROKEN = replace(
    HEALTHY,
    run="sweep/lr=0.1",
    info=RunInfo(name="MLP", model="MLP"),
    verdict=Severity.CRITICAL,
    diagnosis="lr-too-high",
    findings=(RATE, INPUT, EXPLOSION, DIVERGENCE),
    profile=rows(8, growth=30.0, marked=(0, 3)),
    profile_step=3,
    first_loss=2.31,
    last_loss=87.4,
)
SYMPTOM = replace(
    BROKEN,
    run="symptom",
    verdict=Severity.WARNING,
    diagnosis="dead-units",
    findings=(DEAD,),
    skipped={},
    overhead=math.nan,
    last_loss=math.nan,
    profile=(ProfileRow("layers.3", "Linear", math.inf, 0.0, math.nan, True),),
)
DEEP = replace(BROKEN, run="deep", profile=rows(60, growth=1.2, marked=(0, 20, 41)))
DAMAGED = replace(HEALTHY, run="damaged", damage=("events.1 is cut off after 1,024 bytes: 3 records are lost.",))
UNCHECKED = replace(
    HEALTHY,
    run="foreign",
    info=RunInfo(name="unknown", model="unknown", notes=("The loss was read from the tag 'train/loss' of another tool.",)),
    sampled_steps=0,
    overhead=math.nan,
    checked=(),
    skipped={"lr-too-high": "no step was sampled", "dead-units": "no step was sampled"},
    profile=(),
    profile_step=None,
)
HOSTILE_NAME = "a\x1b[31m`|<b>*_[x]\n\u202e" + "very_long_name." * 12 + "層"
HOSTILE = replace(
    BROKEN,
    run="[bold]not markup[/bold]",
    findings=(
        replace(RATE, modules=(HOSTILE_NAME,), message=f"The module {HOSTILE_NAME} \x07explodes."),
        replace(DEAD, modules=(HOSTILE_NAME,) * 3),
    ),
    profile=(replace(BROKEN.profile[0], module=HOSTILE_NAME), replace(BROKEN.profile[1], module="")),
    damage=("\x1b]0;title\x07bad",),
)
ALL = {
    "healthy": (HEALTHY,),
    "noted": (NOTED,),
    "broken": (BROKEN,),
    "symptom": (SYMPTOM,),
    "deep": (DEEP,),
    "damaged": (DAMAGED,),
    "unchecked": (UNCHECKED,),
    "hostile": (HOSTILE,),
    "several": (BROKEN, HEALTHY, SYMPTOM),
    "none": (),
}
