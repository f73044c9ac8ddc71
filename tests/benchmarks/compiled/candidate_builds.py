"""What `python -m benchmarks.tune` tries: for `benchmarks.compiled --module`."""

from benchmarks import tune
from maskgit_kernels.attention import launch, triton_dk_dv, triton_dq, triton_forward

KERNELS = {
    "forward": triton_forward.attention_forward_kernel,
    "dq": triton_dq.attention_dq_kernel,
    "dk_dv": triton_dk_dv.attention_dk_dv_kernel,
}


def builds(capability):
    return [
        launch.build(case.kernel, KERNELS[case.kernel], tiling, case.length, *size, f": {tiling}")
        for case in tune.CASES
        for size in [(case.head_dim, "half", case.dropout)]
        for tiling in case.candidates(capability)
    ]
