"""The sizes of a codec from the shapes of kyutai's tensors: their file has no config."""

from __future__ import annotations

import re
from collections.abc import Mapping

from microturn.model.checkpoint import CheckpointError
from microturn.model.mimi.config import MimiConfig

Shape = tuple[int, ...]

BOOK = r"quantizer\.rvq_{}\.vq\.layers\.(\d+)\._codebook\.embedding_sum"
LAYERS = "encoder_transformer.transformer.layers"


def kyutai_sizes(shapes: Mapping[str, Shape], where: str) -> MimiConfig:
    """On all of its books. What shapes do not show (heads, context, rates) is as released.

    Raises CheckpointError naming `where` and a tensor that is missing, or of which the codec has
    sizes that do not fit each other.
    """

    def shape(name: str, rank: int) -> Shape:
        if len(shapes.get(name, ())) != rank:
            raise CheckpointError(
                f"{where} has no {name} of {rank} axes; give a Mimi codec in kyutai's layout"
            )
        return shapes[name]

    def numbers(pattern: str) -> list[int]:
        found = (re.fullmatch(pattern, name) for name in shapes)
        return sorted({int(match[1]) for match in found if match})

    ups = numbers(r"decoder\.model\.(\d+)\.convtr\.convtr\.weight")
    semantic, acoustic = (len(numbers(BOOK.format(group))) for group in ("first", "rest"))
    n_filters, _, kernel = shape("encoder.model.0.conv.conv.weight", 3)
    hidden, _, residual_kernel = shape("encoder.model.1.block.1.conv.conv.weight", 3)
    dim, _, resample_kernel = shape("downsample.conv.conv.conv.weight", 3)
    size, width = shape("quantizer.rvq_first.vq.layers.0._codebook.embedding_sum", 2)
    try:
        return MimiConfig(
            n_filters=n_filters,
            ratios=tuple(shape(f"decoder.model.{i}.convtr.convtr.weight", 3)[2] // 2 for i in ups),
            kernel_size=kernel,
            last_kernel_size=shape(f"encoder.model.{3 * len(ups) + 2}.conv.conv.weight", 3)[2],
            residual_kernel_size=residual_kernel,
            compress=n_filters // max(hidden, 1),
            dim=dim,
            resample_stride=resample_kernel // 2,
            num_layers=len(numbers(rf"{re.escape(LAYERS)}\.(\d+)\.linear1\.weight")),
            ff_dim=shape(f"{LAYERS}.0.linear1.weight", 2)[0],
            num_codebooks=semantic + acoustic,
            num_semantic=semantic,
            codebook_size=size,
            codebook_dim=width,
        )
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{where} is not a codec this version computes: {error}") from None
