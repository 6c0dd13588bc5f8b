"""The codec's transformer: pre-norm layers with layer scales over a window of the stream."""

from microturn.kernels.codec_transformer.op import (
    CodecLayerWeights,
    CodecTransformerWeights,
    codec_transformer,
)

__all__ = ["CodecLayerWeights", "CodecTransformerWeights", "codec_transformer"]
