"""How an engine is set up. One engine is one process with one base model."""

from __future__ import annotations

from typing import Literal

import msgspec

Device = Literal["cpu", "cuda"]
Dtype = Literal["auto", "bf16", "fp32"]
Quantize = Literal["none", "int8", "int4"]
Fairness = Literal["cost", "tokens", "off"]

BITS: dict[Quantize, int] = {"none": 16, "int8": 8, "int4": 4}


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Travels as JSON from the gateway to the engine process it starts.

    Sizes in bytes; 0 means "choose from the machine's memory".
    """

    model: str  # folder (hub ids are resolved to a folder before)
    dtype: Dtype = "auto"  # auto: bf16
    quantize: Quantize = "none"  # of the base weights; int4 keeps the output head in int8
    device: Device = "cpu"
    tensor_parallel: int = 1  # ranks that share the model: GPUs, or processes
    threads: int = 0  # of all ranks together; 0: all cores
    max_model_len: int = 0  # tokens per sequence; 0: the model's own limit
    max_num_seqs: int = 64  # sequences in one step
    max_batch_tokens: int = 0  # rows in one step: the prefill chunk; 0: 512, on a GPU 2048
    block_size: int = 16  # tokens in a KV block
    pool_bytes: int = 0  # KV blocks and resident adapters together, of each rank
    host_adapter_bytes: int = 0  # adapters kept in host memory behind the pool
    max_lora_rank: int = 512
    prefix_caching: bool = True
    speculation: bool = True  # prompt lookup, where it pays; changes no token
    fairness: Fairness = "cost"  # what projects' shares are counted in; off: first come, first served
    step_target_ms: float = 0.0  # steps shared with projects beyond their share; 0: three times an empty one
    ttft_target_ms: float = 0.0  # of first tokens: who can meet it goes before who can't; 0: as they come
    isa: str | None = None  # force a lower instruction set path
    weights_cache: str = ""  # folder where packed weights are kept for the next start; "": nowhere

    @property
    def step_rows(self) -> int:
        """Rows of the largest step."""
        return step_rows(self.device, self.max_batch_tokens)


def step_rows(device: Device, asked: int) -> int:
    """`max_batch_tokens` as it counts: 0 chooses."""
    return asked or {"cpu": 512, "cuda": 2048}[device]
