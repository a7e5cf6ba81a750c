"""A profile from datasheets alone: a step reads the weights once, multiplies every row by them, and reads the contexts.

n accelerators share the work (tensor parallel). With W bytes of weights that a step reads, p parameters a row is
multiplied by, κ bytes of keys and values of a token, h the hidden size and ℓ layers:
    fixed_s         = W / (n·bandwidth·e_b) + ℓ·(o + o_n)
    prompt_row_s    = 2·p / (n·flops·e_f) + 2·ℓ·2h·2(n-1)/n / link        (o_n and this term only where n > 1)
    decode_row_s    = prompt_row_s
    context_token_s = κ / (min(n, kv_heads)·bandwidth·e_b)
    kv_tokens       = (n·(memory·u - reserve) - weights) / κ
In each layer two sums go over all accelerators; each moves 2(n-1)/n of a row's 2h bytes over the link (a ring).

The parts are added where a true roofline would take the greater: measured steps behave like sums, as loads and
arithmetic overlap only in part, attention and sampling not at all. A row that decodes costs what a prompt's row costs:
measured slopes over the batch agree. A prompt's attention to itself is left out: it is small up to some 4,000 tokens.

The constants are fitted once to the Splitwise and Helix tables; docs/planner-throughput.md has the errors.
"""

from __future__ import annotations

from dataclasses import dataclass

from stoa.errors import ConfigError
from stoa.fleet.policies.profile import Profile
from stoa.planner.accelerators import Accelerator
from stoa.planner.profiles.fitted import Limits
from stoa.planner.profiles.models import ModelShape

_GIB = 1 << 30
_WITH_LINK = {
    "V100",
    "V100-32GB",
    "A100-40GB",
    "A100-80GB",
    "H100",
    "H200",
    "B200",
    "MI300X",
}  # NVLink, Infinity Fabric
_LOW_POWER_W = 100.0


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What of a datasheet is reached.

    `arithmetic_low`: of boards of some 70 W (T4, L4), which cannot keep their clock under load. `layer_s`: launching a
    layer's kernels from Python, and what is between them; `layer_sum_s`: latency of a layer's two sums. `link_gb_s`,
    `bus_gb_s`: what such sums get from NVLink and the like, and from PCIe. `memory`: what engines are set to use by
    default, less a reserve for what a step computes."""

    bandwidth: float = 0.93
    arithmetic: float = 0.78
    arithmetic_low: float = 0.45
    layer_s: float = 180e-6
    layer_sum_s: float = 135e-6
    link_gb_s: float = 100.0
    bus_gb_s: float = 4.0
    memory: float = 0.9
    reserve_gib: float = 1.0


MEASURED = Efficiency()


def roofline(
    shape: ModelShape,
    accelerator: Accelerator,
    count: int = 1,
    limits: Limits | None = None,
    efficiency: Efficiency = MEASURED,
) -> Profile:
    """`limits.kv_tokens` counts only where it is less than what memory has. ConfigError if the model does not fit."""
    limits = limits or Limits()
    e, n = efficiency, count
    kv_tokens = kv_tokens_of(shape, accelerator, n, efficiency)
    bandwidth = accelerator.bandwidth_gb_s * 1e9
    fixed_s = shape.in_step * shape.weight_bytes / (n * bandwidth * e.bandwidth) + shape.layers * (
        e.layer_s + (e.layer_sum_s if n > 1 else 0.0)
    )
    reached = e.arithmetic_low if accelerator.power_w < _LOW_POWER_W else e.arithmetic
    link = (e.link_gb_s if accelerator.name in _WITH_LINK else e.bus_gb_s) * 1e9
    moved_bytes = 2 * shape.layers * 2 * (n - 1) / n * 2 * shape.hidden
    row_s = 2 * shape.in_row / (n * accelerator.bf16_tflops * 1e12 * reached) + moved_bytes / link
    return Profile(
        name=f"{shape.name} on {n} x {accelerator.name}, from datasheets",
        fixed_s=fixed_s, prompt_row_s=row_s, decode_row_s=row_s,
        context_token_s=shape.kv_token_bytes / (min(n, shape.kv_heads) * bandwidth * e.bandwidth),
        max_num_seqs=limits.max_num_seqs, max_batch_tokens=limits.max_batch_tokens,
        kv_tokens=min(kv_tokens, limits.kv_tokens),
    )  # fmt: skip


def kv_tokens_of(
    shape: ModelShape, accelerator: Accelerator, count: int = 1, efficiency: Efficiency = MEASURED
) -> int:
    """Tokens of context in what the weights leave of memory. With more accelerators than heads of keys and values, each
    of these is kept more than once. ConfigError says how many GiB are missing."""
    if count < 1:
        raise ConfigError(f"{count} accelerators; accepted: 1 or more", param="accelerators")
    usable_gib = count * (accelerator.memory_gib * efficiency.memory - efficiency.reserve_gib)
    left_gib = usable_gib - shape.weights_gib
    copies = max(1.0, count / shape.kv_heads)
    tokens = int(left_gib * _GIB / (shape.kv_token_bytes * copies))
    if tokens < 1:
        raise ConfigError(
            f"{shape.name} does not fit on {count} x {accelerator.name}: its weights take {shape.weights_gib:.1f} GiB, and "
            f"{max(0.0, usable_gib):.1f} of {count * accelerator.memory_gib:.0f} GiB are usable: {max(0.1, -left_gib):.1f} "
            "GiB are missing; accepted: more accelerators, larger ones, or fewer bytes a weight",
            param="throughput",
        )
    return tokens
