"""Drawing one id a row, reproducibly."""

from microturn.kernels.sampling.op import CODEBOOK_STREAM, TEXT_STREAM, SamplingParams, sampling

__all__ = ["CODEBOOK_STREAM", "TEXT_STREAM", "SamplingParams", "sampling"]
