"""Mimi's decoder as transformers runs it: whole frames, no convolution state between them."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from microturn.bench.peers.common import library
from microturn.bench.peers.moshi import expected_first_frame
from microturn.bench.providers.base import Call, Unavailable
from microturn.kernels.registry import Case, OpInputs
from microturn.model.mimi import MimiDecoder
from microturn.model.mimi.hugging_face import from_kyutai, sizes_dict
from microturn.model.mimi.names import books, entries


def codec_of(decoder: MimiDecoder) -> Any:
    """Their model with these weights; the encoder's are what it draws."""
    theirs: Any = library("transformers")
    config = decoder.config
    if config.codebook_size & (config.codebook_size - 1):
        raise Unavailable(
            f"transformers takes books of a power of two rows, these have {config.codebook_size}"
        )
    ours = {f"decoder.{name}": tensor for name, tensor in decoder.named_parameters()}
    first = next(iter(ours.values()))
    tensors: dict[str, Tensor] = {
        entry.theirs: entry.restore(ours[entry.ours])
        for entry in entries(config)
        if entry.ours in ours
    }
    for table, name in zip(ours["decoder.codebooks.tables"], books(config), strict=True):
        tensors[f"{name}._initialized"] = torch.ones(1)
        tensors[f"{name}.cluster_usage"] = torch.ones(config.codebook_size)
        tensors[f"{name}.embedding_sum"] = table
    # Through files: only then do newer releases know the names of released checkpoints.
    with TemporaryDirectory() as folder:
        named = from_kyutai(tensors, config.num_heads)
        save_file(
            {n: t.detach().cpu().contiguous() for n, t in named.items()},
            Path(folder, "model.safetensors"),
            {"format": "pt"},
        )
        Path(folder, "config.json").write_text(json.dumps(sizes_dict(config)))
        codec, found = theirs.MimiModel.from_pretrained(folder, output_loading_info=True)
    lost = [n for n in found["missing_keys"] if n.startswith(("decoder", "upsample"))]
    if lost:
        raise Unavailable(f"transformers {theirs.__version__} has no {', '.join(sorted(lost)[:3])}")
    return codec.to(device=first.device, dtype=first.dtype).eval().requires_grad_(False)


class TransformersMimi:
    name = "transformers"

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        return op == "mimi_decode" and dtype in ("fp32", "bf16")

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        codec = codec_of(inputs.weights.decoder)
        codes = inputs.x[:, :, None].contiguous()

        def call() -> Any:
            return codec.decode(codes).audio_values.float().reshape(-1)

        return call

    def expected(self, op: str, case: Case, dtype: str, inputs: OpInputs) -> tuple[Any, str] | None:
        return expected_first_frame(inputs), "all state between frames"


PROVIDERS = (TransformersMimi(),)
