"""What an engine can hold: its context, its pool, and which requests fit."""

from __future__ import annotations

from pathlib import Path

import torch

from stoa.engine.config import BITS, EngineConfig
from stoa.engine.kernels.quantize import GROUP
from stoa.engine.model.config import ModelConfig
from stoa.engine.request import GenerationRequest
from stoa.engine.sampling import check_params
from stoa.errors import ConfigError, ContextLengthExceeded, InvalidRequest, OutOfMemory

MAX_CHOICES = 128
_GIB = 1 << 30


def context_limit(config: EngineConfig, model: ModelConfig) -> int:
    """Tokens of a sequence: as asked, else as many as the model knows. Raises ConfigError."""
    asked, own = config.max_model_len, model.max_position
    if asked > own:
        raise ConfigError(f"max_model_len is {asked}; the model's own limit is {own}", param="max_model_len")
    return asked or own


def check_weights(
    config: EngineConfig, model: ModelConfig, itemsize: int, available: int, vocab_size: int = 0
) -> None:
    """Raises OutOfMemory if the weights, `itemsize` bytes each unless quantized, cannot fit `available` bytes.
    `model`, `vocab_size`: as for `weight_bytes`."""
    bytes_as = {name: weight_bytes(model, itemsize, bits, vocab_size) for name, bits in BITS.items()}
    need = bytes_as[config.quantize]
    if need < available:
        return
    fitting = [f"{name} ({_gib(size)})" for name, size in bytes_as.items() if size < available]
    way_out = (
        f"set quantize to {' or '.join(fitting)}"
        if fitting
        else ("take a larger GPU or a smaller model, or more GPUs (tensor_parallel)")
    )
    raise OutOfMemory(
        f"the weights need {_gib(need)} with quantize {config.quantize!r}, {config.device} has "
        f"{_gib(available)} free; {way_out}",
        param="quantize",
    )


def weight_bytes(model: ModelConfig, itemsize: int, bits: int, vocab_size: int = 0) -> int:
    """Of packed linears, output head and embedding table; see `quantize.py` for what 8 and 4 bits are. `vocab_size`: of the
    whole table, where `model` is what one rank sees of it."""

    def stored(elements: int, bits: int) -> int:
        return elements * itemsize if bits == 16 else elements * bits // 8 + elements // GROUP * 4

    shapes = model.linear_shapes()
    vocab, hidden = shapes.pop("lm_head")
    layers = sum(n * k for n, k in shapes.values()) * model.num_layers
    return (
        stored(layers, bits)
        + stored(vocab * hidden, max(bits, 8))
        + (vocab_size or vocab) * hidden * itemsize
    )


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


def fit_pool(config: EngineConfig, max_model_len: int, page_bytes: int, available: int) -> tuple[int, int]:
    """Pages of the pool, and the context that they hold: shorter than `max_model_len` if nobody asked for
    that. `available`: bytes that the pool may take by itself. Raises OutOfMemory if somebody did and the pool is too
    small."""
    longest = -(-max_model_len // config.block_size)
    most = longest * config.max_num_seqs + 4 * _GIB // page_bytes  # all the KV that can be used, and adapters
    pages = (config.pool_bytes or min(available, most * page_bytes)) // page_bytes
    if pages >= longest:
        return pages, max_model_len
    if config.max_model_len:
        raise OutOfMemory(
            f"one sequence of max_model_len {max_model_len} needs {longest * page_bytes} bytes, the pool has "
            f"{pages * page_bytes}; raise pool_gib or lower max_model_len",
            param="pool_gib",
        )
    return pages, max(pages, 1) * config.block_size


def pool_share(device: torch.device, ranks: int = 1) -> int:
    """Bytes that a pool may take unasked: much of a GPU, which is one rank's alone, and a third of free memory, which
    ranks share."""
    return device_bytes(device) * 9 // 10 if device.type == "cuda" else available_bytes() // 3 // ranks


def device_bytes(device: torch.device) -> int:
    """Free memory there."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else available_bytes()


def available_bytes() -> int:
    """Host memory that can be taken without swapping (Linux MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 4 * _GIB


def check_request(request: GenerationRequest, vocab_size: int, max_model_len: int, *, has_text: bool) -> None:
    """Raises InvalidRequest or ContextLengthExceeded for what can never run; `has_text`: there is a tokenizer."""
    check_params(request.params, vocab_size)
    prompt = len(request.prompt_token_ids)
    if not prompt:
        raise InvalidRequest("the prompt is empty; give at least one token", param="prompt")
    if not 1 <= request.n <= MAX_CHOICES:
        raise InvalidRequest(f"n is {request.n}; accepted: 1 to {MAX_CHOICES}", param="n")
    bad = next((t for t in request.prompt_token_ids if not 0 <= t < vocab_size), None)
    if bad is not None:
        raise InvalidRequest(f"token id {bad} is outside the vocabulary of {vocab_size}", param="prompt")
    begun = max((len(tokens or ()) for tokens in request.so_far), default=0)
    if prompt + begun > max_model_len - (request.pooling is None):  # a token must fit behind it
        raise ContextLengthExceeded(
            f"This model's maximum context length is {max_model_len} tokens, the prompt has {prompt + begun}",
            param="prompt",
        )
    if request.so_far:
        _check_so_far(request, vocab_size)
    if not has_text and (request.params.stop or request.params.grammar):
        raise InvalidRequest(
            "stop strings and grammars need a tokenizer.json in the model folder", param="stop"
        )


def _check_so_far(request: GenerationRequest, vocab_size: int) -> None:
    going_on = [tokens for tokens in request.so_far if tokens is not None]
    if len(request.so_far) != request.n or not going_on or request.pooling is not None:
        raise InvalidRequest("so_far wants an entry for each choice, one of them not ended", param="so_far")
    if any(len(tokens) >= request.params.max_tokens for tokens in going_on):
        raise InvalidRequest("a choice in so_far has all its tokens; it has ended", param="so_far")
    if any(not 0 <= token < vocab_size for tokens in going_on for token in tokens):
        raise InvalidRequest(f"a token in so_far is outside the vocabulary of {vocab_size}", param="so_far")
