"""The wide net: random sizes and sequences, and what of them differs from the authors' results."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from microturn.kernels.arena import ring_capacity
from microturn.model.inkling.config import TrunkConfig
from microturn.model.mimi import MimiConfig
from oracles import mimi as mimi_oracle
from oracles.inkling import Released, embed
from oracles.streams import (
    CodecStream,
    feed,
    fresh,
    out_of_step,
    random_calls,
    random_cuts,
    whole,
)

MIN_GAP = 1e-5
"""Selection scores closer than this may order differently in another order of sums."""
MIN_CODE_GAP = 3e-6
"""The same for squared distances to the rows of a book, as a share of the squares."""


class TooClose(Exception):
    """The oracle's own choice of an expert or a code hangs on rounding: a draw to reject."""


@dataclass(frozen=True)
class TrunkCase:
    """One random model and the sessions it is asked about.

    mels, bins  sizes of the audio front end
    lengths     rows of each session
    audio       share of the rows that are frames of audio
    most        longest piece of a stream that is cut
    singles     rows at the end of the first session that come one at a time
    """

    config: TrunkConfig
    mels: int
    bins: int
    lengths: tuple[int, ...]
    audio: float
    most: int
    singles: int
    seed: int

    @property
    def features(self) -> dict[str, bool]:
        """What a net of such cases must have caught now and then."""
        c, longest = self.config, max(self.lengths)
        layers = range(c.num_layers)
        sliding = len(c.global_layers) < c.num_layers
        ring = ring_capacity(c.sliding_window, c.max_rows_per_tick)
        return {
            "audio": self.audio > 0,
            "several sessions": len(self.lengths) > 1,
            "a ring wraps 3 times or more": sliding and longest >= 4 * ring,
            "a ring wraps 7 times or more": sliding and longest >= 8 * ring,
            "past the window": sliding and longest > c.sliding_window,
            "past the extent": bool(c.global_layers) and longest > c.rel_extent,
            "past the log floor": bool(c.global_layers and c.log_floor) and longest > c.log_floor,
            "no log scaling": c.log_floor is None,
            "global and sliding layers": bool(c.global_layers) and sliding,
            "dense and sparse layers": any(i < c.num_dense_layers for i in layers)
            and c.num_dense_layers < c.num_layers,
            "other head counts in sliding layers": (c.num_heads, c.num_kv_heads)
            != (c.local_num_heads, c.local_num_kv_heads),
            "padded vocabulary": c.unpadded_vocab_size < c.vocab_size,
        }


def _sixteens(most: int) -> st.SearchStrategy[int]:
    return st.integers(1, most).map(lambda n: 16 * n)


