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
def wait_for_inputs(EARLY: tl.constexpr):
    """What the kernel before this one wrote is there from here on. Every program of every kernel comes by, also one that
    has nothing to do: whoever waits for this kernel must have waited for the one before."""
    if EARLY:
        tl.extra.cuda.gdc_wait()


@triton.jit
def inputs_ready(EARLY: tl.constexpr):
    """The next kernel may begin, and this one goes on when its inputs are there."""
    next_may_begin(EARLY)
    wait_for_inputs(EARLY)


@triton.jit
def up_to_date(EARLY: tl.constexpr):
    """Drops what this multiprocessor's L1 cache holds: what was complete before is read from the L2 cache, as it is."""
    if EARLY:
        tl.inline_asm_elementwise(
            "fence.acq_rel.gpu; mov.b32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def prefetch(at):
    """Brings what lies at the pointers `at`, and some bytes around, to the L2 cache. Nobody waits for it."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """fp32 `x` in `dtype`, to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        x = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)
