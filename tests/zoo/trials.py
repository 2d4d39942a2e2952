"""Which remedies are tried beside each fault's own: on which program, at which place, and to what effect."""

from __future__ import annotations

from dataclasses import dataclass

from gradscope.run_report import RunReport
from tests.zoo.proving import TREATED


@dataclass(frozen=True)
class Trial:
    """A rule's code, taken from a program's report and put at a place of its loop."""

    program: str
    rule: str
    place: str  # one of treatment.PLACES
    says: str = ""  # of code that looks: what it has found, as an expression
    begins: str = ""  # of code that has several forms: how this one begins
    every: int = 1  # steps from one that is sampled to the next

    @property
    def name(self) -> str:
        return f"{self.rule}-{self.program}"


CLIP, LOSS = "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=", "loss = torch.nn.functional."

# Code that makes the training work: symptoms where it is the thing to do, and further forms of what causes say.
CURES = (
    Trial("outlier_in_the_targets", "gradient-spikes", "gradients"),
    Trial("outlier_in_the_targets", "loss-divergence", "gradients"),
    Trial("outlier_in_the_targets", "exploding-gradients", "gradients"),
    Trial("nan_in_a_batch", "nonfinite-gradients", "step"),
    Trial("residual_without_norm", "residual-growth", "start"),
    Trial("saturated_tanh", "saturated-units", "start"),
    Trial("initial_weights_small", "vanishing-gradients", "start"),
    Trial("sigmoid_in_ten_layers", "vanishing-gradients", "start"),
    Trial("sigmoid_in_ten_layers", "init-too-small", "start"),
    Trial("large_embeddings", "initial-loss-off", "start"),
    Trial("batch_norm_over_three_images", "tiny-batch-norm", "start"),
    Trial("clipped_while_scaled", "clipping-misplaced", "step"),
    Trial("half_weights_adam", "fp16-underflow", "start"),
    Trial("epsilon_of_one", "adam-epsilon-dominates", "start"),
    Trial("one_class", "loss-input-mismatch", "loss"),
    Trial("cleared_before_the_step", "weights-not-moving", "step"),
    Trial("cleared_to_zero_before_the_step", "weights-not-moving", "step"),
    Trial("nan_in_a_target", "nonfinite-input", "batch"),
    Trial("columns_in_units", "unnormalized-input", "batch"),
    Trial("graph_net_of_randn", "init-too-large", "start"),
    Trial("residual_convnet_without_norm", "missing-normalization", "start"),
    Trial("softmax_in_between", "saturating-activation", "start"),
    Trial("gate_that_forgets", "recurrent-vanishing", "start"),
    Trial("logarithms_picked_and_added", "loss-reduction-sum", "loss"),
    Trial("mixture_summed", "loss-reduction-sum", "loss"),
    Trial("masks_up_to_255", "loss-input-mismatch", "batch"),
    Trial("student_without_logarithm", "loss-input-mismatch", "loss"),
    Trial("ctc_from_probabilities", "loss-input-mismatch", "forward"),
    Trial("clipped_by_value", "clipping-too-tight", "gradients"),
    Trial("nothing_to_predict", "nonfinite-origin", "step"),
    Trial("logarithm_of_zero", "nonfinite-origin", "loss"),
    Trial("lbfgs_rate_5", "lr-too-high", "start"),
    Trial("outlier_in_a_batch", "outlier-batch", "gradients", begins=CLIP, every=7),
)
# Forms of code that no fault of the zoo asks for.
FORMED = (
    Trial("logged_steps_not_clipped", "adam-second-moment-lag", "gradients", begins=CLIP),
    Trial("brought_to_a_norm", "clipping-too-tight", "gradients", begins=CLIP),
    Trial("gates_begin_open", "saturating-activation", "start", begins="factors = {'0': "),
    Trial("recurrence_in_five_layers", "recurrent-explosion", "start"),
    Trial("two_way_logarithm_of_zero", "nonfinite-origin", "loss", begins=f"{LOSS}binary_cross_entropy_with_logits(output, y)"),
    Trial("added_up_one_by_one", "loss-reduction-sum", "loss", begins="loss = loss / len(y)"),
)
# Code that stands in place of the operation of which a value came that was not finite.
OPERATIONS = {
    "zero_over_zero": ("__truediv__", "div"),
}
# Code that stops a faulty training where the fault is, and leaves a healthy one alone.
STOPS = (
    Trial("inputs_zero", "constant-input", "batch"),
    Trial("nan_in_a_batch", "nonfinite-origin", "batch"),
    Trial("nan_in_a_batch", "nonfinite-loss", "loss"),
    Trial("root_of_zero", "nonfinite-origin", "start"),
)
# Code that looks: a batch that is learned by heart though the labels say nothing, a layer that makes all samples the same.
LOOKS = (
    Trial("labels_at_random", "labels-unrelated", "batch", "one.item() < 0.5"),
    Trial("labels_at_random", "loss-plateau", "batch", "one.item() < 0.5"),
    Trial("biases_far_below_zero", "collapsed-output", "batch", "features[0][1].item() < 1e-3"),
)
# Code that keeps log Z small.
DRIFTS = (Trial("energy_without_a_margin", "output-logit-drift", "loss"),)

TRIED = {fault.truth for fault in TREATED.values()} | {trial.rule for trial in (*CURES, *STOPS, *LOOKS, *DRIFTS)}


def untried(report: RunReport) -> list[str]:
    """Rules whose code stands in a report and is tried nowhere."""
    return sorted({finding.rule for finding in report.findings if finding.remedy.code} - TRIED)
