"""Other people's libraries, one small module each; none is imported before its first call.

What they need and how to get it is in README.md; `kit/` fetches and builds it.
"""

MODULES = tuple(
    f"microturn.bench.peers.{name}"
    for name in (
        "torch_dense",
        "torch_convs",
        "torch_experts",
        "torch_attention",
        "flash_attention",
        "flashinfer",
        "megablocks",
        "liger",
        "vllm",
        "sglang",
        "deep_gemm",
        "moshi",
        "mimi_of_transformers",
    )
)
