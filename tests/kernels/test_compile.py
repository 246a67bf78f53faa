"""Compile lane: every kernel, in the configuration that launch picks for real vocabularies, for GPUs that are not here."""

import pytest

aot = pytest.importorskip("tests.kernels.aot", reason="Triton is not installed", exc_type=ImportError)

pytestmark = pytest.mark.compile

VOCABULARIES = (128_256, 151_936, 152_064, 262_144, 32_003)  # the last is a multiple of nothing
POINTERS = {
    "raw_ptr": "*fp32:16", "out_ptr": "*bf16:16", "keep_ptr": "*u8:16", "targets_ptr": "*i64:16", "bias_ptr": "*bf16:16", "temperature_ptr": "*fp32:16",
    "num_columns": "i32", "raw_stride": "i32", "out_stride": "i32", "v_start": "i32", "temperature": "fp32", "softcap": "fp32",
    "low": "fp32", "high": "fp32", "dual_clip": "fp32", "rollout_cap": "fp32", "max_log_ratio": "fp32",
}  # fmt: skip
PLAIN = {"HAS_BIAS": False, "HAS_SOFTCAP": False, "HAS_TEMPERATURE": False, "PER_TOKEN_TEMPERATURE": False, "FLOOR": "none"}
FULL = {"HAS_BIAS": True, "HAS_SOFTCAP": True, "HAS_TEMPERATURE": True, "PER_TOKEN_TEMPERATURE": True, "FLOOR": "entropy"}
GIVEN = FULL | {"HAS_BIAS": False, "FLOOR": "all"}  # bf16 logits of the user, without a bias, with rows to skip
TERMS = {"HAS_GRAD_LOGPROBS": True, "HAS_GRAD_ENTROPY": True}
POLICY = {"CISPO": False, "HAS_DUAL_CLIP": False, "HAS_OLD_LOGPROBS": True, "HAS_KL": False, "KL": "k3", "HAS_ROLLOUT_LOGPROBS": False}
CASES = {
    "row_stats_plain": ("row_stats", PLAIN | {"HAS_KEEP": False}),
    "row_stats_full": ("row_stats", FULL | {"HAS_KEEP": False}),
    "row_stats_given": ("row_stats", GIVEN | {"HAS_KEEP": True}),
    "d_logits_plain": ("d_logits", PLAIN | TERMS | {"HAS_KEEP": False}),
    "d_logits_full": ("d_logits", FULL | TERMS | {"HAS_KEEP": False}),
    "d_logits_given": ("d_logits", GIVEN | TERMS | {"HAS_KEEP": True}),
    "policy_rows_plain": ("policy_rows", PLAIN | POLICY),
    "policy_rows_full": ("policy_rows", FULL | POLICY | {"HAS_DUAL_CLIP": True, "HAS_KL": True, "HAS_ROLLOUT_LOGPROBS": True}),
    "policy_rows_cispo": ("policy_rows", PLAIN | POLICY | {"CISPO": True}),
    "row_stats_floor": ("row_stats", PLAIN | {"FLOOR": "all", "HAS_KEEP": False}),
    "d_logits_floor": ("d_logits", PLAIN | TERMS | {"FLOOR": "all", "HAS_KEEP": False}),
    "policy_rows_floor": ("policy_rows", PLAIN | POLICY | {"FLOOR": "all"}),
    "policy_rows_entropy_floor": ("policy_rows", PLAIN | POLICY | {"FLOOR": "entropy"}),
    **{f"policy_rows_{kl}": ("policy_rows", PLAIN | POLICY | {"HAS_KL": True, "KL": kl}) for kl in ("k1", "abs_k1", "k2")},
}


def kernel_of(name: str):
    from aer_kernels.kernels.d_logits import _d_logits_kernel
    from aer_kernels.kernels.policy_loss import _policy_rows_kernel
    from aer_kernels.kernels.row_stats import _row_stats_kernel

    return {"row_stats": _row_stats_kernel, "d_logits": _d_logits_kernel, "policy_rows": _policy_rows_kernel}[name]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("case", CASES)
def test_compiles_without_spills(case, target):
    from aer_kernels.kernels.launch import row_launch

    name, constants = CASES[case]
    kernel, warp = kernel_of(name), 64 if target.startswith("gfx") else 32
    for out in ("*bf16:16", "*fp32:16") if name != "row_stats" and case.endswith("plain") else ("*bf16:16",):
        for divisible, block, num_warps in {
            (v % 16 == 0, *row_launch(v, constants["FLOOR"] != "none", warp).values()) for v in VOCABULARIES
        }:
            mark = ":16" if divisible else ""
            signature = {n: POINTERS.get(n, "*fp32:16") for n in kernel.arg_names} | (
                {"out_ptr": out} if "out_ptr" in kernel.arg_names else {}
            )
            signature |= {n: f"i32{mark}" for n in ("num_columns", "raw_stride", "out_stride") if n in signature}
            if case.endswith("given"):
                signature["raw_ptr"] = "*bf16:16"
            found = aot.compile_kernel(kernel, signature, constants | {"BLOCK": block}, num_warps, target)
            assert found.spill_bytes == 0
            assert found.shared_bytes <= aot.SHARED_LIMIT[target]
            if divisible:
                assert found.wide_loads > 0, "the logits must be read 128 bits at a time"


COMPLETE = {
    "row_floors_plain": ("row_floors", {"COUNT": False, "CROSSING": True}),
    "row_floors_before": ("row_floors", {"COUNT": False, "CROSSING": False}),
    "row_floors_count": ("row_floors", {"COUNT": True, "CROSSING": True}),
    "row_moments_plain": ("row_moments", {}),
}


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("case", COMPLETE)
def test_kernels_of_complete_rows_compile(case, target):
    from aer_kernels.kernels.launch import row_launch
    from aer_kernels.kernels.row_floors import _row_floors_kernel
    from aer_kernels.kernels.row_moments import _row_moments_kernel

    name, constants = COMPLETE[case]
    kernel = {"row_floors": _row_floors_kernel, "row_moments": _row_moments_kernel}[name]
    launch = row_launch(151_936, name == "row_floors", 64 if target.startswith("gfx") else 32)
    for tempering in (PLAIN, FULL):
        signature = {n: POINTERS.get(n, "*fp32:16") for n in kernel.arg_names} | {"wanted": "fp32"}
        signature |= {"out_ptr": "*fp32:16", "num_columns": "i32:16", "raw_stride": "i32:16"}
        given = {n: value for n, value in tempering.items() if n != "FLOOR"} | constants | {"BLOCK": launch["BLOCK"]}
        found = aot.compile_kernel(kernel, signature, given, launch["num_warps"], target)
        assert found.spill_bytes == 0 and found.wide_loads > 0


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize(("add", "in_place"), [(False, False), (True, False), (False, True)])
def test_scale_compiles(add, in_place, target):
    from aer_kernels.kernels.scale import BLOCK, _scale_kernel

    signature = {"values_ptr": "*bf16:16", "factor_ptr": "*fp32:16", "out_ptr": "*fp32:16" if add else "*bf16:16", "num_values": "i32:16"}
    found = aot.compile_kernel(_scale_kernel, signature, {"BLOCK": BLOCK, "ADD": add, "IN_PLACE": in_place}, 8, target)
    assert found.spill_bytes == 0 and found.wide_loads > 0
