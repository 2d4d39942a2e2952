"""Why a run has no numbers of some sort, in sentences for the report's list of what could not be checked."""

from __future__ import annotations

from gradscope.records import RunInfo

_SENTENCES = {
    "input": "no floating-point tensor was given to the model, or to the part of it that is called first",
    "loss": "the loss function was not recognised in the autograd graph",
    "attention": "no scaled dot-product attention was seen in the autograd graph",
    "activation.saturated": "no tanh or sigmoid was seen",
    "activation_gradient.time_growth": "no layer that recurs over time was seen",
    "weight_gradient.carried": "no two steps in a row were sampled",
    "update.outside_change": "no two steps in a row were sampled",
    "update.second_moment_ratio": "no optimizer that keeps second moments, as Adam does, was seen stepping",
    "update.epsilon_share": "no optimizer that keeps second moments, as Adam does, was seen stepping",
    "loss.log_partition": "the loss is no cross-entropy",
    "loss.target_rms": "the targets of the loss are labels, or could not be seen",
    "loss.label_entropy": "the targets of the loss are no class labels, or could not be seen",
    "weight.ranks_apart": "one process trained the model, or no other process's numbers were put together with its own",
    "step.loss_apart": "one process trained the model, or no other process's numbers were put together with its own",
    "step.graph_nodes": "no autograd graph was read",
    "step.evaluating": "the model has no dropout and no batch norm that ran",
    "step.clip_norm": "clip_grad_norm_() was not called in the loop",
    "step.clip_limit": "clip_grad_norm_() was not called in the loop",
    "step.clip_place": "clip_grad_norm_() was not called in the loop",
}


def lacking(need: str) -> str:
    """Why a column ("step.clip_norm") or all of a kind ("attention") holds nothing."""
    kind, _, name = need.partition(".")
    shown = kind.replace("_", " ")
    usual = f"{name.replace('_', ' ')} of {shown}s was not captured" if name else f"no {shown} was seen"
    return _SENTENCES.get(need, usual)


def lacking_fact(info: RunInfo, name: str) -> str | None:
    """Why a fact about the run ("wiring", "loss", "reduction", "optimizer", "steps") is not known; None where it is."""
    if name == "wiring" and info.wiring is None:
        return "no autograd graph was read: the loss's backward() was not seen"
    if name == "loss" and not (info.wiring and any(loss.kind != "other" for loss in info.wiring.losses)):
        return _SENTENCES["loss"]
    if name == "reduction" and not (info.wiring and any(loss.reduction is not None for loss in info.wiring.losses)):
        return _SENTENCES["loss"]
    if name == "steps" and not (info.optimizers or info.by_hand):
        return "no optimizer that holds the model's parameters was seen stepping, nor did scope.step() tell of a step"
    if name == "optimizer" and not info.optimizers:
        return "no optimizer that holds the model's parameters was seen stepping"
    return None
