"""Random Inkling models of any size, made, run and saved by transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.names import load_released, load_released_audio
from microturn.model.inkling.trunk import AudioTower, Trunk

BAR = 1e-4
"""Largest difference between logits, of about unit variance."""


FEW = TrunkConfig(
    hidden_size=64,
    num_layers=4,
    global_layers=(1, 3),
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    local_num_heads=4,
    local_num_kv_heads=4,
    local_head_dim=16,
    sliding_window=8,
    global_window=300,
    d_rel=16,
    rel_extent=12,
    log_floor=16,
    log_alpha=0.1,
    num_dense_layers=1,
    dense_width=96,
    num_experts=8,
    top_k=3,
    num_shared_experts=2,
    expert_width=32,
    route_scale=8.0,
    vocab_size=96,
    unpadded_vocab_size=90,
    mup_multiplier=4.0,
    eps=1e-6,
    conv_kernel=4,
    max_rows_per_tick=32,
)
"""Sessions of `global_window` rows go past the window, the extent and the log floor."""


def released_sizes(c: TrunkConfig) -> dict[str, Any]:
    """The fields of InklingTextConfig."""
    layers = range(c.num_layers)
    return {
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.num_layers,
        "local_layer_ids": [i for i in layers if i not in c.global_layers],
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "swa_num_attention_heads": c.local_num_heads,
        "swa_num_key_value_heads": c.local_num_kv_heads,
        "swa_head_dim": c.local_head_dim,
        "sliding_window_size": c.sliding_window,
        "d_rel": c.d_rel,
        "rel_extent": c.rel_extent,
        "log_scaling_n_floor": c.log_floor,
        "log_scaling_alpha": c.log_alpha,
        "mlp_layer_types": ["dense" if i < c.num_dense_layers else "sparse" for i in layers],
        "intermediate_size": c.dense_width,
        "moe_intermediate_size": c.expert_width,
        "n_routed_experts": c.num_experts,
        "num_experts_per_tok": c.top_k,
        "n_shared_experts": c.num_shared_experts,
        "route_scale": c.route_scale,
        "vocab_size": c.vocab_size,
        "unpadded_vocab_size": c.unpadded_vocab_size,
        "logits_mup_width_multiplier": c.mup_multiplier,
        "rms_norm_eps": c.eps,
        "conv_kernel_size": c.conv_kernel,
        "max_position_embeddings": c.global_window,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def randomize(model: torch.nn.Module) -> None:
    """Every term large enough to be missed: gains far from 1, biases and taps far from 0."""
    spread = {"global_scale": (1.0, 0.1), "sconv": (0.0, 0.3), "rel_logits_proj": (0.0, 0.3)}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        default = (1.0, 0.3) if tensor.dim() == 1 else (0.0, tensor.shape[-1] ** -0.5)
        mean, std = next((v for k, v in spread.items() if k in name), default)
        if "correction_bias" in name:
            mean = 0.0
        tensor.normal_(mean, std)


@dataclass(frozen=True)
class Answer:
    """logits [T, vocabulary]; least gap between a chosen expert's score and the best one left."""

    logits: Tensor
    gap: float


class Released:
    """A random model in transformers' hands, and its tensors as the file has them.

    The last id of the vocabulary stands for a frame of audio.
    """

    def __init__(self, config: TrunkConfig, *, mels: int = 80, bins: int = 16) -> None:
        """Weights are drawn from torch's global generator. Skips without transformers 5.23."""
        transformers = pytest.importorskip("transformers", minversion="5.23")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.config, self.mels, self.bins = config, mels, bins
        self.audio_id = config.unpadded_vocab_size - 1
        self.whole = transformers.InklingForConditionalGeneration(
            transformers.InklingConfig(
                text_config=released_sizes(config),
                audio_config={"n_mel_bins": mels, "mel_vocab_size": bins},
                vision_config={"num_hidden_layers": 1},
                audio_token_id=self.audio_id,
            )
        ).eval()
        with torch.no_grad():
            randomize(self.whole)
            unit = config.mup_multiplier * config.hidden_size**-0.5
            self.whole.lm_head.weight.normal_(0, unit)
        with torch.device("meta"):
            self.text = transformers.InklingForCausalLM(self.whole.config.text_config).eval()
        self.text.model, self.text.lm_head = self.whole.model.language_model, self.whole.lm_head

    def save(self, folder: Path) -> None:
        self.whole.save_pretrained(folder)

    def tensors(self) -> dict[str, Tensor]:
        """What `save` writes, read back."""
        from safetensors.torch import load_file

        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder))
            return load_file(Path(folder) / "model.safetensors")

    @torch.no_grad()
    def answer(self, ids: Tensor, frames: Tensor | None = None) -> Answer:
        """ids [T]; frames [N, mels] for the N places of `audio_id`: then the conditional class
        answers, else the causal one.
        """
        gaps: list[float] = []
        with ExitStack() as hooks:
            for module in self.whole.modules():
                if type(module).__name__ == "InklingTopkRouter":
                    hooks.enter_context(module.register_forward_hook(partial(_watch, gaps)))
            if frames is None or not len(frames):
                logits = self.text(ids[None], use_cache=False).logits[0]
            else:
                logits = self.whole(
                    input_ids=ids[None], audio_input_ids=frames[None], use_cache=False
                ).logits[0]
        return Answer(logits, min(gaps, default=float("inf")))

    @torch.no_grad()
    def audio_rows(self, frames: Tensor) -> Tensor:
        """frames [N, mels] -> [N, H]."""
        return self.whole.model.audio_tower(frames[None]).last_hidden_state[0]  # type: ignore[no-any-return]

    def trunk(
        self, tensors: dict[str, Tensor] | None = None, config: TrunkConfig | None = None
    ) -> Trunk:
        trunk = Trunk(config or self.config)
        load_released(trunk, tensors or self.tensors())
        return trunk.eval()

    def tower(self, tensors: dict[str, Tensor] | None = None) -> AudioTower:
        tower = AudioTower(self.config.hidden_size, self.mels, self.bins)
        load_released_audio(tower, tensors or self.tensors())
        return tower.eval()


def _watch(gaps: list[float], router: Any, inputs: Any, output: Sequence[Tensor]) -> None:
    scores = output[0].sigmoid() + router.e_score_correction_bias
    if router.top_k < router.num_experts and len(scores):
        best = scores.topk(router.top_k + 1, dim=-1).values
        gaps.append(float((best[:, -2] - best[:, -1]).min()))


@torch.no_grad()
def embed(trunk: Trunk, tower: AudioTower, ids: Tensor, frames: Tensor, audio_id: int) -> Tensor:
    """The rows of text and audio as the trunk takes them, [T, H]."""
    x = trunk.embed(ids)
    if len(frames):
        x[ids == audio_id] = tower(frames)
    return x
