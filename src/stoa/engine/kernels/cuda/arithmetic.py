"""What all kernels here calculate with: products that sum in fp32, and one rounding.

Triton's interpreter, which stands in for a GPU in tests, cannot multiply bf16 and cuts where it should round; under it
the same steps are taken in fp32. On a GPU nothing is left of that.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, acc):
    """acc + a b. a: [M, K], b: [K, N], acc: fp32 [M, N]; fp32 inputs are not cut to TF32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def next_may_begin(EARLY: tl.constexpr):
    """The next kernel may begin once all programs of this one have come by or ended."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def inputs_ready(EARLY: tl.constexpr):
    """What the kernel before this one wrote is there from here on. Every program of every kernel comes by, also one that
    has nothing to do: whoever waits for this kernel must have waited for the one before. The next kernel may begin."""
    next_may_begin(EARLY)
    if EARLY:
        tl.extra.cuda.gdc_wait()


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """fp32 `x` in `dtype`, to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        x = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)
