"""kyutai's names of the codec's tensors, and what of ours each one is (spec/moshi-mimi.md 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from microturn.model.checkpoint import (
    CheckpointError,
    Source,
    TensorInfo,
    Wanted,
    as_source,
    check_fit,
)
from microturn.model.mimi.config import MimiConfig
from microturn.model.mimi.decoder import MimiDecoder
from microturn.model.mimi.mimi import Mimi

SPELLINGS = {
    "self_attn.in_projs.0.weight": "self_attn.in_proj_weight",
    "self_attn.out_projs.0.weight": "self_attn.out_proj.weight",
}
"""Newer module names to those of the released files."""

MIN_USAGE = 1e-5
"""A book row nobody used divides by this."""


@dataclass(frozen=True)
class Entry:
    """theirs, of `shape` in the file, becomes parameter `ours` of a `Mimi` by `arrange`; `restore`
    is its inverse.
    """

    theirs: str
    ours: str
    shape: tuple[int, ...]
    arrange: Callable[[Tensor], Tensor] = lambda tensor: tensor
    restore: Callable[[Tensor], Tensor] = lambda tensor: tensor


def entries(config: MimiConfig) -> Iterator[Entry]:
    """Every tensor but those of the books."""
    yield from _encoder(config)
    yield from _decoder(config)
    for side in ("encoder", "decoder"):
        for i in range(config.num_layers):
            theirs = f"{side}_transformer.transformer.layers.{i}"
            yield from _layer(theirs, f"{side}.transformer.layers.{i}", config)
    dim, width, kernel = config.dim, config.codebook_dim, 2 * config.resample_stride
    yield Entry(
        "downsample.conv.conv.conv.weight",
        "encoder.downsample.weight",
        (dim, dim, kernel),
        _conv,
        _conv,
    )
    yield Entry(
        "upsample.convtr.convtr.convtr.weight",
        "decoder.upsample.weight",
        (dim, 1, kernel),
        lambda tensor: tensor[:, 0].T,
        lambda tensor: tensor.T[:, None],
    )
    for theirs, ours in (("first", "semantic"), ("rest", "acoustic")):
        group = f"quantizer.rvq_{theirs}"
        yield Entry(
            f"{group}.input_proj.weight",
            f"encoder.{ours}",
            (width, dim, 1),
            _drop_last_axis,
            _add_last_axis,
        )
        yield Entry(
            f"{group}.output_proj.weight",
            f"decoder.codebooks.{ours}",
            (dim, width, 1),
            _drop_last_axis,
            _add_last_axis,
        )


def books(config: MimiConfig) -> list[str]:
    """Where each book's `_initialized`, `cluster_usage` and `embedding_sum` stand, in our order."""
    split = config.num_semantic
    return [
        f"quantizer.rvq_first.vq.layers.{q}._codebook"
        if q < split
        else f"quantizer.rvq_rest.vq.layers.{q - split}._codebook"
        for q in range(config.num_codebooks)
    ]


