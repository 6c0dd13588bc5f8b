"""The trunk against transformers' InklingForCausalLM, through the released tensor names."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from microturn.model.inkling.trunk import Trunk
from oracles.inkling import BAR, FEW, Released
from oracles.streams import feed, fresh, random_cuts, whole

pytestmark = pytest.mark.oracle

TOKENS = FEW.global_window
"""More than a ring holds here, so that rings and pages wrap."""

WIDE = dataclasses.replace(
    FEW,
    hidden_size=96,
    num_layers=5,
    global_layers=(0, 4),
    num_heads=6,
    head_dim=32,
    local_num_kv_heads=1,
    sliding_window=20,
    rel_extent=150,
    log_floor=40,
    log_alpha=0.3,
    num_dense_layers=2,
    num_experts=12,
    top_k=2,
    num_shared_experts=1,
)


@dataclasses.dataclass(frozen=True)
class Oracle:
    """A random model of transformers, the same as ours, and what theirs makes of `ids`."""

    released: Released
    trunk: Trunk
    ids: Tensor
    logits: Tensor

    @torch.no_grad()
    def error(self, hidden: Tensor) -> float:
        logits = self.trunk.logits(hidden)
        assert logits.shape == self.logits.shape
        return float((logits - self.logits).abs().max())


@pytest.fixture(scope="module", params=[FEW, WIDE], ids=["few", "wide"])
def oracle(request: pytest.FixtureRequest) -> Oracle:
    torch.manual_seed(11)
    released = Released(request.param)
    ids = torch.randint(0, released.audio_id, (TOKENS,))
    return Oracle(released, released.trunk(), ids, released.answer(ids).logits)


@pytest.fixture
def x(oracle: Oracle) -> Tensor:
    with torch.no_grad():
        return oracle.trunk.embed(oracle.ids)


def test_the_logits_are_of_a_size_that_errors_show_in(oracle: Oracle) -> None:
    assert 0.5 < float(oracle.logits.std()) < 4


def test_whole_prefill_matches(oracle: Oracle, x: Tensor) -> None:
    assert oracle.error(whole(oracle.trunk, [x])[0]) <= BAR


def test_random_chunks_match(oracle: Oracle, x: Tensor) -> None:
    cuts = random_cuts(TOKENS, oracle.trunk.config.max_rows_per_tick)
    assert oracle.error(feed(oracle.trunk, fresh(oracle.trunk, 3), x, cuts, slot=1)) <= BAR


def test_one_row_at_a_time_matches(oracle: Oracle, x: Tensor) -> None:
    got = feed(oracle.trunk, fresh(oracle.trunk, 1), x, [1] * TOKENS)
    assert oracle.error(got) <= BAR


def test_the_audio_tower_matches(oracle: Oracle) -> None:
    frames = torch.randint(0, 16, (7, 80))
    with torch.no_grad():
        got = oracle.released.tower()(frames)
    assert float((got - oracle.released.audio_rows(frames)).abs().max()) <= 1e-5
