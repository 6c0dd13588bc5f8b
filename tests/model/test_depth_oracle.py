"""The depth head is Moshi's depformer: same logits, same greedy codes, on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from microturn.kernels.depth_head import DepthInputs, DepthWeights, depth_head, reference
from microturn.kernels.depth_head.reference import core
from microturn.kernels.sampling import TEXT_STREAM, SamplingParams
from microturn.kernels.testing import error_ratio

pytestmark = pytest.mark.oracle

BOOKS, CARD, TEXT_CARD, TRUNK, BATCH = 6, 40, 50, 48, 5


def oracle() -> Any:
    """Moshi's model with small random weights; its norms get gains, which it starts at one."""
    lm = pytest.importorskip("moshi.models.lm")
    torch.manual_seed(3)
    made = lm.LMModel(
        delays=[0] * (BOOKS + 1),
        n_q=BOOKS,
        dep_q=BOOKS,
        card=CARD,
        text_card=TEXT_CARD,
        dim=TRUNK,
        num_heads=2,
        num_layers=1,
        hidden_scale=4.125,
        norm="rms_norm_f32",
        gating="silu",
        layer_scale=None,
        causal=True,
        context=16,
        max_period=10000,
        positional_embedding="rope",
        depformer_dim=64,
        depformer_dim_feedforward=264,
        depformer_num_heads=4,
        depformer_num_layers=2,
        depformer_layer_scale=None,
        depformer_multi_linear=True,
        depformer_context=2,
        depformer_max_period=10000,
        depformer_gating="silu",
        depformer_pos_emb="none",
        depformer_weights_per_step=True,
    ).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith("depformer"):
                spread = torch.randn_like(parameter)
                matrix = parameter.dim() == 2
                width = parameter.shape[-1]
                parameter.copy_(spread * width**-0.5 * 1.5 if matrix else 1 + 0.2 * spread)
    return made


def mapped(lm: Any) -> DepthWeights:
    """Moshi's tables have a row more, for its initial code, that no step of the head looks up."""
    state = {name: tensor.detach() for name, tensor in lm.state_dict().items()}

    def per_step(pattern: str, count: int = BOOKS) -> Tensor:
        return torch.stack([state[pattern.format(k=k)] for k in range(count)])

    def per_layer(pattern: str) -> Tensor:
        return torch.stack([per_step(pattern.replace("{i}", str(i))) for i in range(2)])

    def gains(norm: str) -> Tensor:
        return torch.stack(
            [state[f"depformer.layers.{i}.{norm}.alpha"].flatten() for i in range(2)]
        )

    layer = "depformer.layers.{i}."
    return DepthWeights(
        hidden_in=per_step("depformer_in.{k}.weight"),
        text_table=state["depformer_text_emb.weight"],
        code_tables=per_step("depformer_emb.{k}.weight", BOOKS - 1)[:, :CARD],
        attention_gain=gains("norm1"),
        qkv=per_layer(layer + "self_attn.in_projs.{k}.weight"),
        out=per_layer(layer + "self_attn.out_projs.{k}.weight"),
        mlp_gain=gains("norm2"),
        gate_up=per_layer(layer + "gating.{k}.linear_in.weight"),
        down=per_layer(layer + "gating.{k}.linear_out.weight"),
        heads=per_step("linears.{k}.weight"),
        num_heads=4,
        eps=1e-8,
    )


def frame() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    hidden = torch.randn(BATCH, TRUNK, generator=g)
    text_ids = torch.randint(0, TEXT_CARD + 1, (BATCH,), generator=g)
    codes = torch.randint(0, CARD, (BATCH, BOOKS), generator=g)
    return hidden, text_ids, codes


def oracle_logits(lm: Any, hidden: Tensor, text_ids: Tensor, codes: Tensor) -> Tensor:
    """[B, Q, V]: Moshi's own teacher-forced pass over frames of one step."""
    from moshi.utils.compile import no_compile  # type: ignore[import-not-found, unused-ignore]

    sequence = torch.cat([text_ids[:, None], codes], 1)[:, :, None]
    with no_compile():
        logits: Tensor = lm.forward_depformer_training(sequence, hidden[:, None])
    return logits[:, :, 0]


@torch.no_grad()
def test_teacher_forced_logits_equal_moshi() -> None:
    lm = oracle()
    hidden, text_ids, codes = frame()
    want = oracle_logits(lm, hidden, text_ids, codes)
    got = core(hidden, text_ids, codes, mapped(lm))
    assert float(want.std()) > 0.5
    assert float((got - want).abs().max()) < 1e-5


@torch.no_grad()
def test_greedy_codes_equal_moshi_step_by_step() -> None:
    from moshi.utils.compile import no_compile

    lm = oracle()
    hidden, text_ids, _ = frame()
    with no_compile(), lm.depformer.streaming(BATCH):
        token, want = text_ids, []
        for k in range(BOOKS):
            logits = lm.forward_depformer(k, token[:, None, None], hidden[:, None])
            token = logits[:, 0, 0].argmax(-1)
            want.append(token)
    params = SamplingParams(
        torch.zeros(BATCH),
        torch.ones(BATCH, dtype=torch.int64),
        torch.zeros(BATCH, dtype=torch.int64),
        torch.zeros(BATCH, dtype=torch.int64),
        TEXT_STREAM,
    )
    got = depth_head(DepthInputs(hidden, text_ids, params), mapped(lm))
    assert got.codes.tolist() == torch.stack(want, 1).tolist()
    assert len(set(got.codes.flatten().tolist())) > BOOKS


@pytest.mark.parametrize("window", [1, 2])
@torch.no_grad()
def test_a_window_inside_the_frame_would_be_noticed(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = oracle()
    hidden, text_ids, codes = frame()
    want = oracle_logits(lm, hidden, text_ids, codes)
    attend = reference._attend

    def windowed(q: Tensor, k: Tensor, v: Tensor, past: tuple[Tensor, Tensor] | None) -> Any:
        if past is not None:
            kept = past[0].shape[2] - (window - 1)
            past = (past[0][:, :, max(kept, 0) :], past[1][..., max(kept, 0) :])
        return attend(q, k, v, past)

    monkeypatch.setattr(reference, "_attend", windowed)
    got = core(hidden, text_ids, codes, mapped(lm))
    for k in range(BOOKS):
        error = error_ratio(got[:, k], want[:, k])
        assert error < 1e-5 if k < window else error > 1e-3


@torch.no_grad()
def test_moved_weights_would_be_noticed() -> None:
    lm = oracle()
    hidden, text_ids, codes = frame()
    want = oracle_logits(lm, hidden, text_ids, codes)
    weights = mapped(lm)
    for name in ("hidden_in", "code_tables", "qkv", "gate_up", "heads"):
        stack = getattr(weights, name)
        moved = DepthWeights(**{**vars(weights), name: stack.roll(1, -3)})
        assert error_ratio(core(hidden, text_ids, codes, moved), want) > 1e-2, name