@st.composite
def trunk_cases(draw: st.DrawFn) -> TrunkCase:
    """Cases that take 0.2 to 0.6 s each: short sessions of any model, or one long session."""
    long = draw(st.integers(0, 3)) == 3
    num_layers = draw(st.integers(1, 3 if long else 4))
    is_global = draw(st.lists(st.booleans(), min_size=num_layers, max_size=num_layers))
    heads = {}
    for kind in ("", "local_"):
        kv_heads = draw(st.integers(1, 3))
        heads[f"{kind}num_kv_heads"] = kv_heads
        heads[f"{kind}num_heads"] = kv_heads * draw(st.integers(1, 4 if kv_heads == 1 else 2))
        heads[f"{kind}head_dim"] = draw(_sixteens(3))
    if long:
        lengths = (draw(st.integers(512, 1100)),)
        window, rows = draw(st.integers(1, 100)), draw(st.integers(20, 64))
    else:
        lengths = tuple(draw(st.lists(st.integers(1, 90), min_size=1, max_size=3)))
        window, rows = draw(st.integers(1, 120)), draw(st.integers(1, 64))
    longest = max(lengths)
    experts = draw(st.integers(1, 12))
    vocabulary = draw(st.integers(2, 120))
    config = TrunkConfig(
        hidden_size=draw(_sixteens(6)),
        num_layers=num_layers,
        global_layers=tuple(i for i, yes in enumerate(is_global) if yes),
        **heads,
        sliding_window=window,
        global_window=longest,
        d_rel=draw(st.sampled_from([1, 4, 16])),
        rel_extent=draw(st.integers(1, 2 * longest)),
        log_floor=draw(st.none() | st.integers(1, longest)),
        log_alpha=draw(st.sampled_from([0.1, 0.3, 0.7])),
        num_dense_layers=draw(st.integers(0, num_layers)),
        dense_width=draw(_sixteens(6)),
        num_experts=experts,
        top_k=draw(st.integers(1, min(experts, 6))),
        num_shared_experts=draw(st.integers(1, 3)),
        expert_width=draw(_sixteens(3)),
        route_scale=draw(st.sampled_from([0.5, 1.0, 2.5, 8.0])),
        vocab_size=vocabulary + draw(st.sampled_from([0, 0, 1, 8])),
        unpadded_vocab_size=vocabulary,
        mup_multiplier=draw(st.sampled_from([1.0, 4.0, 16.0, 24.0])),
        eps=draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        conv_kernel=draw(st.integers(2, 5)),
        max_rows_per_tick=rows,
    )
    return TrunkCase(
        config=config,
        mels=draw(st.sampled_from([1, 5, 80])),
        bins=draw(st.sampled_from([2, 16])),
        lengths=lengths,
        audio=draw(st.sampled_from([0.0, 0.2, 0.7])),
        most=draw(st.integers(rows if long else 1, rows)),
        singles=draw(st.integers(0, min(longest, 40))),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def trunk_differences(case: TrunkCase) -> dict[str, float]:
    """Largest difference between logits by how the sessions were fed.

    Raises TooClose when an expert was chosen by less than MIN_GAP.
    """
    choose = random.Random(case.seed)
    torch.manual_seed(case.seed)
    released = Released(case.config, mels=case.mels, bins=case.bins)
    sessions = []
    for length in case.lengths:
        ids = torch.randint(0, max(1, released.audio_id), (length,))
        heard = torch.rand(length) < case.audio
        ids[heard] = released.audio_id
        frames = torch.randint(0, case.bins, (int((ids == released.audio_id).sum()), case.mels))
        sessions.append((ids, frames))
    answers = [released.answer(ids, frames) for ids, frames in sessions]
    if min(answer.gap for answer in answers) < MIN_GAP:
        raise TooClose
    wanted = [answer.logits for answer in answers]

    tensors = released.tensors()
    trunk, tower = released.trunk(tensors), released.tower(tensors)
    streams = [embed(trunk, tower, ids, frames, released.audio_id) for ids, frames in sessions]
    alone, length = streams[0], case.lengths[0]
    singles = min(case.singles, length)
    cuts = random_cuts(length, case.most, choose)
    tail = [*random_cuts(length - singles, case.most, choose), *([1] * singles)]
    got = {
        "whole": whole(trunk, streams),
        "random cuts": [feed(trunk, fresh(trunk, 1), alone, cuts)],
        "one row at a time": [feed(trunk, fresh(trunk, 3), alone, tail, slot=1)],
        "out of step": out_of_step(trunk, streams, case.most, choose),
    }
    with torch.no_grad():
        return {
            how: max(_worst(trunk.logits(h), w) for h, w in zip(hidden, wanted, strict=False))
            for how, hidden in got.items()
        }


def _worst(got: torch.Tensor, want: torch.Tensor) -> float:
    """NaN counts as infinite."""
    assert got.shape == want.shape, f"{list(got.shape)} for {list(want.shape)}"
    return float((got - want).abs().nan_to_num(nan=float("inf")).max())


@dataclass(frozen=True)
class CodecCase:
    """One random codec and the streams it is asked about; lengths in frames."""

    config: MimiConfig
    lengths: tuple[int, ...]
    most: int
    seed: int

    @property
    def features(self) -> dict[str, bool]:
        c, longest = self.config, max(self.lengths) * self.config.resample_stride
        return {
            "several streams": len(self.lengths) > 1,
            "past the context": longest > c.context,
            "4 contexts or more": longest >= 4 * c.context,
            "several semantic books": c.num_semantic > 1,
            "uncompressed blocks": c.compress == 1,
        }


@st.composite
def codec_cases(draw: st.DrawFn) -> CodecCase:
    """Cases of the same topology at 0.2 to 0.6 s each."""
    ratios = tuple(draw(st.lists(st.integers(2, 5), min_size=1, max_size=3)))
    stride, rate, compress = (
        draw(st.integers(2, 3)),
        draw(st.integers(5, 20)),
        draw(st.integers(1, 2)),
    )
    samples = stride
    for ratio in ratios:
        samples *= ratio
    heads = draw(st.sampled_from([1, 2, 4]))
    semantic = draw(st.integers(1, 2))
    config = MimiConfig(
        sample_rate=samples * rate,
        n_filters=draw(st.integers(1, 4)) * 4,
        ratios=ratios,
        kernel_size=draw(st.sampled_from([3, 5, 7])),
        last_kernel_size=draw(st.sampled_from([1, 3, 5])),
        residual_kernel_size=draw(st.sampled_from([1, 3, 5])),
        compress=compress,
        dim=draw(_sixteens(3)),
        resample_stride=stride,
        num_layers=draw(st.integers(1, 3)),
        num_heads=heads,
        ff_dim=draw(_sixteens(5)),
        context=draw(st.integers(1, 40)),
        rope_theta=draw(st.sampled_from([100.0, 10_000.0])),
        num_codebooks=semantic + draw(st.integers(1, 5)),
        num_semantic=semantic,
        codebook_size=draw(st.integers(2, 70)),
        codebook_dim=draw(_sixteens(2)),
    )
    return CodecCase(
        config=config,
        lengths=tuple(draw(st.lists(st.integers(1, 50), min_size=1, max_size=3))),
        most=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def codec_differences(case: CodecCase) -> dict[str, float]:
    """Codes that differ (how many), and the largest difference between samples, by how it was fed.

    Raises TooClose when a code was chosen by less than MIN_CODE_GAP.
    """
    config, choose = case.config, random.Random(case.seed)
    slots = choose.sample(range(len(case.lengths) + 2), len(case.lengths))
    frames = dict(zip(slots, case.lengths, strict=True))
    with torch.no_grad():
        ours, theirs = mimi_oracle.pair(config, case.seed, level=True)
        audio = {s: mimi_oracle.speech(n, config, case.seed + s) for s, n in frames.items()}
        codes = {s: mimi_oracle.codes_of(n, config, case.seed + s) for s, n in frames.items()}
        with mimi_oracle.watched_choices() as gaps:
            want_codes = {s: mimi_oracle.their_encode(theirs, x) for s, x in audio.items()}
        if min(gaps) < MIN_CODE_GAP:
            raise TooClose
        want_audio = {s: mimi_oracle.their_decode(theirs, x) for s, x in codes.items()}
        encoded, decoded = (
            CodecStream(ours, direction, len(slots) + 2, case.most).feed(
                sequences, random_calls(frames, choose, case.most)
            )
            for direction, sequences in (("encode", audio), ("decode", codes))
        )
        return {
            "codes, whole": _unequal({s: ours.encode(x) for s, x in audio.items()}, want_codes),
            "codes, out of step": _unequal(encoded, want_codes),
            "audio, whole": max(_worst(ours.decode(codes[s]), want_audio[s]) for s in slots),
            "audio, out of step": max(_worst(decoded[s], want_audio[s]) for s in slots),
        }


def _unequal(got: dict[int, torch.Tensor], want: dict[int, torch.Tensor]) -> float:
    return float(sum(int((got[s] != want[s]).sum()) for s in want))
