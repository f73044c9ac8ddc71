"""What the lesson's kernel compiles to: for `benchmarks.compiled --module`."""

from benchmarks.plain_attention import plain_attention_kernel
from maskgit_kernels.build import Build


def builds(capability):
    return [
        Build(
            f"plain attention, head_dim {head_dim}",
            plain_attention_kernel,
            signature={f"{name}_ptr": "*bf16" for name in ("q", "k", "v", "out")} | {"length": "i32", "scale": "fp32"},
            constants={"D": head_dim, "BLOCK_M": 64, "BLOCK_N": 64},
            num_stages=3,
            elements=64 * 64,
            ideal_macs=2 * 64 * 64 * head_dim,
        )
        for head_dim in (16, 32, 64, 128)
    ]
