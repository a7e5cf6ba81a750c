"""The workload in transformers + PEFT with a mixed batch; prints rows as `stoa bench lora --json` does.

The base is bf16, attention is torch's own (sdpa). In mode base no PEFT is loaded at all. On a CPU adapters stay fp32, as
PEFT loads them (bf16 ones are slower here). On a GPU each way of running it is tried for a few tokens first (`--way`:
adapters in fp32 or bf16; keys and values in a cache that grows, in one of full size, or that and torch.compile), and the
fastest is measured; a way that does not run is told, not counted.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from workload import arguments

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CACHES: dict[str, dict[str, Any]] = {
    "growing": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "compiled": {"cache_implementation": "static"},  # generate() compiles by itself then
}
EAGER = [f"{dtype}-{cache}" for dtype in DTYPES for cache in ("growing", "static")]
PROBE_TOKENS = 4


def main() -> None:
    parser = arguments()
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--way", action="append", choices=[f"{d}-{c}" for d in DTYPES for c in CACHES])
    args = parser.parse_args()
    ways = args.way or (["fp32-growing"] if args.device == "cpu" else EAGER)
    model, folders = load(args)
    rng = np.random.default_rng(0)

    def run(batch: int, way: str, new_tokens: int) -> float:
        if args.mode != "base":
            cast_adapters(model, DTYPES[way.partition("-")[0]])
        names = [folders[i % len(folders)].name for i in range(batch)]
        ids = torch.from_numpy(rng.integers(3, model.config.vocab_size, (batch, args.prompt_tokens)))
        return seconds(model, ids.to(args.device), names if args.mode != "base" else [], way, new_tokens)

    rows = []
    for batch in args.batch:
        way, tried = fastest(ways, lambda way, batch=batch: run(batch, way, PROBE_TOKENS))
        if not tried:
            run(batch, way, args.output_tokens)  # warms up; compiles for a cache of this size
        wall_s = statistics.median(run(batch, way, args.output_tokens) for _ in range(args.repeats))
        rows.append(
            {"mode": args.mode, "batch": batch, "output_tok_s": round(batch * args.output_tokens / wall_s, 1)}
            | ({"way": way, "tried_s": tried} if tried else {})
        )
    print("\n" + json.dumps({"engine": f"transformers {transformers.__version__} + peft", "rows": rows}))


def load(args: Any) -> tuple[Any, list[Path]]:
    """The model on its device, with the adapters that are asked for, and their folders."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    model = model.to(args.device).eval()
    folders = sorted(Path(args.adapters).iterdir())
    if args.mode != "base":
        import peft

        folders = folders[: max(args.batch) if args.mode == "distinct" else 1]
        model = peft.PeftModel.from_pretrained(model, folders[0], adapter_name=folders[0].name)
        for folder in folders[1:]:
            model.load_adapter(folder, adapter_name=folder.name)
        model.eval()
    return model, folders


def cast_adapters(model: Any, dtype: torch.dtype) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


@torch.inference_mode()
def seconds(model: Any, ids: torch.Tensor, names: list[str], way: str, new_tokens: int) -> float:
    more = {"adapter_names": names} if names else {}
    started = time.perf_counter()
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, eos_token_id=None,
        min_new_tokens=new_tokens, max_new_tokens=new_tokens, **CACHES[way.partition("-")[2]], **more,
    )  # fmt: skip
    if ids.device.type == "cuda":
        torch.cuda.synchronize()
    assert out.shape[1] == ids.shape[1] + new_tokens
    return time.perf_counter() - started


def fastest(ways: list[str], probe: Callable[[str], float]) -> tuple[str, dict[str, Any]]:
    """The way to go, and seconds of a few tokens, or an error, by way. One way alone is not tried."""
    if len(ways) == 1:
        return ways[0], {}
    tried: dict[str, Any] = {}
    for way in ways:
        try:
            probe(way)  # warms up
            tried[way] = round(probe(way), 4)
        except Exception as error:  # whatever transformers, PEFT and torch do not do together
            tried[way] = f"{type(error).__name__}: {str(error)[:200]}"
    ran = {way: took for way, took in tried.items() if isinstance(took, float)}
    if not ran:
        raise SystemExit(f"no way runs: {tried}")
    return min(ran, key=ran.__getitem__), tried


if __name__ == "__main__":
    main()
