"""What every rank of an engine does before its first step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from stoa.engine.adapters.peft import load_adapter
from stoa.engine.config import BITS, EngineConfig
from stoa.engine.kernels import default_threads, load_kernels
from stoa.engine.kernels.interface import Kernels, KVLayout, LoraPair
from stoa.engine.limits import available_bytes, check_weights, device_bytes
from stoa.engine.model.decoder import Decoder
from stoa.engine.model.rehearsal import rehearse
from stoa.engine.parallel.shards import Shards
from stoa.engine.request import AdapterRef

Pairs = dict[tuple[int, str], LoraPair]
DTYPES = {"auto": torch.bfloat16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Loaded:
    """A rank's weights, and how its pages are laid out."""

    kernels: Kernels
    decoder: Decoder
    layout: KVLayout

    def rehearse(self, config: EngineConfig) -> None:
        """With all ranks at once. On a CPU nothing has to be compiled, measured or taken."""
        if self.kernels.device.type != "cpu":
            rehearse(self.decoder, config.step_rows, config.max_num_seqs, self.layout)
        if self.kernels.device.type == "cuda":
            torch.cuda.empty_cache()  # what was needed for a moment is free for the pool


def load(config: EngineConfig, shards: Shards, max_model_len: int) -> Loaded:
    """Raises UnsupportedModel, ConfigError, OutOfMemory."""
    folder = Path(config.model)
    cache = Path(config.weights_cache) if config.weights_cache else None
    threads = rank_threads(config)
    kernels = load_kernels(
        DTYPES[config.dtype],
        device=config.device,
        threads=threads or None,
        isa=config.isa,
        cache=cache,
    )
    if kernels.device.type != "cpu":
        check_weights(
            config,
            shards.local,
            kernels.dtype.itemsize,
            device_bytes(kernels.device),
            shards.model.vocab_size,
        )
    torch.set_num_threads(threads or default_threads())
    decoder = Decoder(
        shards.model, kernels, folder, max_model_len, bits=BITS[config.quantize], cache=cache, shards=shards
    )
    if kernels.owns_threads:
        # Loading is done: what torch still does must not compete with the kernels.
        torch.set_num_threads(1)
    local = shards.local
    layout = kernels.kv_layout(local.num_layers, local.num_kv_heads, local.head_dim, config.block_size)
    return Loaded(kernels, decoder, layout)


def rank_threads(config: EngineConfig) -> int:
    """Of each rank; ranks share the cores. 0: all cores."""
    if config.tensor_parallel == 1:
        return config.threads
    return max(1, (config.threads or default_threads()) // config.tensor_parallel)


def host_adapter_bytes(config: EngineConfig) -> int:
    """Of each rank. Ranks map the same files, which lie in memory once."""
    return config.host_adapter_bytes or available_bytes() // 8


def read_shard(ref: AdapterRef, shards: Shards, max_rank: int) -> Pairs:
    """What a rank holds of an adapter. Raises a StoaError also when the folder no longer holds what `ref.id` says."""
    content_id = ref.id.rpartition(":")[2]
    return shards.pairs(load_adapter(Path(ref.path), content_id, shards.model, max_rank=max_rank))
