"""Random Mimi codecs of any size, made and run by moshi."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from microturn.bench.peers.moshi import build_codec
from microturn.model.mimi import Mimi, MimiConfig, load_kyutai

BAR = 1e-5
"""Largest difference between samples, of full scale; codes must be equal."""


def moshi_codec(config: MimiConfig, seed: int = 0) -> Any:
    """moshi's codec of these sizes; weights keep variance, books are spread out."""
    codec = build_codec(pytest.importorskip("moshi.models.loaders"), config)
    g = torch.Generator().manual_seed(seed)
    for name, parameter in codec.named_parameters():
        noise = torch.randn(parameter.shape, generator=g)
        if parameter.dim() > 1:
            fan_in = parameter[0].numel() if "convtr" not in name else 2 * parameter.shape[0]
            fan_in = 2 if name.startswith("upsample") else fan_in
            value = 1.2 * noise / fan_in**0.5
        elif "layer_scale" in name or name.endswith("norm1.weight") or "norm2.weight" in name:
            value = 0.5 + 0.2 * noise
        else:
            value = 0.1 * noise
        parameter.data.copy_(value)
    theirs_last = codec.decoder.model[3 * len(config.ratios) + 2].conv.conv
    theirs_last.weight.data.mul_(0.1)  # to the level of speech
    for name, buffer in codec.named_buffers():
        if name.endswith("_initialized"):
            buffer.fill_(1)
        elif name.endswith("cluster_usage"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=g))
            buffer[0] = 0
        elif name.endswith("embedding_sum"):
            buffer.copy_(torch.randn(buffer.shape, generator=g))
            buffer[0] *= 1e-5
    return codec


def bring_to_level(codec: Any, config: MimiConfig, seed: int = 0) -> None:
    """Scales the decoder's last convolution: random codes then give audio of an rms of 0.1."""
    last = codec.decoder.model[3 * len(config.ratios) + 2].conv.conv
    with torch.no_grad():
        rms = their_decode(codec, codes_of(8, config, seed)).square().mean().sqrt()
        for parameter in last.parameters():
            parameter.mul_(0.1 / rms)


def pair(config: MimiConfig, seed: int = 0, *, level: bool = False) -> tuple[Mimi, Any]:
    """Ours with moshi's weights, and moshi's."""
    theirs = moshi_codec(config, seed)
    if level:
        bring_to_level(theirs, config, seed)
    ours = Mimi(config).requires_grad_(False)
    load_kyutai(ours, theirs.state_dict())
    return ours, theirs


def speech(frames: int, config: MimiConfig, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    time = torch.arange(frames * config.frame_size)
    return 0.2 * torch.sin(0.05 * time) + 0.2 * torch.randn(len(time), generator=g)


def codes_of(frames: int, config: MimiConfig, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(config.codebook_size, (frames, config.num_codebooks), generator=g)


def their_encode(codec: Any, audio: Tensor) -> Tensor:
    """audio [T * frame_size] -> codes [T, Q]."""
    return codec.encode(audio[None, None])[0].T  # type: ignore[no-any-return]


def their_decode(codec: Any, codes: Tensor) -> Tensor:
    """codes [T, Q] -> audio [T * frame_size]."""
    return codec.decode(codes.T[None])[0, 0]  # type: ignore[no-any-return]


@contextmanager
def watched_choices() -> Iterator[list[float]]:
    """Inside, the least gap of each of moshi's choices of a row between the squared distances of
    the two nearest, as a share of the squares they are made of (fp64).
    """
    from moshi.quantization.core_vq import EuclideanCodebook

    gaps: list[float] = []
    quantize = EuclideanCodebook._quantize

    def watched(self: Any, x: Tensor) -> Tensor:
        wide, book = x.double(), self.embedding.double()
        near = torch.cdist(wide, book, compute_mode="donot_use_mm_for_euclid_dist").square()
        two, places = near.topk(2, dim=-1, largest=False)
        size = wide.square().sum(-1) + book.square().sum(-1)[places].amax(-1)
        gaps.append(float(((two[:, 1] - two[:, 0]) / size).min()))
        return quantize(self, x)  # type: ignore[no-any-return]

    EuclideanCodebook._quantize = watched
    try:
        yield gaps
    finally:
        EuclideanCodebook._quantize = quantize
