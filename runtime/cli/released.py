"""Released weights from a folder or file, for the commands that compare frameworks.

`load_trunk` and `load_codec` are the only places of the command line that open such files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from microturn.runtime.cli.errors import UsageError, usage_errors

if TYPE_CHECKING:
    from torch import Tensor

    from microturn.model.inkling.config import TrunkConfig
    from microturn.model.inkling.trunk import Trunk
    from microturn.model.mimi import Mimi, MimiConfig

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
CODEC_HEADS, CODEC_CONTEXT = 8, 250
"""Of the released codec: its file does not say them."""
CODEC_BOOKS = 8
"""Books a codec runs on unless the caller says otherwise (spec/moshi-mimi.md 3.1)."""

Shape = tuple[int, ...]
T = TypeVar("T")


def load_trunk(folder: Path, *, rows: int, chunk: int) -> Trunk:
    """An Inkling backbone in fp32, for one sequence of `rows` rows in pieces of `chunk`.

    Global layers see the whole sequence, as the released model does. Raises UsageError when the
    folder is no checkpoint or does not fit its own config.
    """
    from microturn.model.inkling.names import load_released
    from microturn.model.inkling.trunk import Trunk

    path = folder / CONFIG
    if not path.is_file():
        raise UsageError(f"{folder} has no {CONFIG}; give the folder of a released checkpoint")
    with usage_errors(ValueError, TypeError, OSError):
        config = trunk_config(json.loads(path.read_text()), rows=rows, chunk=chunk)
        trunk = Trunk(config)
        load_released(trunk, _tensors(folder))
    return trunk.eval().requires_grad_(False)


def load_codec(path: Path, *, books: int | None = None) -> Mimi:
    """A Mimi codec in fp32, from kyutai's file or the folder that holds it alone.

    books: codebooks to run on; None: 8, or all where the file has fewer. Raises UsageError when
    there is no such file, or it is not a codec, or has not as many books.
    """
    from microturn.model.mimi import Mimi, load_kyutai

    with usage_errors(ValueError, OSError):
        tensors = _tensors(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        codec = Mimi(codec_config(shapes, books, path))
        load_kyutai(codec, tensors)
    return codec.eval().requires_grad_(False)


def trunk_config(document: Mapping[str, Any], *, rows: int, chunk: int) -> TrunkConfig:
    """The sizes in a released config.json, or in one that transformers saved.

    `intermediate_size` is the width of the dense layers, except beside
    `dense_intermediate_size`: then it is that of the experts (spec/inkling.md 2). Raises UsageError
    naming a field that is missing, ValueError on sizes that do not fit.
    """
    from microturn.model.inkling.config import TrunkConfig

    text: Mapping[str, Any] = document.get("text_config") or document

    def field(*names: str) -> Any:
        for name in names:
            if text.get(name) is not None:
                return text[name]
        raise UsageError(f"{CONFIG} lacks {' or '.join(names)}; it must describe an Inkling model")

    layers = field("num_hidden_layers")
    vocab = field("vocab_size")
    dense = text.get("dense_intermediate_size")
    return TrunkConfig(
        hidden_size=field("hidden_size"),
        num_layers=layers,
        global_layers=_global_layers(text, layers),
        num_heads=field("num_attention_heads"),
        num_kv_heads=field("num_key_value_heads"),
        head_dim=field("head_dim"),
        local_num_heads=field("swa_num_attention_heads"),
        local_num_kv_heads=field("swa_num_key_value_heads"),
        local_head_dim=field("swa_head_dim"),
        sliding_window=field("sliding_window_size"),
        global_window=rows,
        d_rel=field("d_rel"),
        rel_extent=field("rel_extent"),
        log_floor=text.get("log_scaling_n_floor"),
        log_alpha=text.get("log_scaling_alpha", 0.1),
        num_dense_layers=_num_dense_layers(text),
        dense_width=field("intermediate_size") if dense is None else dense,
        num_experts=field("n_routed_experts"),
        top_k=field("num_experts_per_tok"),
        num_shared_experts=field("n_shared_experts"),
        expert_width=field("moe_intermediate_size" if dense is None else "intermediate_size"),
        route_scale=field("route_scale"),
        vocab_size=vocab,
        unpadded_vocab_size=text.get("unpadded_vocab_size") or vocab,
        mup_multiplier=field("logits_mup_width_multiplier"),
        eps=field("rms_norm_eps"),
        conv_kernel=field("conv_kernel_size", "sconv_kernel_size"),
        max_rows_per_tick=chunk,
    )


def _global_layers(text: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    if kinds := text.get("layer_types"):
        return tuple(i for i, kind in enumerate(kinds) if kind != "hybrid_sliding")
    local = text.get("local_layer_ids")
    if local is None:
        return tuple(range(5, layers, 6))
    return tuple(i for i in range(layers) if i not in local)


def _num_dense_layers(text: Mapping[str, Any]) -> int:
    kinds = text.get("mlp_layer_types")
    if kinds is None:
        return int(text.get("dense_mlp_idx", 0))
    dense = kinds.count("dense")
    if "dense" in kinds[dense:]:
        raise UsageError(f"{CONFIG}: dense layers must come before sparse ones, got {kinds}")
    return int(dense)


def codec_config(shapes: Mapping[str, Shape], books: int | None, path: Path) -> MimiConfig:
    """The sizes of a codec, read from the shapes of kyutai's tensors.

    What shapes do not show (heads, context, sample rate) is as released. Raises UsageError when
    tensors are missing that say a size, or there are fewer books than asked for.
    """
    from microturn.model.mimi import MimiConfig

    def shape(name: str) -> Shape:
        if name not in shapes:
            raise UsageError(f"{path} has no {name}; give a Mimi codec in kyutai's layout")
        return shapes[name]

    def numbers(pattern: str) -> list[int]:
        found = (re.fullmatch(pattern, name) for name in shapes)
        return sorted({int(match[1]) for match in found if match})

    ups = numbers(r"decoder\.model\.(\d+)\.convtr\.convtr\.weight")
    book = r"quantizer\.rvq_{}\.vq\.layers\.(\d+)\._codebook\.embedding_sum"
    semantic, acoustic = (len(numbers(book.format(group))) for group in ("first", "rest"))
    layer = "encoder_transformer.transformer.layers"
    n_filters, _, kernel = shape("encoder.model.0.conv.conv.weight")
    hidden, _, residual_kernel = shape("encoder.model.1.block.1.conv.conv.weight")
    dim, _, resample_kernel = shape("downsample.conv.conv.conv.weight")
    size, width = shape("quantizer.rvq_first.vq.layers.0._codebook.embedding_sum")
    total = semantic + acoustic
    if books is not None and not semantic < books <= total:
        raise UsageError(
            f"{path} has {total} codebooks, take {semantic + 1} to {total}; got {books}"
        )
    return MimiConfig(
        n_filters=n_filters,
        ratios=tuple(shapes[f"decoder.model.{i}.convtr.convtr.weight"][2] // 2 for i in ups),
        kernel_size=kernel,
        last_kernel_size=shape(f"encoder.model.{3 * len(ups) + 2}.conv.conv.weight")[2],
        residual_kernel_size=residual_kernel,
        compress=n_filters // hidden,
        dim=dim,
        resample_stride=resample_kernel // 2,
        num_layers=len(numbers(rf"{re.escape(layer)}\.(\d+)\.linear1\.weight")),
        num_heads=CODEC_HEADS,
        ff_dim=shape(f"{layer}.0.linear1.weight")[0],
        context=CODEC_CONTEXT,
        num_codebooks=min(CODEC_BOOKS, total) if books is None else books,
        num_semantic=semantic,
        codebook_size=size,
        codebook_dim=width,
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, or of a folder's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in _files(path):
        try:
            tensors |= load_file(str(file))
        except SafetensorError as error:
            raise UsageError(f"{file} is not a whole safetensors file: {error}") from error
    return tensors


def _files(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    if (path / INDEX).is_file():
        named = json.loads((path / INDEX).read_text())["weight_map"].values()
        return [path / name for name in sorted(set(named))]
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise UsageError(
            f"{path} must be a safetensors file, or a folder with one or with {INDEX}; found "
            f"{len(found)}"
        )
    return found


def written(path: Path, write: Callable[[Path], T]) -> T:
    """What `write` returns, having written beside `path`: a file of that name is whole or is not
    there. Raises UsageError when it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    with usage_errors(OSError):
        try:
            result = write(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return result
