"""Logits and entropy of attention, from what the graph saved."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.capture.watching import seen_of
from tests.capture.watching import watching
from tests.models import GPT
from tests.models import mlp

X = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0))
CAUSAL = torch.ones(12, 12, dtype=torch.bool).tril()


class Attending(nn.Module):
    """Attention over a sequence with four heads; ``attend`` takes queries, keys and values [batch, head, place, width]."""

    def __init__(self, attend, *, key_heads=4):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 4 * key_heads), nn.Linear(16, 4 * key_heads)
        self.attend = attend

    def heads(self, x):
        return [part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.q, self.k, self.v)]

    def forward(self, x):
        return self.attend(*self.heads(x)).transpose(1, 2).flatten(2)


def expected(model, x, *, visible=None, bias=0.0):
    """The largest logit and the mean entropy, over all heads and queries."""
    q, k, _ = model.heads(x)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    visible = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool) if visible is None else visible
    logits = q @ k.transpose(-1, -2) / 2
    weights = (logits + bias).masked_fill(~visible, -math.inf).softmax(-1)
    keys = visible.sum(-1).expand(weights.shape[:-1])
    entropies = torch.special.entr(weights).sum(-1)[keys >= 8] / keys[keys >= 8].log()
    return logits.masked_fill(~visible, 0).abs().amax().item(), entropies.mean().item()


def by_hand(mask):
    def attend(q, k, v):
        logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        return mask(logits).softmax(-1) @ v

    return attend


VISIBLE = {
    "fused": (functional.scaled_dot_product_attention, None),
    "causal": (lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True), CAUSAL),
    "mask": (lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, attn_mask=CAUSAL), CAUSAL),
    "dropout": (lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.5), CAUSAL),
    "by hand": (by_hand(lambda logits: logits), None),
    "by hand, filled": (by_hand(lambda logits: logits.masked_fill(~CAUSAL, -math.inf)), CAUSAL),
    "by hand, chosen": (by_hand(lambda logits: torch.where(CAUSAL, logits, -1e9)), CAUSAL),
    "by hand, added": (by_hand(lambda logits: logits + torch.zeros(12, 12).masked_fill(~CAUSAL, -1e9)), CAUSAL),
    "products": (lambda q, k, v: torch.einsum("bhqd,bhkd->bhqk", q / 2, k).softmax(-1) @ v, None),
}


@pytest.mark.parametrize(("attend", "visible"), VISIBLE.values(), ids=VISIBLE)
def test_logits_and_entropy(attend, visible):
    model = Attending(attend)
    seen = seen_of(model, X[:1])
    assert seen.sites("attention") == ["q"]
    logit, entropy = expected(model, X[:1], visible=visible)  # one sequence of four heads: all is looked at
    assert seen.get("attention.logit_max", "q") == pytest.approx(logit, rel=0.02)  # the step has moved the weights
    assert seen.get("attention.entropy", "q") == pytest.approx(entropy, rel=0.01)


def test_what_a_masked_key_would_have_counts_for_nothing():
    model = Attending(lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    x = X.clone()
    x[:, -1] *= 1000  # its key is seen by its own query alone
    seen = seen_of(Attending(lambda q, k, v: functional.scaled_dot_product_attention(q[:, :, :-1], k, v, is_causal=True)), x)
    assert seen.get("attention.logit_max", "q") < 10
    assert seen_of(model, x).get("attention.logit_max", "q") > 1000


def test_keys_that_heads_share():
    model = Attending(lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True), key_heads=2)
    seen = seen_of(model, X[:1])
    logit, entropy = expected(model, X[:1])
    assert seen.get("attention.logit_max", "q") == pytest.approx(logit, rel=0.02)
    assert seen.get("attention.entropy", "q") == pytest.approx(entropy, rel=0.01)


def test_few_keys_have_no_entropy():
    seen = seen_of(Attending(functional.scaled_dot_product_attention), X[:, :7])
    assert seen.get("attention.logit_max", "q") > 0
    assert math.isnan(seen.get("attention.entropy", "q"))


def test_long_sequences_are_sampled():
    model = Attending(lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    x = torch.randn(4, 300, 16, generator=torch.Generator().manual_seed(1))
    seen = seen_of(model, x)
    logit, entropy = expected(model, x, visible=torch.ones(300, 300, dtype=torch.bool).tril())
    assert logit / 2 < seen.get("attention.logit_max", "q") < logit * 1.1
    assert seen.get("attention.entropy", "q") == pytest.approx(entropy, abs=0.02)


def test_sharp_attention():
    model = Attending(functional.scaled_dot_product_attention)
    with torch.no_grad():
        model.q.weight *= 30
        model.k.weight *= 30
    seen = seen_of(model, X)
    assert seen.get("attention.logit_max", "q") > 100
    assert seen.get("attention.entropy", "q") < 0.1


def test_queries_that_are_not_finite():
    model = Attending(functional.scaled_dot_product_attention)
    with torch.no_grad():
        model.q.weight.fill_(math.nan)
    seen = seen_of(model, X)
    assert seen.get("attention.logit_max", "q") == math.inf
    assert seen.get("attention.entropy", "q") == math.inf


def test_a_gpt_has_a_site_for_each_block():
    model = GPT()
    with watching(model) as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.arange(20).view(2, 10) % 17).square().mean().backward()
            optimizer.step()
    assert seen.sites("attention") == ["blocks.0.qkv", "blocks.1.qkv"]
    first, last = (seen.frames[i].columns["attention.entropy"] for i in (0, 4))
    assert all(0.5 < value <= 1 for value in first)
    assert all(math.isnan(value) for value in last)  # its graph was not read


class Sequence(nn.Module):
    def __init__(self, inner, **kwargs):
        super().__init__()
        self.inner = inner
        self.kwargs = kwargs

    def forward(self, x):
        return self.inner(x, x, x, **self.kwargs)[0] if isinstance(self.inner, nn.MultiheadAttention) else self.inner(x)


@pytest.mark.parametrize("kwargs", [{}, {"need_weights": False}, {"attn_mask": ~CAUSAL}], ids=["weights", "fused", "mask"])
def test_multihead_attention(kwargs):
    torch.manual_seed(0)
    seen = seen_of(Sequence(nn.MultiheadAttention(16, 4, batch_first=True), **kwargs), X)
    assert seen.sites("attention") == ["inner"]
    assert 0 < seen.get("attention.logit_max", "inner") < 10
    assert 0.8 < seen.get("attention.entropy", "inner") <= 1


def test_an_encoder_layer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    seen = seen_of(Sequence(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)), X)
    assert seen.sites("attention") == ["inner.layers.0.self_attn", "inner.layers.1.self_attn"]


def test_a_module_that_attends_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attending(functional.scaled_dot_product_attention)

        def forward(self, x):
            return self.attention(self.attention(x))

    assert seen_of(Twice(), X).sites("attention") == ["attention.q", "attention.q#1"]


def test_queries_without_weights_have_a_name_of_their_own():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(4))

        def forward(self, x):
            q = x.unflatten(-1, (-1, 4)).transpose(1, 2) * self.gain
            return functional.scaled_dot_product_attention(q, q, q)

    assert seen_of(Bare(), X).sites("attention") == ["(attention)"]


def test_other_softmaxes_are_no_attention():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.experts = nn.Linear(16, 3), nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
            self.router = nn.Parameter(torch.randn(16, 3))

        def forward(self, x):
            weights = self.gate(x).softmax(-1) + torch.einsum("btd,de->bte", x, self.router).softmax(-1)
            return sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))

    assert seen_of(Gated(), X).sites("attention") == []
    assert seen_of(mlp(16, 4), X).sites("attention") == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    model = Attending(functional.scaled_dot_product_attention)
    logit, _ = expected(model, X[:1])
    seen = seen_of(model.to(dtype), X[:1].to(dtype))
    assert seen.get("attention.logit_max", "q") == pytest.approx(logit, rel=0.05)


def test_what_a_checkpoint_packed_is_left_alone():
    runs = []

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attending(functional.scaled_dot_product_attention)

        def forward(self, x):
            return checkpoint(self.run, x, use_reentrant=False)

        def run(self, x):
            runs.append(1)
            return self.attention(x)

    assert seen_of(Checkpointed(), X).sites("attention") == []
    assert len(runs) == 2
