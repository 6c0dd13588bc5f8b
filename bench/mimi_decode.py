"""A whole decode of Mimi, one 80 ms frame of each session: all its ops in their order.

A composition (see `microturn.bench.subjects`): x are codes [S, 8], weights the tensors of a
`MimiDecoder`, state its arenas in mid-stream, its attention windows full.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from microturn.kernels.draw import Draw
from microturn.kernels.registry import Bar, OpInputs
from microturn.kernels.rows import RowBatch
from microturn.model.mimi import DecoderState, MimiConfig, MimiDecoder
from microturn.runtime.arenas import Arenas

PREFIX = "codec"
DTYPES = ("bf16",)


@dataclass(frozen=True)
class DecodeCase:
    """A frame of each of S sessions."""

    S: int
    reason: str
    config: MimiConfig
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return f"S={self.S},frame={self.config.frame_size},levels={len(self.config.ratios)}"

    @property
    def flops(self) -> int:
        """Two a weight and row it meets; keys and values."""
        c = self.config
        rows = c.resample_stride
        layer = 4 * c.dim * c.dim + 2 * c.dim * c.ff_dim + 2 * c.context * c.dim
        channels = c.n_filters << len(c.ratios)
        per_frame = rows * (c.num_layers * layer + c.kernel_size * c.dim * channels)
        for ratio in c.ratios:
            half = channels // 2
            per_frame += rows * 2 * ratio * channels * half
            rows *= ratio
            per_frame += rows * (c.residual_kernel_size + 1) * half * (half // c.compress)
            channels = half
        return 2 * self.S * (per_frame + rows * c.last_kernel_size * channels)

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        """Weights, keys and values of full windows, tails; what passes between ops stays in L2."""
        with torch.device("meta"):
            decoder = MimiDecoder(self.config)
        books = decoder.codebooks
        skipped = books.tables.numel() + books.semantic.numel() + books.acoustic.numel()
        weights = sum(p.numel() for p in decoder.parameters()) - skipped
        c = self.config
        kept = 2 * c.num_layers * c.context * c.dim
        specs = [spec for spec in decoder.arena_specs(PREFIX) if spec.kind == "twice"]
        tails = sum(spec.bytes_per_slot for spec in specs)
        folded = 4 * c.num_codebooks * c.dim
        return itemsize * (weights + self.S * kept) + self.S * (tails + folded + 4 * c.frame_size)


CASES = (
    DecodeCase(1, "the tiny codec", MimiConfig.tiny()),
    DecodeCase(
        3,
        "three sessions, books of a power of two rows, as transformers takes them",
        replace(MimiConfig.tiny(), codebook_size=512),
    ),
)
BENCH_CASES = tuple(
    DecodeCase(S, "Mimi, a frame of each session", MimiConfig.released(), Bar(us, times_peer=5))
    for S, us in ((1, 120), (16, 200), (64, 450))
)


@dataclass(frozen=True)
class DecoderTensors:
    """The parameters of a MimiDecoder, in its order."""

    config: MimiConfig
    tensors: tuple[Tensor, ...]

    @cached_property
    def decoder(self) -> MimiDecoder:
        """Over these tensors, not over copies."""
        with torch.device("meta"):
            decoder = MimiDecoder(self.config)
        names = [name for name, _ in decoder.named_parameters()]
        decoder.load_state_dict(dict(zip(names, self.tensors, strict=True)), assign=True)
        return decoder.requires_grad_(False)


def make_inputs(
    case: DecodeCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """A codec as fresh as `reset_parameters` leaves it, sessions past their window."""
    draw = Draw(seed, dtype, device)
    config = case.config
    with torch.device("meta" if draw.meta else "cpu"):
        decoder = MimiDecoder(config)
    if not draw.meta:
        decoder.reset_parameters(torch.Generator().manual_seed(seed))
    decoder = decoder.to(draw.device, draw.dtype)
    specs = decoder.arena_specs(PREFIX)
    arenas = Arenas(specs, case.S, draw.device)
    arenas.parity.copy_(torch.arange(case.S) % 2)
    for spec in specs:
        data = arenas.view(spec.name).data
        data.copy_(draw.normal(*data.shape, dtype=data.dtype))
    codes = draw.integers(0, config.codebook_size, (case.S, config.num_codebooks))
    starts = [3 * config.context + i for i in range(case.S)]
    rows = RowBatch.build(list(range(case.S)), [1] * case.S, starts, device=draw.device)
    tensors = tuple(parameter.detach() for parameter in decoder.parameters())
    return OpInputs(codes, DecoderTensors(config, tensors), decoder.bind(arenas, PREFIX), rows)


def run(x: Tensor, weights: DecoderTensors, state: DecoderState, rows: RowBatch) -> Tensor:
    """codes [S, 8] -> audio [S * 1920] fp32."""
    with torch.no_grad():
        return weights.decoder(x, state, rows)  # type: ignore[no-any-return]


def reference(x: Tensor, weights: DecoderTensors, state: DecoderState, rows: RowBatch) -> Tensor:
    """The same through the ops' references, which run on a CPU. Raises NotImplementedError
    elsewhere: there the ops are kernels.
    """
    if x.device.type != "cpu":
        raise NotImplementedError("the codec's references run on a CPU")
    return run(x, weights, state, rows)
