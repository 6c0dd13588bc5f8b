"""Where training begins: the best linear codec that the layers can hold.

A level of SEANet that turns one row into `ratio` finer ones can hold the rotation of a block's
principal components into those of its sub-blocks. So the encoder starts as a principal component
analysis of frames of speech, the decoder as its inverse, and the first step already sounds like the
words; random layers take thousands of steps to find a phase (LOG.md). Components are fitted to
speech whose treble is raised, or its consonants would be left out. They are kept small, where ELU
is nearly the identity; the residual units begin with an empty branch, and learn what is not linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microturn.model.mimi import Mimi
from microturn.model.mimi.layers import Conv, ConvTranspose, ResidualUnit

SIZE = 0.03
"""Standard deviation of a component inside SEANet; of the latents it is 1."""
TREBLE = 0.75
"""Of each sample, this share of the one before is taken off before components are fitted."""
SMALLEST = 0.02
"""Components weaker than this, against the strongest, are not raised to SIZE."""
FREE = 8
"""One channel in so many carries no component: it is the residual units' own."""
EDGE = 16.0
"""Gain of a residual unit's first convolution: into the part of ELU that bends."""
ECHO = 0.1
"""What the second latent of a frame has of the frame: a row of zeros has no layer norm."""


@dataclass(frozen=True)
class Components:
    """analysis [c, n]: samples of a block to components; synthesis [n, c], back; deviation [c] of
    the components before they were brought to one size, the strongest 1.
    """

    analysis: Tensor
    synthesis: Tensor
    deviation: Tensor

    def __len__(self) -> int:
        return len(self.analysis)


def components(blocks: Tensor, count: int, size: float) -> Components:
    """The `count` strongest of blocks [M, n], each of standard deviation `size`."""
    n = blocks.shape[1]
    count = min(count, n)
    raised = torch.eye(n, dtype=torch.float64) - TREBLE * torch.eye(n, dtype=torch.float64).roll(
        -1, 1
    ).tril(-1)
    x = blocks.double() @ raised.T
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    deviation = values.clamp_min(0).sqrt()
    scale = deviation.clamp_min(SMALLEST * float(deviation[0])) / size
    return Components(
        (vectors.T @ raised / scale[:, None]).float(),
        (torch.linalg.solve(raised, vectors) * scale).float(),
        (scale / scale[0]).float(),
    )


@torch.no_grad()
def start_linear(codec: Mimi, audio: Tensor) -> None:
    """Sets the parameters of `codec` by audio [N, L * frame_size]; the transformers stay as they
    are, and the books unfilled.
    """
    config = codec.config
    encoder, decoder = codec.encoder, codec.decoder
    loud = audio.reshape(-1, config.frame_size)
    loud = loud[loud.square().mean(1) > 1e-6]
    sizes, channels = [1], [config.n_filters]
    for ratio in reversed(config.ratios):
        sizes.append(sizes[-1] * ratio)
        channels.append(2 * channels[-1])
    levels = [
        components(loud.reshape(-1, n), width - -(-width // FREE), SIZE)
        for n, width in zip(sizes, channels, strict=True)
    ]
    frame = components(loud, config.dim, 1.0)

    _clear(encoder.first)
    encoder.first.weight[0, -1, 0] = levels[0].analysis[0, 0]
    for i, (ratio, unit, down) in enumerate(encoder._levels):
        _empty_branch(unit)
        _clear(down)
        for j, part in enumerate(_parts(levels[i + 1].analysis.T, ratio)):
            matrix = part.T @ levels[i].synthesis
            down.weight[: matrix.shape[0], ratio + j, : matrix.shape[1]] = matrix
    top = levels[-1]
    kept = min(len(top), config.dim)
    _clear(encoder.last)
    encoder.last.weight[range(kept), -1, range(kept)] = 1 / SIZE
    stride = config.resample_stride
    _clear(encoder.downsample)
    for j, part in enumerate(_parts(frame.analysis.T, stride)):
        matrix = part.T @ top.synthesis[:, :kept] * SIZE
        encoder.downsample.weight[:, stride + j, :kept] = matrix

    half = min(config.codebook_dim, config.dim // 2)
    rows = torch.arange(half)
    books = decoder.codebooks
    for given, back, at in (
        (encoder.acoustic, books.acoustic, rows),
        (encoder.semantic, books.semantic, half + rows),
    ):
        given.zero_()
        back.zero_()
        given[rows, at] = frame.deviation[at]
        back[at, rows] = 1 / frame.deviation[at]

    decoder.upsample.weight.zero_()
    decoder.upsample.weight[0] = 1.0
    decoder.upsample.weight[1] = ECHO
    _clear(decoder.first)
    first, second = (top.analysis @ part for part in _parts(frame.synthesis, stride))
    now, late = first, second - ECHO * first
    decoder.first.weight[: len(top), -1] = now
    for back_by in range(2, decoder.first.weight.shape[1] + 1):
        decoder.first.weight[: len(top), -back_by] = late * (-ECHO) ** (back_by - 2)
    for i, (ratio, up, unit) in zip(
        reversed(range(len(config.ratios))), decoder._levels, strict=True
    ):
        _empty_branch(unit)
        _clear(up)
        for j, part in enumerate(_parts(levels[i + 1].synthesis, ratio)):
            matrix = levels[i].analysis @ part
            up.weight[j, : matrix.shape[0], : matrix.shape[1]] = matrix
    _clear(decoder.last)
    decoder.last.weight[0, -1, 0] = levels[0].synthesis[0, 0]


def _parts(matrix: Tensor, count: int) -> tuple[Tensor, ...]:
    """[count * n, c] -> count times [n, c]."""
    return tuple(matrix.chunk(count))


def _clear(conv: Conv | ConvTranspose) -> None:
    conv.weight.mul_(0.01)
    if conv.bias is not None:
        conv.bias.zero_()


def _empty_branch(unit: ResidualUnit) -> None:
    unit.inner.weight.mul_(EDGE)
    unit.outer.weight.zero_()
