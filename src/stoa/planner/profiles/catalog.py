"""Shapes of well-known models, as their public config.json files give them, with weights in bf16."""

from __future__ import annotations

import re

from stoa.errors import ConfigError
from stoa.planner.profiles.models import ModelShape, decoder

_Row = tuple[str, int, int, int, int, int, int, int, bool]
_DENSE: tuple[_Row, ...] = (
    # name, layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, tied embeddings
    ("llama-2-7b", 32, 4096, 11_008, 32, 32, 128, 32_000, False),
    ("llama-2-13b", 40, 5120, 13_824, 40, 40, 128, 32_000, False),
    ("llama-2-70b", 80, 8192, 28_672, 64, 8, 128, 32_000, False),
    ("llama-30b", 60, 6656, 17_920, 52, 52, 128, 32_000, False),
    ("llama-3-8b", 32, 4096, 14_336, 32, 8, 128, 128_256, False),
    ("llama-3-70b", 80, 8192, 28_672, 64, 8, 128, 128_256, False),
    ("llama-3.2-1b", 16, 2048, 8192, 32, 8, 64, 128_256, True),
    ("llama-3.2-3b", 28, 3072, 8192, 24, 8, 128, 128_256, True),
    ("mistral-7b", 32, 4096, 14_336, 32, 8, 128, 32_000, False),
    ("qwen2.5-0.5b", 24, 896, 4864, 14, 2, 64, 151_936, True),
    ("qwen2.5-1.5b", 28, 1536, 8960, 12, 2, 128, 151_936, True),
    ("qwen2.5-3b", 36, 2048, 11_008, 16, 2, 128, 151_936, True),
    ("qwen2.5-7b", 28, 3584, 18_944, 28, 4, 128, 152_064, False),
    ("qwen2.5-14b", 48, 5120, 13_824, 40, 8, 128, 152_064, False),
    ("qwen2.5-32b", 64, 5120, 27_648, 40, 8, 128, 152_064, False),
    ("qwen2.5-72b", 80, 8192, 29_568, 64, 8, 128, 152_064, False),
    ("qwen3-0.6b", 28, 1024, 3072, 16, 8, 128, 151_936, True),
    ("qwen3-1.7b", 28, 2048, 6144, 16, 8, 128, 151_936, True),
    ("qwen3-4b", 36, 2560, 9728, 32, 8, 128, 151_936, True),
    ("qwen3-8b", 36, 4096, 12_288, 32, 8, 128, 151_936, False),
    ("qwen3-14b", 40, 5120, 17_408, 40, 8, 128, 151_936, False),
    ("qwen3-32b", 64, 5120, 25_600, 64, 8, 128, 151_936, False),
)
_EXPERTS = (
    # ..., vocab, experts, experts a token is sent to
    ("mixtral-8x7b", 32, 4096, 14_336, 32, 8, 128, 32_000, 8, 2),
    ("qwen3-30b-a3b", 48, 2048, 768, 32, 4, 128, 151_936, 128, 8),
)
_SAME = {  # other releases of the same shape
    "llama-1-30b": "llama-30b", "llama-3.1-8b": "llama-3-8b", "llama-3.1-70b": "llama-3-70b", "llama-3.3-70b": "llama-3-70b",
}  # fmt: skip
_DRESS = re.compile(
    r"meta|instruct|chat|base|hf|it|v\d+(\.\d+)?|\d{4}"
)  # parts of a name that change no size


def _models() -> tuple[ModelShape, ...]:
    dense = (
        decoder(
            name, layers=layers, hidden=hidden, intermediate=intermediate, heads=heads, kv_heads=kv_heads,
            head_dim=head_dim, vocab=vocab, tied=tied,
        )
        for name, layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, tied in _DENSE
    )  # fmt: skip
    sparse = (
        decoder(
            name, layers=layers, hidden=hidden, intermediate=intermediate, heads=heads, kv_heads=kv_heads,
            head_dim=head_dim, vocab=vocab, experts=experts, experts_used=used,
        )
        for name, layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, experts, used in _EXPERTS
    )  # fmt: skip
    return (*dense, *sparse)


MODELS = _models()
_BY_NAME = {model.name: model for model in MODELS}


def find_model(name: str) -> ModelShape:
    """By name or Hugging Face id, in any case: `meta-llama/Llama-3.1-8B-Instruct`. ConfigError with the known names."""
    bare = re.sub(r"^(llama|qwen)[-_ ]?(?=\d)", r"\1-", name.rsplit("/", 1)[-1].lower().removeprefix("meta-"))
    bare = bare.replace("qwen-", "qwen")
    key = "-".join(part for part in re.split(r"[-_ ]", bare) if part and not _DRESS.fullmatch(part))
    found = _BY_NAME.get(_SAME.get(key, key))
    if found is None:
        known = ", ".join(_BY_NAME)
        raise ConfigError(
            f"the shape of a model {name!r} is not known; give its config.json or its facts, or one of {known}",
            param="model",
        )
    return found
