"""The interaction model: trunk, audio and vision towers, text stream, feedback and depth head.

No scheduling.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microturn.kernels.rms_norm import RMSNormWeights, rms_norm
from microturn.model.inkling.trunk import AudioTower, Trunk
from microturn.model.inkling.vision import VisionTower
from microturn.model.interaction.config import InteractionConfig
from microturn.model.interaction.depth import DepthHead
from microturn.model.mimi.mimi import MimiDecoder


class InteractionModel(nn.Module):
    """Weights of one interaction model and its embeddings.

    code_table [Q * (codebook_size + 1), H]: row q * (codebook_size + 1) + code; the last row of
    each codebook is "no code" (spec/interaction.md section 1).
    """

    def __init__(self, config: InteractionConfig) -> None:
        super().__init__()
        self.config = config
        hidden, codec = config.trunk.hidden_size, config.codec
        self.trunk = Trunk(config.trunk)
        self.audio = AudioTower(hidden, config.audio_mels, config.audio_bins, config.trunk.eps)
        self.visual = VisionTower(config.vision, hidden) if config.vision else None
        self.depth = DepthHead(config.depth)
        self.codec = MimiDecoder(codec)
        rows = codec.codebook_size + 1
        self.code_table = nn.Parameter(torch.empty(codec.num_codebooks * rows, hidden))
        self.code_norm = nn.Parameter(torch.empty(hidden))
        offsets = torch.arange(codec.num_codebooks) * rows
        self.register_buffer("code_offsets", offsets, persistent=False)
        self.code_offsets: Tensor

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Seeded random weights: untrained, but of the scale training starts from."""
        self.trunk.reset_parameters(generator)
        self.audio.reset_parameters(generator)
        self.depth.reset_parameters(generator)
        self.codec.reset_parameters(generator)
        with torch.no_grad():
            self.code_table.normal_(generator=generator)
            self.code_norm.fill_(1.0)
        if self.visual is not None:
            self.visual.reset_parameters(generator)

    def embed_feedback(self, text_ids: Tensor, codes: Tensor) -> Tensor:
        """What an output position looks like when it is read back.

        embed_norm(embed(text id)) + RMSNorm(sum over q of the code embeddings).
        text_ids [R] int64, codes [R, Q] int64 -> [R, H].
        """
        total = F.embedding_bag(codes + self.code_offsets, self.code_table, mode="sum")
        norm = RMSNormWeights(self.code_norm, self.config.trunk.eps)
        return self.trunk.embed(text_ids) + rms_norm(total, norm)

    def embed_rows(
        self,
        feedback: tuple[Tensor, Tensor],
        context_ids: Tensor,
        patches: Tensor | None,
        bins: Tensor,
        order: Tensor,
    ) -> Tensor:
        """Embeds rows by kind, then puts them in their places.

        feedback     text ids [F] and codes [F, Q]
        context_ids  [C] int64
        patches      [P, 2, 40, 40, 3] int16, None for none; not normed by embed_norm, like audio
        bins         [A, mels] int64
        order        [T] int64: packed row -> index into feedback, context, patches, audio laid end
                     to end
        Returns [T, H]. Raises ValueError for patches of a model without a vision tower.
        """
        kinds = [self.embed_feedback(*feedback), self.trunk.embed(context_ids)]
        if patches is not None:
            if self.visual is None:
                raise ValueError(f"{self.config.name} has no vision tower, patches cannot be fed")
            kinds.append(self.visual(patches))
        kinds.append(self.audio(bins))
        return torch.cat(kinds).index_select(0, order)
