"""The workload in transformers + PEFT with a mixed batch; prints rows as `stoa bench lora --json` does.

The base is bf16; adapters stay fp32, as PEFT loads them (bf16 ones are slower here). In mode base no PEFT is
loaded at all.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from workload import arguments


def main() -> None:
    args = arguments().parse_args()
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    folders = sorted(Path(args.adapters).iterdir())
    if args.mode != "base":
        import peft

        folders = folders[: max(args.batch) if args.mode == "distinct" else 1]
        model = peft.PeftModel.from_pretrained(model, folders[0], adapter_name=folders[0].name)
        for folder in folders[1:]:
            model.load_adapter(folder, adapter_name=folder.name)
        model.eval()
    rng = np.random.default_rng(0)

    @torch.inference_mode()
    def run(batch: int) -> float:
        ids = torch.from_numpy(rng.integers(3, 32000, (batch, args.prompt_tokens)))
        names = (
            {}
            if args.mode == "base"
            else {"adapter_names": [folders[i % len(folders)].name for i in range(batch)]}
        )
        started = time.perf_counter()
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, eos_token_id=None,
            min_new_tokens=args.output_tokens, max_new_tokens=args.output_tokens, **names,
        )  # fmt: skip
        assert out.shape[1] == args.prompt_tokens + args.output_tokens
        return time.perf_counter() - started

    rows = []
    for batch in args.batch:
        run(batch)
        wall_s = statistics.median(run(batch) for _ in range(args.repeats))
        rows.append(
            {"mode": args.mode, "batch": batch, "output_tok_s": round(batch * args.output_tokens / wall_s, 1)}
        )
    print("\n" + json.dumps({"engine": f"transformers {transformers.__version__} + peft", "rows": rows}))


if __name__ == "__main__":
    main()
