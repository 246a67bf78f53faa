"""Device functions shared by the row kernels. Equation numbers are those of `aer_kernels.reference`."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """tanh without libdevice (the interpreter has none): a polynomial near 0, where 1 - 2 / (e^2x + 1) would cancel."""
    y = x * x
    near = x * (1.0 + y * (-1.0 / 3 + y * (2.0 / 15 + y * (-17.0 / 315 + y * (62.0 / 2835 - y * (1382.0 / 155925))))))
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.minimum(tl.maximum(x, -20.0), 20.0)) + 1.0)
    return tl.where(tl.abs(x) < 0.35, near, far)


@triton.jit
def load_logits(raw_ptr, bias_ptr, offs, mask, temperature, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """(2): tempered logits in fp32; -inf outside the mask."""
    z = tl.load(raw_ptr + offs, mask=mask, other=float("-inf")).to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if HAS_SOFTCAP:
        z = tl.where(z == float("-inf"), z, softcap * tanh(z / softcap))
    return z / temperature


@triton.jit
def row_statistics(
    raw_ptr,
    bias_ptr,
    target,
    num_columns,
    temperature,
    softcap,
    m,
    s,
    t,
    z_y,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """(16): fold the columns of one row into its running statistics (m, s, t, z_y). target counts from the first of these columns."""
    for start in range(0, num_columns, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        z = load_logits(raw_ptr, bias_ptr, offs, offs < num_columns, temperature, softcap, HAS_BIAS, HAS_SOFTCAP)
        new_m = tl.maximum(m, tl.max(z, 0))
        shift = tl.where(new_m == float("-inf"), 0.0, new_m)  # all -inf so far: any finite shift gives exp(-inf) = 0
        z -= shift
        p = tl.exp(z)
        drop = tl.where(m == float("-inf"), 0.0, m - shift)
        scale = tl.exp(drop)
        t = scale * (t + drop * s) + tl.sum(tl.where(p > 0, p * z, 0.0), 0)
        s = scale * s + tl.sum(p, 0)
        m = new_m
    inside = (target >= 0) & (target < num_columns)
    z_target = load_logits(raw_ptr, bias_ptr, target, inside, temperature, softcap, HAS_BIAS, HAS_SOFTCAP)
    return m, s, t, tl.where(inside, z_target, z_y)


@triton.jit
def store_d_logits(
    raw_ptr,
    out_ptr,
    bias_ptr,
    target,
    num_columns,
    temperature,
    softcap,
    m,
    log_s,
    z_y,
    entropy,
    grad_logprob,
    grad_entropy,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """(12)-(13): write dL/d(raw) of one row. out may be the same memory.

    At the target the saved z_y is used: near certainty 1 - p_y cancels, and a recomputed z_y has another rounding than the one in m and s.
    """
    for start in range(0, num_columns, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        mask = offs < num_columns
        z = load_logits(raw_ptr, bias_ptr, offs, mask, temperature, softcap, HAS_BIAS, HAS_SOFTCAP)
        logp = (tl.where(offs == target, z_y, z) - m) - log_s
        p = tl.exp(logp)
        d = tl.where(p > 0, -grad_entropy * p * (logp + entropy), 0.0)
        d += grad_logprob * tl.where(offs == target, 1.0 - p, -p)
        if HAS_SOFTCAP:
            capped = tl.where(z == float("-inf"), 1.0, z * temperature / softcap)
            d *= 1.0 - capped * capped
        tl.store(out_ptr + offs, (d / temperature).to(out_ptr.dtype.element_ty), mask=mask)
