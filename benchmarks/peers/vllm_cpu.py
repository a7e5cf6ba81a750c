"""The workload in vLLM's CPU build, in its own environment; prints rows as `stoa bench lora --json` does.

LoRA is off in mode base: turning it on slows base rows too. Adapters are loaded before the clock starts.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path

from workload import arguments

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{os.cpu_count() - 1}",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    args = arguments().parse_args()

    import numpy as np
    import vllm
    from vllm.lora.request import LoRARequest

    lora = args.mode != "base"
    options = {"enable_lora": True, "max_loras": 32, "max_lora_rank": 16, "max_cpu_loras": 33} if lora else {}
    engine = vllm.LLM(
        args.model,
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=32,
        enable_prefix_caching=False,
        **options,
    )
    folders = sorted(Path(args.adapters).iterdir())
    rng = np.random.default_rng(0)
    params = vllm.SamplingParams(
        max_tokens=args.output_tokens, temperature=0, ignore_eos=True, detokenize=False
    )

    def run(batch: int) -> float:
        prompts = [
            {"prompt_token_ids": rng.integers(3, 32000, args.prompt_tokens).tolist()} for _ in range(batch)
        ]
        chosen = [folders[i if args.mode == "distinct" else 0] for i in range(batch)]
        requests = [LoRARequest(f.name, folders.index(f) + 1, str(f)) for f in chosen] if lora else None
        started = time.perf_counter()
        outputs = engine.generate(prompts, params, lora_request=requests, use_tqdm=False)
        wall_s = time.perf_counter() - started
        assert all(len(o.outputs[0].token_ids) == args.output_tokens for o in outputs)
        return wall_s

    rows = []
    for batch in args.batch:
        run(batch)  # warms up and loads the adapters
        wall_s = statistics.median(run(batch) for _ in range(args.repeats))
        rows.append(
            {"mode": args.mode, "batch": batch, "output_tok_s": round(batch * args.output_tokens / wall_s, 1)}
        )
    print("\n" + json.dumps({"engine": f"vllm {vllm.__version__}", "rows": rows}))


if __name__ == "__main__":
    main()
