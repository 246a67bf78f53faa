"""Compile lane: every kernel, in the configuration that launch picks for real vocabularies, for GPUs that are not here."""

import pytest

aot = pytest.importorskip("tests.kernels.aot", reason="Triton is not installed", exc_type=ImportError)

pytestmark = pytest.mark.compile

VOCABULARIES = (128_256, 151_936, 152_064, 262_144, 32_003)  # the last is a multiple of nothing
POINTERS = {
    "raw_ptr": "*fp32:16", "out_ptr": "*bf16:16", "rows_ptr": "*i64:16", "targets_ptr": "*i64:16", "bias_ptr": "*bf16:16", "temperature_ptr": "*fp32:16",
    "num_columns": "i32", "raw_stride": "i32", "out_stride": "i32", "v_start": "i32", "temperature": "fp32", "softcap": "fp32",
    "low": "fp32", "high": "fp32", "dual_clip": "fp32", "kl_coef": "fp32", "max_log_ratio": "fp32",
}  # fmt: skip
FULL = {"HAS_BIAS": True, "HAS_SOFTCAP": True, "PER_TOKEN_TEMPERATURE": True}
PLAIN = {"HAS_BIAS": False, "HAS_SOFTCAP": False, "PER_TOKEN_TEMPERATURE": False}


def kernel_and_constants(name: str, full: bool):
    from aer_kernels.kernels.d_logits import _d_logits_kernel
    from aer_kernels.kernels.policy_loss import _policy_rows_kernel
    from aer_kernels.kernels.row_stats import _row_stats_kernel

    shared = FULL if full else PLAIN
    return {
        "row_stats": (_row_stats_kernel, shared | {"HAS_ROWS": full}),
        "d_logits": (_d_logits_kernel, shared | {"HAS_ROWS": full, "HAS_GRAD_LOGPROBS": True, "HAS_GRAD_ENTROPY": True, "NARROW": True}),
        "policy_rows": (
            _policy_rows_kernel,
            shared | {"CISPO": False, "HAS_DUAL_CLIP": full, "HAS_OLD_LOGPROBS": True, "HAS_KL": full, "NARROW": True},
        ),
    }[name]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("full", [False, True], ids=["plain", "all_options"])
@pytest.mark.parametrize("name", ["row_stats", "d_logits", "policy_rows"])
def test_compiles_without_spills(name, full, target):
    from aer_kernels.kernels.launch import row_launch

    kernel, constants = kernel_and_constants(name, full)
    configurations = {(v % 16 == 0, *row_launch(v).values()) for v in VOCABULARIES}
    for divisible, block, num_warps in configurations:
        mark = ":16" if divisible else ""
        signature = {n: POINTERS.get(n, "*fp32:16") for n in kernel.arg_names}
        signature |= {n: f"i32{mark}" for n in ("num_columns", "raw_stride", "out_stride") if n in signature}
        found = aot.compile_kernel(kernel, signature, constants | {"BLOCK": block}, num_warps, target)
        assert found.spill_bytes == 0
        assert found.shared_bytes <= aot.SHARED_LIMIT[target]
        if divisible:
            assert found.wide_loads > 0, "the logits must be read 128 bits at a time"
