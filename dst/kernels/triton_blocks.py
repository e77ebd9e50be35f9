"""Kernels of products with groups of rows, in Triton: two, of which the first serves two passes.

Activations lie channels-last, and 16 adjacent channels of a position are met together: that is what a GPU copies at
once (16 bytes a thread), and the depth of an instruction of its tensor cores. No sum is split over programs that add to
the same place, so that bits are equal on repetition.
"""

import triton
import triton.language as tl

IS_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether kernels run on a CPU, by numpy (``TRITON_INTERPRET=1``): it multiplies no bfloat16, so they do it widened."""


@triton.jit(do_not_specialize=["positions"])
def gathered_product(
    x,
    w,
    y,
    bias,
    columns,
    starts,
    offsets,
    downs,
    rights,
    units,
    positions,
    inputs,
    outs,
    lists,
    K: tl.constexpr,
    N: tl.constexpr,
    W_K: tl.constexpr,
    W_N: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
    X_HIGH: tl.constexpr,
    X_WIDE: tl.constexpr,
    Y_HIGH: tl.constexpr,
    Y_WIDE: tl.constexpr,
    Y_TOP: tl.constexpr,
    Y_LEFT: tl.constexpr,
    Y_DOWN: tl.constexpr,
    Y_RIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_SCATTERED: tl.constexpr,
    IS_BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Multiply what each list of units gathers by the units' weights: outputs of a group, or gradients of 16 inputs.

    A list has N columns of ``y``, which ``columns`` names, and the units ``starts[list]`` up to the next. A unit takes
    K adjacent channels of ``x``, ``offsets`` (in 16 numbers) from those of a position, which are ``downs`` and
    ``rights`` from it (outside the image they are zero), and has K x N weights at ``units``. Positions are HIGH x WIDE
    an image, every DOWN-th and RIGHT-th of ``x``; in ``y`` they lie Y_DOWN and Y_RIGHT apart, the first Y_TOP and
    Y_LEFT from the corner. Programs of one block of positions follow each other, so that they meet in the cache.
    """
    own, block = tl.program_id(0) % lists, tl.program_id(0) // lists
    m = block * ROWS + tl.arange(0, ROWS)
    is_in = m < positions
    top, left = m // WIDE % HIGH * DOWN, m % WIDE * RIGHT
    base = ((m // (HIGH * WIDE) * X_HIGH + top) * X_WIDE + left) * inputs
    k, n = tl.arange(0, TOGETHER * K), tl.arange(0, N)
    total = tl.zeros((ROWS, N), tl.float32)
    begin, end = tl.load(starts + own), tl.load(starts + own + 1)
    for j in range(begin, end, TOGETHER):
        u = j + k // K
        is_one = u < end
        place = tl.load(offsets + u, mask=is_one, other=0) * 16 + k % K
        reached = is_in[:, None] & is_one[None, :]
        if IS_BOUNDED:
            at = top[:, None] + tl.load(downs + u, mask=is_one, other=0)[None, :]
            by = left[:, None] + tl.load(rights + u, mask=is_one, other=0)[None, :]
            reached = reached & (at >= 0) & (at < X_HIGH) & (by >= 0) & (by < X_WIDE)
        met = tl.load(x + base[:, None] + place[None, :], mask=reached, other=0.0)
        unit = tl.load(units + u, mask=is_one, other=0) * (K * N)
        at_w = unit[:, None] + (k % K)[:, None] * W_K + n[None, :] * W_N
        weight = tl.load(w + at_w, mask=is_one[:, None], other=0.0)
        if IS_INTERPRETED:
            met, weight = met.to(tl.float32), weight.to(tl.float32)
        total = tl.dot(met, weight, total, input_precision=PRECISION)
    column = own * N + n
    if IS_SCATTERED:
        column = tl.load(columns + column)
    if HAS_BIAS:
        total += tl.load(bias + column)[None, :].to(tl.float32)
    high, wide = m // WIDE % HIGH * Y_DOWN + Y_TOP, m % WIDE * Y_RIGHT + Y_LEFT
    to = ((m // (HIGH * WIDE) * Y_HIGH + high) * Y_WIDE + wide) * outs
    tl.store(y + to[:, None] + column[None, :], total.to(y.dtype.element_ty), mask=is_in[:, None])


@triton.jit(do_not_specialize=["positions", "share", "numbers"])
def weight_gradient(
    x,
    dy,
    dw,
    sets,
    groups,
    starts,
    offsets,
    downs,
    rights,
    positions,
    share,
    numbers,
    inputs,
    outs,
    K: tl.constexpr,
    N: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
    X_HIGH: tl.constexpr,
    X_WIDE: tl.constexpr,
    IS_BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Add up inputs x gradients of outputs over a share of the positions, for TOGETHER units of a group: K x N each.

    ``sets``: the first unit of each set; ``groups``: its group, whose N channels of ``dy`` lie together. Each share has
    an own part of ``dw``, of so many ``numbers``.
    """
    own, part = tl.program_id(0), tl.program_id(1)
    group = tl.load(groups + own)
    k, n = tl.arange(0, TOGETHER * K), tl.arange(0, N)
    u = tl.load(sets + own) + k // K
    is_one = u < tl.load(starts + group + 1)
    place = tl.load(offsets + u, mask=is_one, other=0) * 16 + k % K
    down = tl.load(downs + u, mask=is_one, other=0)
    right = tl.load(rights + u, mask=is_one, other=0)
    total = tl.zeros((TOGETHER * K, N), tl.float32)
    for begin in range(part * share, tl.minimum((part + 1) * share, positions), ROWS):
        m = begin + tl.arange(0, ROWS)
        is_in = m < positions
        sample, high, wide = m // (HIGH * WIDE), m // WIDE % HIGH, m % WIDE
        top, left = high * DOWN, wide * RIGHT
        base = ((sample * X_HIGH + top) * X_WIDE + left) * inputs
        reached = is_in[:, None] & is_one[None, :]
        if IS_BOUNDED:
            at, by = top[:, None] + down[None, :], left[:, None] + right[None, :]
            reached = reached & (at >= 0) & (at < X_HIGH) & (by >= 0) & (by < X_WIDE)
        met = tl.load(x + base[:, None] + place[None, :], mask=reached, other=0.0)
        gradient = tl.load(dy + m[:, None] * outs + group * N + n[None, :], mask=is_in[:, None], other=0.0)
        if IS_INTERPRETED:
            met, gradient = met.to(tl.float32), gradient.to(tl.float32)
        total = tl.dot(tl.trans(met), gradient, total, input_precision=PRECISION)
    tl.store(
        dw + part * numbers + u[:, None] * (K * N) + (k % K)[:, None] * N + n[None, :], total, mask=is_one[:, None]
    )
