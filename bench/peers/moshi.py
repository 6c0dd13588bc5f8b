"""Mimi's decoder and the depth head as moshi (0.2.13) runs them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from microturn.bench.peers.common import library
from microturn.bench.providers.base import Call
from microturn.kernels.depth_head.reference import core as depth_logits
from microturn.kernels.depth_head.weights import DepthWeights
from microturn.kernels.registry import Case, OpInputs
from microturn.kernels.rows import RowBatch
from microturn.model.mimi import MimiConfig, MimiDecoder
from microturn.model.mimi.names import books, entries

NEAR = 0.05
"""A code is as good as the best if its logit is less than this share of their spread below it."""
FRESH = "state in mid-stream: it decodes the first frame"


def build_codec(loaders: Any, config: MimiConfig) -> Any:
    """moshi's codec of these sizes, with the weights it draws; loaders: `moshi.models.loaders`."""
    seanet = loaders._seanet_kwargs | {
        "dimension": config.dim,
        "n_filters": config.n_filters,
        "compress": config.compress,
        "ratios": list(config.ratios),
        "kernel_size": config.kernel_size,
        "last_kernel_size": config.last_kernel_size,
        "residual_kernel_size": config.residual_kernel_size,
    }
    transformer = loaders._transformer_kwargs | {
        "d_model": config.dim,
        "input_dimension": config.dim,
        "output_dimensions": [config.dim],
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "dim_feedforward": config.ff_dim,
        "context": config.context,
        "max_period": config.rope_theta,
    }
    quantizer = loaders._quantizer_kwargs | {
        "dimension": config.codebook_dim,
        "n_q": config.num_codebooks,
        "n_q_semantic": config.num_semantic,
        "bins": config.codebook_size,
        "input_dimension": config.dim,
        "output_dimension": config.dim,
    }
    sizes = {
        "sample_rate": config.sample_rate,
        "channels": 1,
        "frame_rate": config.frame_rate,
        "seanet": seanet,
        "transformer": transformer,
        "quantizer": quantizer,
    }
    return loaders.get_mimi(None, sizes, num_codebooks=config.num_codebooks)


def codec_of(decoder: MimiDecoder) -> Any:
    """moshi's codec with these weights; the encoder's are what it draws."""
    config: MimiConfig = decoder.config
    codec = build_codec(library("moshi.models.loaders"), config)
    ours = {f"decoder.{name}": tensor for name, tensor in decoder.named_parameters()}
    first = next(iter(ours.values()))
    codec = codec.to(device=first.device, dtype=first.dtype).eval().requires_grad_(False)
    theirs = _released_names(codec)
    for entry in entries(config):
        if entry.ours in ours:
            theirs[entry.theirs].copy_(entry.restore(ours[entry.ours]))
    for table, name in zip(ours["decoder.codebooks.tables"], books(config), strict=True):
        theirs[f"{name}._initialized"].fill_(1)
        theirs[f"{name}.cluster_usage"].fill_(1)
        theirs[f"{name}.embedding_sum"].copy_(table)
    return codec


def _released_names(codec: Any) -> dict[str, Tensor]:
    """Parameters and buffers by the names of the released files."""
    found = dict(codec.named_parameters()) | dict(codec.named_buffers())
    return {
        name.replace("in_projs.0.weight", "in_proj_weight").replace(
            "out_projs.0.weight", "out_proj.weight"
        ): tensor
        for name, tensor in found.items()
    }


def first_frame(inputs: OpInputs) -> OpInputs:
    """The same codes at the start of their streams, over state that is not read there."""
    rows = inputs.rows
    slots = [line.slot for line in rows.lines]
    fresh = RowBatch.build(slots, [1] * len(slots), [0] * len(slots), device=inputs.x.device)
    return inputs._replace(rows=fresh)


class MoshiMimi:
    """own_graphs: as moshi ships it, its transformer and its convolutions in a graph each; else
    the bench captures the whole call in one.
    """

    def __init__(self, name: str, own_graphs: bool) -> None:
        self.name, self._own_graphs = name, own_graphs

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        return op == "mimi_decode" and dtype in ("fp32", "bf16")

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        """The first call decodes the first frame; each one moves the stream on."""
        compile_ = library("moshi.utils.compile")
        codec = codec_of(inputs.weights.decoder)
        codec.streaming_forever(inputs.x.shape[0])
        codes = inputs.x[:, :, None].contiguous()

        def plain() -> Any:
            with compile_.no_cuda_graph():
                return codec.decode(codes).float().reshape(-1)

        def graphed() -> Any:
            return codec.decode(codes).float().reshape(-1)

        def eager() -> Any:
            with compile_.no_compile():
                return plain()

        if device.type != "cuda":
            return eager
        return graphed if self._own_graphs else plain

    def expected(self, op: str, case: Case, dtype: str, inputs: OpInputs) -> tuple[Any, str] | None:
        return expected_first_frame(inputs), FRESH