def kyutai_shapes(config: MimiConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a file of this configuration."""
    shapes = {entry.theirs: entry.shape for entry in entries(config)}
    for book in books(config):
        shapes[f"{book}._initialized"] = (1,)
        shapes[f"{book}.cluster_usage"] = (config.codebook_size,)
        shapes[f"{book}.embedding_sum"] = (config.codebook_size, config.codebook_dim)
    return shapes


def load_kyutai(codec: Mimi | MimiDecoder, tensors: Source | Mapping[str, Tensor]) -> None:
    """Copies kyutai's tensors into `codec`; a decoder takes its part.

    Both spellings of the attention weights are read; books beyond num_codebooks are left out.
    Nothing is changed unless everything fits. Raises CheckpointError that names each missing, extra
    or mis-shaped tensor with both shapes, and books that were never initialised.
    """
    config = codec.config
    source = _Canonical(as_source(tensors))
    check_fit(
        source,
        {name: Wanted(shape) for name, shape in kyutai_shapes(config).items()},
        lambda name: not _is_spare_book(name, config),
    )
    names = books(config)
    unset = [name for name in names if not bool(source.rows(f"{name}._initialized").any())]
    if unset:
        raise CheckpointError(
            f"{source.where}: these books hold no rows yet (_initialized is 0): {', '.join(unset)}"
        )
    prefix = "decoder." if isinstance(codec, MimiDecoder) else ""
    parameters = {prefix + name: parameter for name, parameter in codec.named_parameters()}
    with torch.no_grad():
        for entry in entries(config):
            if entry.ours in parameters:
                parameters[entry.ours].copy_(entry.arrange(source.rows(entry.theirs)))
        tables = parameters["decoder.codebooks.tables"]
        for table, name in zip(tables, names, strict=True):
            usage = source.rows(f"{name}.cluster_usage").float().clamp_min(MIN_USAGE)
            table.copy_(source.rows(f"{name}.embedding_sum").float() / usage[:, None])


def kyutai_tensors(codec: Mimi) -> dict[str, Tensor]:
    """The codec under kyutai's names, as released files spell them; usage of every book row 1."""
    config = codec.config
    parameters = {name: parameter.detach() for name, parameter in codec.named_parameters()}
    tensors = {
        entry.theirs: entry.restore(parameters[entry.ours]).contiguous()
        for entry in entries(config)
    }
    tables = parameters["decoder.codebooks.tables"]
    for table, name in zip(tables, books(config), strict=True):
        tensors[f"{name}._initialized"] = torch.ones(1)
        tensors[f"{name}.cluster_usage"] = torch.ones(config.codebook_size)
        tensors[f"{name}.embedding_sum"] = table
    return tensors


class _Canonical:
    """A source whose attention weights go by the names of the released files.

    Raises CheckpointError when a tensor is there in both spellings.
    """

    def __init__(self, source: Source) -> None:
        self._source, self.where = source, source.where
        tensors: dict[str, TensorInfo] = {}
        for name, info in source.tensors.items():
            released = _canonical(name)
            if released in tensors:
                raise CheckpointError(
                    f"{info.where} is {tensors[released].name} in another spelling; "
                    f"remove one of them"
                )
            tensors[released] = info
        self.tensors: Mapping[str, TensorInfo] = tensors

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self._source.rows(self.tensors[name].name, start, stop)


def _canonical(name: str) -> str:
    for spelling, released in SPELLINGS.items():
        if name.endswith(spelling):
            return name.removesuffix(spelling) + released
    return name


def _is_spare_book(name: str, config: MimiConfig) -> bool:
    """A book past num_codebooks: a codec may run on fewer than its file has."""
    head, _, rest = name.partition("quantizer.rvq_rest.vq.layers.")
    index = rest.partition("._codebook.")[0]
    spare = config.num_codebooks - config.num_semantic
    return not head and index.isdecimal() and int(index) >= spare


def _conv(tensor: Tensor) -> Tensor:
    """[Cout, Cin, K] -> [Cout, K, Cin]."""
    return tensor.permute(0, 2, 1)


def _transposed(tensor: Tensor) -> Tensor:
    """[Cin, Cout, K] -> [K, Cout, Cin]."""
    return tensor.permute(2, 1, 0)


def _drop_last_axis(tensor: Tensor) -> Tensor:
    return tensor[..., 0]


def _add_last_axis(tensor: Tensor) -> Tensor:
    return tensor[..., None]


def _conv_pair(theirs: str, ours: str, cout: int, cin: int, kernel: int) -> Iterator[Entry]:
    yield Entry(f"{theirs}.conv.conv.weight", f"{ours}.weight", (cout, cin, kernel), _conv, _conv)
    yield Entry(f"{theirs}.conv.conv.bias", f"{ours}.bias", (cout,))


def _unit(theirs: str, ours: str, channels: int, config: MimiConfig) -> Iterator[Entry]:
    hidden = channels // config.compress
    kernel = config.residual_kernel_size
    yield from _conv_pair(f"{theirs}.block.1", f"{ours}.inner", hidden, channels, kernel)
    yield from _conv_pair(f"{theirs}.block.3", f"{ours}.outer", channels, hidden, 1)


def _encoder(config: MimiConfig) -> Iterator[Entry]:
    """Places in their list of modules: first convolution, then block, ELU, convolution a level."""
    channels = config.n_filters
    theirs = "encoder.model"
    yield from _conv_pair(f"{theirs}.0", "encoder.first", channels, 1, config.kernel_size)
    for i, ratio in enumerate(reversed(config.ratios)):
        at = 3 * i + 1
        yield from _unit(f"{theirs}.{at}", f"encoder.units.{i}", channels, config)
        yield from _conv_pair(
            f"{theirs}.{at + 2}", f"encoder.down.{i}", 2 * channels, channels, 2 * ratio
        )
        channels *= 2
    at = 3 * len(config.ratios) + 2
    yield from _conv_pair(
        f"{theirs}.{at}", "encoder.last", config.dim, channels, config.last_kernel_size
    )


def _decoder(config: MimiConfig) -> Iterator[Entry]:
    """Places in their list: first convolution, then ELU, transposed convolution, block a level."""
    channels = config.n_filters << len(config.ratios)
    theirs = "decoder.model"
    yield from _conv_pair(f"{theirs}.0", "decoder.first", channels, config.dim, config.kernel_size)
    for i, ratio in enumerate(config.ratios):
        at = 3 * i + 2
        half = channels // 2
        up = f"{theirs}.{at}.convtr.convtr"
        shape = (channels, half, 2 * ratio)
        yield Entry(f"{up}.weight", f"decoder.up.{i}.weight", shape, _transposed, _transposed)
        yield Entry(f"{up}.bias", f"decoder.up.{i}.bias", (half,))
        yield from _unit(f"{theirs}.{at + 1}", f"decoder.units.{i}", half, config)
        channels = half
    at = 3 * len(config.ratios) + 2
    yield from _conv_pair(f"{theirs}.{at}", "decoder.last", 1, channels, config.last_kernel_size)


def _layer(theirs: str, ours: str, config: MimiConfig) -> Iterator[Entry]:
    dim, ff = config.dim, config.ff_dim
    table = {
        "norm1.weight": ("norm1_gain", (dim,)),
        "norm1.bias": ("norm1_bias", (dim,)),
        "self_attn.in_proj_weight": ("in_proj", (3 * dim, dim)),
        "self_attn.out_proj.weight": ("out_proj", (dim, dim)),
        "layer_scale_1.scale": ("scale1", (dim,)),
        "norm2.weight": ("norm2_gain", (dim,)),
        "norm2.bias": ("norm2_bias", (dim,)),
        "linear1.weight": ("ff_in", (ff, dim)),
        "linear2.weight": ("ff_out", (dim, ff)),
        "layer_scale_2.scale": ("scale2", (dim,)),
    }
    for name, (parameter, shape) in table.items():
        yield Entry(f"{theirs}.{name}", f"{ours}.{parameter}", shape)
