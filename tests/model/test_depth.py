"""DepthHead: its weights follow its parameters, in inference and in training."""

from __future__ import annotations

import copy

import pytest
import torch

from microturn.kernels.depth_head import DepthInputs, depth_head
from microturn.kernels.rows import RowBatch
from microturn.kernels.sampling import TEXT_STREAM, SamplingParams
from microturn.model.interaction.depth import DepthConfig, DepthHead

CONFIG = DepthConfig(
    hidden_size=48,
    depth_size=32,
    num_layers=2,
    num_heads=4,
    gate_size=80,
    num_codebooks=5,
    codebook_size=24,
    text_vocab_size=30,
)


def head(seed: int = 0) -> DepthHead:
    made = DepthHead(CONFIG)
    made.reset_parameters(torch.Generator().manual_seed(seed))
    return made


def inputs(batch: int, temperature: float = 0.8) -> DepthInputs:
    params = SamplingParams(
        torch.full((batch,), temperature),
        torch.full((batch,), 20),
        torch.arange(batch),
        torch.arange(batch),
        TEXT_STREAM,
    )
    return DepthInputs(torch.randn(batch, 48), torch.randint(0, 30, (batch,)), params)


def test_parameters_are_those_of_the_sizes_and_a_seed_fixes_them() -> None:
    made, again, other = head(), head(), head(1)
    assert all(
        torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(made.qkv, other.qkv)
    assert all(bool(p.isfinite().all()) for p in made.parameters())
    step = 32 * 48 + 2 * (4 * 32 * 32 + 3 * 32 * 80) + 24 * 32
    assert sum(p.numel() for p in made.parameters()) == 5 * step + 30 * 32 + 4 * 24 * 32 + 4 * 32


@torch.inference_mode()
def test_fresh_logits_are_of_unit_scale() -> None:
    made, x = head(), inputs(200)
    codes = torch.randint(0, 24, (200, 5))
    spread = made.teacher_forced(x.hidden, x.text_ids, codes).std((0, 2))
    assert bool(((spread > 0.5) & (spread < 2)).all())


@torch.inference_mode()
def test_forward_is_the_op_and_greedy_codes_are_the_teacher_forced_best() -> None:
    made, x = head(), inputs(9, temperature=0.0)
    frame = made(x)
    assert torch.equal(frame.codes, depth_head(x, made.weights).codes)
    logits = made.teacher_forced(x.hidden, x.text_ids, frame.codes)
    assert torch.equal(logits.argmax(-1), frame.codes)
    rows = RowBatch.build(list(range(9)), [1] * 9, [0] * 9, exec_mask=[True] * 8 + [False])
    assert made(x, rows).codes[8].tolist() == [0] * 5


def test_weights_are_kept_in_inference_and_follow_the_parameters() -> None:
    made, other, x = head(), head(1), inputs(4)
    with torch.inference_mode():
        first, wanted = made.weights, other(x).codes
        assert made.weights is first
        assert first.steps is made.weights.steps
        assert not torch.equal(made(x).codes, wanted)
    made.load_state_dict(other.state_dict())
    with torch.inference_mode():
        assert made.weights is first, "same memory: nothing to rebuild"
        assert torch.equal(made(x).codes, wanted)
    made.load_state_dict(head(2).state_dict(), assign=True)
    with torch.inference_mode():
        assert made.weights is not first
        assert torch.equal(made(x).codes, head(2)(x).codes)
        made.to(torch.float64)
        assert made.weights.qkv.dtype == torch.float64
        twin = copy.deepcopy(made)
        assert twin.weights.qkv.data_ptr() == twin.qkv.data_ptr()


def test_training_fits_a_frame_and_reaches_every_parameter() -> None:
    made, x = head(), inputs(16)
    codes = torch.randint(0, 24, (16, 5))
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        logits = made.teacher_forced(x.hidden, x.text_ids, codes)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in made.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    with torch.inference_mode():
        fitted = made.teacher_forced(x.hidden, x.text_ids, codes)
        assert float((fitted.argmax(-1) == codes).float().mean()) > 0.9


def test_sizes_that_the_head_cannot_have_are_refused() -> None:
    odd = DepthHead(DepthConfig(48, 32, 2, 5, 80, 5, 24, 30))
    with pytest.raises(ValueError, match="5 heads do not divide the width 32"):
        _ = odd.weights
