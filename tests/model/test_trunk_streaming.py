"""The trunk as a stream: cuts, batches, idle lines and former tenants leave no trace."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from microturn.kernels.conv_residual_norm import Stream
from microturn.kernels.rows import RowBatch
from microturn.kernels.testing import assert_bitwise_equal, assert_close
from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.trunk import AudioTower, Trunk
from microturn.runtime.arenas import Arenas
from oracles.streams import feed, fresh, out_of_step, random_cuts

CONFIG = TrunkConfig(
    hidden_size=64,
    num_layers=3,
    global_layers=(1,),
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    local_num_heads=4,
    local_num_kv_heads=1,
    local_head_dim=16,
    sliding_window=40,
    global_window=150,
    d_rel=16,
    rel_extent=60,
    log_floor=30,
    log_alpha=0.2,
    num_dense_layers=1,
    dense_width=112,
    num_experts=8,
    top_k=2,
    num_shared_experts=2,
    expert_width=48,
    route_scale=4.0,
    vocab_size=50,
    unpadded_vocab_size=41,
    mup_multiplier=2.0,
    eps=1e-6,
    conv_kernel=4,
    max_rows_per_tick=64,
)
ROWS = 300
"""Past the capacity of rings (128) and pages (256): both wrap."""


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    trunk = Trunk(CONFIG)
    trunk.reset_parameters(torch.Generator().manual_seed(3))
    with torch.no_grad():
        for _, bias in trunk.named_buffers():
            bias.normal_(0, 0.3)
    return trunk.eval()


@pytest.fixture(scope="module")
def streams(trunk: Trunk) -> Tensor:
    """[3, ROWS, H]: what three sessions feed."""
    ids = torch.randint(0, 41, (3 * ROWS,), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return trunk.embed(ids).view(3, ROWS, -1)


@pytest.mark.parametrize("most", [3, 64])
def test_cuts_leave_no_trace(trunk: Trunk, streams: Tensor, most: int) -> None:
    x = streams[0]
    want = feed(trunk, fresh(trunk, 1), x, [60] * 5)
    got = feed(trunk, fresh(trunk, 1), x, random_cuts(ROWS, most))
    assert_bitwise_equal(got, want)
    assert_bitwise_equal(trunk.logits(got)[:9], trunk.logits(want[:9]))


def test_a_stream_is_the_whole_sequence(trunk: Trunk, streams: Tensor) -> None:
    rows = RowBatch.build([0, 1, 2], [ROWS, ROWS, 7], [0, 0, 0])
    with torch.no_grad():
        whole = trunk(torch.cat([streams[0], streams[1], streams[2, :7]]), None, rows)
    for slot, part in enumerate(whole.split([ROWS, ROWS, 7])):
        cuts = random_cuts(len(part), 50)
        got = feed(trunk, fresh(trunk, 3), streams[slot, : len(part)], cuts, slot=slot)
        assert_close(got, part, 1e-5)


def test_sinks_stay_visible_far_behind_the_windows(trunk: Trunk, streams: Tensor) -> None:
    """As in the whole sequence, which without any one kind of sinks is another."""
    x = streams[0]

    def with_sinks(of_global: int, of_sliding: int) -> Trunk:
        sizes = {"num_sink_tokens": of_global, "local_num_sink_tokens": of_sliding}
        other = Trunk(dataclasses.replace(CONFIG, global_window=70, **sizes))
        other.load_state_dict(trunk.state_dict())
        return other.eval()

    def whole(net: Trunk) -> Tensor:
        with torch.no_grad():
            return net(x, None, RowBatch.build([0], [ROWS], [0]))

    sinks = with_sinks(3, 2)
    got = feed(sinks, fresh(sinks, 2), x, random_cuts(ROWS, 50), slot=1)
    assert_close(got, whole(sinks), 1e-5)
    assert_bitwise_equal(got, feed(sinks, fresh(sinks, 1), x, [60] * 5))
    for fewer in ((2, 2), (3, 1)):
        with pytest.raises(AssertionError, match="error ratio"):
            assert_close(got[-50:], whole(with_sinks(*fewer))[-50:], 1e-4)


def test_sessions_out_of_step_do_not_see_each_other(trunk: Trunk, streams: Tensor) -> None:
    """Three sessions start at different times, bring other row counts each step and sometimes
    pause; padding lines stand between them. Each is bitwise what it is alone.
    """
    got = out_of_step(trunk, list(streams), 29, state=fresh(trunk, 5), slots=[4, 0, 2])
    for i, together in enumerate(got):
        alone = feed(trunk, fresh(trunk, 1), streams[i], [50] * 6)
        assert_bitwise_equal(together, alone, f"session {i}")


def test_the_next_tenant_sees_nothing_of_the_last(trunk: Trunk, streams: Tensor) -> None:
    state = fresh(trunk, 2)
    feed(trunk, state, torch.full((60, 64), float("nan")), [30, 30], slot=1)
    got = feed(trunk, state, streams[0, :100], [1] * 10 + [30] * 3, slot=1)
    assert_bitwise_equal(got, feed(trunk, fresh(trunk, 2), streams[0, :100], [50, 50], slot=1))


def test_rows_that_were_not_committed_are_written_over(trunk: Trunk, streams: Tensor) -> None:
    state = fresh(trunk, 1)
    feed(trunk, state, streams[0, :70], [35, 35])
    feed(trunk, state, streams[1, :64], [64], start=70)
    got = feed(trunk, state, streams[0, 70:90], [20], start=70)
    want = feed(trunk, fresh(trunk, 1), streams[0, :90], [45, 45])[70:]
    assert_bitwise_equal(got, want)


@pytest.mark.parametrize("lost", ["kv", "kv_conv", "attn_conv", "mlp_conv"])
def test_a_lost_state_shows(trunk: Trunk, streams: Tensor, lost: str) -> None:
    """The control: the comparisons above fail when any one kind of state is not carried over."""
    want = feed(trunk, fresh(trunk, 1), streams[0, :20], [10, 10])
    arenas = Arenas(trunk.arena_specs("trunk"), 1)
    state = trunk.bind(arenas, "trunk")
    feed(trunk, state, streams[0, :10], [10])
    for spec in trunk.arena_specs("trunk"):
        if lost in spec.name.split(".")[2]:
            arenas.view(spec.name).data.zero_()
    got = feed(trunk, state, streams[0, 10:20], [10], start=10)
    with pytest.raises(AssertionError, match="error ratio"):
        assert_close(got, want[10:], 1e-5)


def test_every_parameter_learns(trunk: Trunk) -> None:
    """Gradients reach all of them, the router through the weights it gives."""
    ids = torch.arange(60) % 41
    rows = RowBatch.build([0, 1], [40, 20], [0, 0])
    trunk.zero_grad()
    hidden = trunk(trunk.embed(ids), None, rows)
    torch.nn.functional.cross_entropy(trunk.logits(hidden), ids.roll(-1)).backward()
    for name, parameter in trunk.named_parameters():
        grad = parameter.grad
        assert grad is not None and bool(grad.isfinite().all()), name
        assert bool(grad.any()), name
    trunk.zero_grad()


def test_seeded_weights_are_the_same_and_of_unit_scale(trunk: Trunk) -> None:
    again, other = Trunk(CONFIG), Trunk(CONFIG)
    again.reset_parameters(torch.Generator().manual_seed(3))
    other.reset_parameters(torch.Generator().manual_seed(4))
    for name, parameter in again.named_parameters():
        assert_bitwise_equal(parameter, trunk.get_parameter(name), name)
    assert not torch.equal(again.embedding, other.embedding)
    deep = Trunk(dataclasses.replace(CONFIG, num_layers=12))
    deep.reset_parameters(torch.Generator().manual_seed(1))
    with torch.no_grad():
        x = deep.embed(torch.randint(0, 41, (50,)))
        rows = RowBatch.build([0], [50], [0])
        stream = Stream(x, deep.layers[0].attn_norm(x))
        for layer, following in zip(deep.layers, [*deep.layers[1:], None], strict=True):
            norm = deep.norm if following is None else following.attn_norm
            stream = layer(stream, None, rows, norm.weights)
        assert 1 < float(stream.h.square().mean().sqrt()) < 3, "the residual stream"
        assert_bitwise_equal(stream.normed, deep(x, None, rows))
        assert 0.5 < float(deep.logits(stream.normed).std()) < 3


def test_logits_end_with_the_vocabulary_in_fp32(trunk: Trunk) -> None:
    with torch.no_grad():
        hidden = torch.randn(5, 64)
        logits = trunk.logits(hidden)
        want = hidden.double() / 2 @ trunk.unembedding.double().T
    assert logits.shape == (5, 41) and logits.dtype == torch.float32
    assert_close(logits, want[:, :41], 1e-6)


def test_sizes_that_do_not_fit_are_named() -> None:
    bad = {
        "hidden_size must be a multiple of 16": {"hidden_size": 72},
        "num_layers must be positive": {"num_layers": 0},
        "global_layers must be rising": {"global_layers": (3,)},
        "local_num_heads must be a multiple of local_num_kv_heads": {"local_num_kv_heads": 3},
        "top_k must be at most num_experts": {"top_k": 9},
        "unpadded_vocab_size must be at most vocab_size = 50": {"unpadded_vocab_size": 51},
        "num_dense_layers must be 0 to 3": {"num_dense_layers": 4},
        "local_num_sink_tokens must be 0 or more": {"local_num_sink_tokens": -1},
    }
    for text, change in bad.items():
        with pytest.raises(ValueError, match=text):
            dataclasses.replace(CONFIG, **change)


@torch.no_grad()
def test_the_audio_tower_sums_the_rows_of_all_mels() -> None:
    tower = AudioTower(48)
    tower.reset_parameters(torch.Generator().manual_seed(0))
    tower.norm.gain.normal_(1, 0.3)
    bins = torch.randint(0, 16, (9, 80))
    got = tower(bins)
    total = sum(tower.table.double()[mel * 16 + bins[:, mel]] for mel in range(80))
    assert isinstance(total, Tensor)
    want = total / total.square().mean(-1, keepdim=True).sqrt() * tower.norm.gain.double()
    assert_close(got, want, 1e-6)
    assert_bitwise_equal(torch.cat([tower(bins[t : t + 1]) for t in range(9)]), got)