def expected_first_frame(inputs: OpInputs) -> Tensor:
    """From the ops' references, on the CPU."""
    from microturn.bench.check import expected
    from microturn.bench.mimi_decode import reference

    found: Tensor = expected(reference, first_frame(inputs), inputs.x.device, state=False).result
    return found


def depformer_of(weights: DepthWeights, dtype: torch.dtype) -> Any:
    """moshi's model around a depth head with these weights; its trunk is as small as can be."""
    lm = library("moshi.models.lm")
    layers, books, depth, gate = weights.down.shape
    text, device = weights.text_table.shape[0] - 1, weights.qkv.device
    made = lm.LMModel(
        delays=[0] * (books + 1),
        n_q=books,
        dep_q=books,
        card=weights.codebook_size,
        text_card=text,
        dim=weights.hidden_size,
        num_heads=2,
        num_layers=0,
        hidden_scale=1,
        norm="rms_norm_f32",
        gating="silu",
        layer_scale=None,
        causal=True,
        context=16,
        max_period=10000,
        positional_embedding="none",
        depformer_dim=depth,
        # Its gated MLP is 2 / 3 as wide inside as it is told.
        depformer_dim_feedforward=-(-3 * gate // 2),
        depformer_num_heads=weights.num_heads,
        depformer_num_layers=layers,
        depformer_layer_scale=None,
        depformer_multi_linear=True,
        depformer_context=books,
        depformer_max_period=10000,
        depformer_gating="silu",
        depformer_pos_emb="none",
        depformer_weights_per_step=True,
        device=device,
        dtype=dtype,
    )
    made = made.eval().requires_grad_(False)
    theirs = dict(made.named_parameters())
    theirs["depformer_text_emb.weight"].copy_(weights.text_table)
    for k in range(books):
        theirs[f"depformer_in.{k}.weight"].copy_(weights.hidden_in[k])
        theirs[f"linears.{k}.weight"].copy_(weights.heads[k])
        if k < books - 1:
            size = weights.codebook_size
            theirs[f"depformer_emb.{k}.weight"][:size].copy_(weights.code_tables[k])
    for i in range(layers):
        layer = f"depformer.layers.{i}"
        theirs[f"{layer}.norm1.alpha"].view(-1).copy_(weights.attention_gain[i])
        theirs[f"{layer}.norm2.alpha"].view(-1).copy_(weights.mlp_gain[i])
        for k in range(books):
            theirs[f"{layer}.self_attn.in_projs.{k}.weight"].copy_(weights.qkv[i, k])
            theirs[f"{layer}.self_attn.out_projs.{k}.weight"].copy_(weights.out[i, k])
            theirs[f"{layer}.gating.{k}.linear_in.weight"].copy_(weights.gate_up[i, k])
            theirs[f"{layer}.gating.{k}.linear_out.weight"].copy_(weights.down[i, k])
    return made


class MoshiDepth:
    """moshi's loop over its depformer, taking the likeliest code of each step. The bench captures
    it in a graph, as moshi does.
    """

    name = "moshi_depformer"

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        return op == "depth_head" and dtype in ("fp32", "bf16") and bool(getattr(case, "B", 1))

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        compile_ = library("moshi.utils.compile")
        narrow = torch.bfloat16 if dtype == "bf16" else torch.float32
        model = depformer_of(inputs.weights, narrow)
        hidden, ids = inputs.x.hidden.to(narrow)[:, None], inputs.x.text_ids
        finite = torch.ones_like(ids, dtype=torch.bool)

        def plain() -> Any:
            token, codes = ids, []
            with model.depformer.streaming(ids.shape[0]):
                for k in range(model.dep_q):
                    logits = model.forward_depformer(k, token[:, None, None], hidden)
                    token = logits[:, 0, 0].float().argmax(-1)
                    codes.append(token)
            return torch.stack(codes, 1), finite

        def eager() -> Any:
            with compile_.no_compile():
                return plain()

        return plain if device.type == "cuda" else eager

    def expected(self, op: str, case: Case, dtype: str, inputs: OpInputs) -> tuple[Any, str] | None:
        """moshi's own codes wherever, given the codes before, their logit in fp32 is the highest or
        within NEAR of it: else the likeliest. A choice between near-ties changes all that follow.
        """
        device = inputs.x.hidden.device
        codes, finite = self.prepare(op, case, dtype, inputs, device)()
        wide = {
            f.name: getattr(inputs.weights, f.name).float()
            if isinstance(getattr(inputs.weights, f.name), Tensor)
            else getattr(inputs.weights, f.name)
            for f in fields(inputs.weights)
        }
        logits = depth_logits(
            inputs.x.hidden.float(), inputs.x.text_ids, codes, DepthWeights(**wide)
        )
        best = logits.amax(-1)
        short = best - logits.gather(-1, codes[..., None])[..., 0]
        fine = short <= NEAR * logits.std(-1)
        return (torch.where(fine, codes, logits.argmax(-1)), finite), "sampling"


PROVIDERS = (MoshiMimi("moshi", True), MoshiMimi("moshi_one_graph", False), MoshiDepth())
