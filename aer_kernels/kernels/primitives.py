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
def load_logits(
    raw_ptr,
    bias_ptr,
    offs,
    mask,
    temperature,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    FLOOR: tl.constexpr,
    floor,
):
    """(2): tempered logits in fp32; -inf outside the mask and, with FLOOR "all", below the floor."""
    z = tl.load(raw_ptr + offs, mask=mask, other=float("-inf")).to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if HAS_SOFTCAP:
        z = tl.where(z == float("-inf"), z, softcap * tanh(z / softcap))
    if HAS_TEMPERATURE:
        z /= temperature
    if FLOOR == "all":
        z = tl.where(z >= floor, z, float("-inf"))
    return z


@triton.jit
def finite(m):
    """A maximum to shift logits by: where all are -inf so far, any finite shift gives exp(-inf) = 0."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def moved(m, s, t, shift):
    """(16): the sums s and t, taken about the maximum m, about shift instead."""
    drop = tl.where(m == float("-inf"), 0.0, m - shift)
    scale = tl.exp(drop)
    return scale * s, scale * (t + drop * s)


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
    k,
    floor,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    FLOOR: tl.constexpr,
):
    """(16): fold the columns of one row into its running statistics (m, s, t, z_y, k). target counts from the first of these columns.

    k is s unless FLOOR is "entropy". Every lane has running statistics of its own, which meet once at the end of the row: no barrier while
    logits are read.
    """
    STRIPS: tl.constexpr = 4 if BLOCK >= 4096 else 1
    LANES: tl.constexpr = BLOCK // STRIPS
    columns = tl.arange(0, STRIPS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    lane_m = tl.full((LANES,), float("-inf"), tl.float32)
    lane_s, lane_t = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.float32)
    lane_k = lane_s
    for start in range(0, num_columns, BLOCK):
        offs = start + columns
        z = load_logits(
            raw_ptr, bias_ptr, offs, offs < num_columns, temperature, softcap, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE, FLOOR, floor
        )
        new_m = tl.maximum(lane_m, tl.max(z, 0))
        shift = finite(new_m)
        kept = z >= floor
        z -= shift[None, :]
        p = tl.exp(z)
        if FLOOR == "entropy":
            lane_s = moved(lane_m, lane_s, lane_t, shift)[0] + tl.sum(p, 0)
            lane_k, lane_t = moved(lane_m, lane_k, lane_t, shift)
            p = tl.where(kept, p, 0.0)
            lane_k += tl.sum(p, 0)
        else:
            lane_s, lane_t = moved(lane_m, lane_s, lane_t, shift)
            lane_s += tl.sum(p, 0)
        lane_t += tl.sum(tl.where(p > 0, p * z, 0.0), 0)
        lane_m = new_m
    new_m = tl.maximum(m, tl.max(lane_m, 0))
    shift = finite(new_m)
    if FLOOR == "entropy":
        lane_s = moved(lane_m, lane_s, lane_t, shift)[0]
        lane_k, lane_t = moved(lane_m, lane_k, lane_t, shift)
        s = moved(m, s, t, shift)[0]
        k, t = moved(m, k, t, shift)
    else:
        lane_s, lane_t = moved(lane_m, lane_s, lane_t, shift)
        s, t = moved(m, s, t, shift)
    inside = (target >= 0) & (target < num_columns)
    z_target = load_logits(raw_ptr, bias_ptr, target, inside, temperature, softcap, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE, "none", floor)
    s += tl.sum(lane_s, 0)
    t += tl.sum(lane_t, 0)
    if FLOOR == "all":  # the target always counts
        alone = tl.where(inside & (z_target < floor), z_target, float("-inf"))
        highest = tl.maximum(new_m, alone)
        shift = finite(highest)
        s, t = moved(new_m, s, t, shift)
        p = tl.exp(alone - shift)
        s += p
        t += tl.where(p > 0, p * (alone - shift), 0.0)
        new_m = highest
    if FLOOR == "entropy":
        k += tl.sum(lane_k, 0)
    else:
        k = s
    return new_m, s, t, tl.where(inside, z_target, z_y), k


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
    log_k,
    floor,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    FLOOR: tl.constexpr,
):
    """(12)-(13): write dL/d(raw) of one row. out may be the same memory.

    At the target the saved z_y is used: near certainty 1 - p_y cancels, and a recomputed z_y has another rounding than the one in m and s.
    """
    target = tl.where((target >= 0) & (target < num_columns), target, -1).to(tl.int32)
    for start in range(0, num_columns, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        mask = offs < num_columns
        z = load_logits(raw_ptr, bias_ptr, offs, mask, temperature, softcap, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE, FLOOR, floor)
        if FLOOR == "all":  # the target always counts
            z = tl.where(offs == target, z_y, z)
        centred = tl.where(offs == target, z_y, z) - m
        logp = centred - log_s
        p = tl.exp(logp)
        if FLOOR == "entropy":
            logq = centred - log_k
            q = tl.where(tl.where(offs == target, z_y, z) >= floor, tl.exp(logq), 0.0)
            d = tl.where(q > 0, -grad_entropy * q * (logq + entropy), 0.0)
        else:
            d = tl.where(p > 0, -grad_entropy * p * (logp + entropy), 0.0)
        d += grad_logprob * tl.where(offs == target, 1.0 - p, -p)
        if HAS_SOFTCAP:
            capped = tl.where(z == float("-inf"), 1.0, z * temperature / softcap)
            d *= 1.0 - capped * capped
        if HAS_TEMPERATURE:
            d /= temperature
        tl.store(out_ptr + offs, d.to(out_ptr.dtype.element_ty), mask=mask)
