"""What rounding the base weights costs: perplexity on held-out real text, by quantization.

    python benchmarks/perplexity.py --data ../shared/data --out docs/results/perplexity.json

Nothing is downloaded: a small Llama is first trained here on GSM8K's training questions with answers and on E2E's
validation pairs, then asked about their test sets. The folder --data needs finetune/gsm8k_{train,test}.jsonl.gz and
finetune/e2e_nlg/{valid,test}.txt.gz. Training is seeded, but the clock ends it: another machine gets further or less
far. The trained model stays in --folder and serves the next run.

Every figure comes out of the engine's own decoder and kernels; in fp32 it must agree with transformers.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from stoa.bench.machine import machine_facts
from stoa.config import load_settings
from stoa.engine.kernels import load_kernels
from stoa.engine.kernels.interface import AttentionRows
from stoa.engine.model.config import read_model_config
from stoa.engine.model.decoder import Decoder

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {  # learned from, measured on
    "gsm8k": ("finetune/gsm8k_train.jsonl.gz", "finetune/gsm8k_test.jsonl.gz"),
    "e2e": ("finetune/e2e_nlg/valid.txt.gz", "finetune/e2e_nlg/test.txt.gz"),
}
VARIANTS = (  # weights, bits, compute dtype; the first is what the others are compared with
    ("none", 16, torch.float32),
    ("none", 16, torch.bfloat16),
    ("int8", 8, torch.bfloat16),
    ("int4", 4, torch.bfloat16),
)
END = "<|end|>"
VOCAB = 2048
CONTEXT = 256
BLOCK = 16
TRAIN_SEQS = 8
EVAL_SEQS = 4
PEAK_LR = 2e-3
AGREE = 1e-3  # relative, fp32 perplexity against transformers


@dataclass(frozen=True)
class Cost:
    """Increase of perplexity over the reference, and the standard error of that, in percent."""

    increase_percent: float
    se_percent: float


def read_documents(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        if path.name.endswith(".jsonl.gz"):
            return [f"{row['question']}\n{row['answer']}" for row in map(json.loads, lines)]
        return [line.strip().replace("||", "\n") for line in lines]


def encode(tokenizer: Tokenizer, documents: list[str]) -> Tensor:
    """int64 [n]: the documents in a seeded order, an end token after each.

    Shuffled because E2E has references of one restaurant next to each other, which could be copied.
    """
    order = list(documents)
    random.Random(0).shuffle(order)
    end = tokenizer.token_to_id(END)
    return torch.tensor([i for row in tokenizer.encode_batch(order) for i in (*row.ids, end)])


def cut(ids: Tensor, tokens: int) -> Tensor:
    """[chunks, CONTEXT + 1]: each chunk's inputs and, one further, what they should predict."""
    return ids[: tokens + 1].unfold(0, CONTEXT + 1, CONTEXT)


# -- the model


def train_tokenizer(documents: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[END], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def train(folder: Path, data: Path, minutes: float) -> None:
    """Writes a Hugging Face folder; `training.json` last, as the sign that it is whole."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    documents = [d for learned, _ in TEXTS.values() for d in read_documents(data / learned)]
    tokenizer = train_tokenizer(documents)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=320, intermediate_size=896, num_hidden_layers=6,
        num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.token_to_id(END),
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    facts = fit(model, encode(tokenizer, documents), minutes)
    model.save_pretrained(folder)
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def fit(model: LlamaForCausalLM, ids: Tensor, minutes: float) -> dict[str, Any]:
    """Random windows of `ids` until the time is up; the learning rate falls with the time left."""
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.1)
    half = bool({"avx512_bf16", "amx_bf16"} & set(machine_facts()["instruction_sets"]))
    windows = ids.unfold(0, CONTEXT, 1)
    started, step, losses = time.monotonic(), 0, []
    while (spent := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent))
            group["lr"] = PEAK_LR * min(1.0, (step + 1) / 50) * cosine
        batch = windows[torch.randint(len(windows), (TRAIN_SEQS,), generator=rng)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        step += 1
        if step % 50 == 0:
            print(f"step {step:5d}  loss {np.mean(losses[-50:]):.4f}  {spent:4.0%}", flush=True)
    seen = step * TRAIN_SEQS * CONTEXT
    return {
        "minutes": minutes, "steps": step, "tokens": seen, "epochs": round(seen / len(ids), 2),
        "loss": float(np.mean(losses[-50:])),
    }  # fmt: skip


# -- the figures


def whole_chunks(count: int) -> AttentionRows:
    """`count` sequences of CONTEXT new tokens each, their pages one after the other."""
    positions = np.tile(np.arange(CONTEXT, dtype=np.int32), count)
    return AttentionRows(
        query_start=np.arange(count + 1, dtype=np.int32) * CONTEXT,
        context_len=np.full(count, CONTEXT, dtype=np.int32),
        block_table=np.arange(count * CONTEXT // BLOCK, dtype=np.int32).reshape(count, -1),
        positions=positions,
        slots=np.arange(count * CONTEXT, dtype=np.int64),
    )


class EngineScorer:
    """The engine's decoder on whole chunks."""

    def __init__(self, folder: Path, dtype: torch.dtype, bits: int, threads: int) -> None:
        config = read_model_config(folder)
        kernels = load_kernels(dtype, threads=threads)
        self.kernels_name = kernels.name
        self.decoder = Decoder(config, kernels, folder, CONTEXT, bits=bits)
        self.layout = kernels.kv_layout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK)
        self.kv = torch.zeros(EVAL_SEQS * CONTEXT // BLOCK * self.layout.page_bytes, dtype=torch.uint8)

    def logits(self, inputs: Tensor) -> Tensor:
        """inputs: [n <= EVAL_SEQS, CONTEXT] -> [n, CONTEXT, V] fp32."""
        rows = whole_chunks(len(inputs))
        hidden = self.decoder.forward(inputs.flatten(), rows, None, self.kv, self.layout)
        return self.decoder.logits(hidden, None).unflatten(0, inputs.shape)


class TransformersScorer:
    """The same from transformers, fp32."""

    def __init__(self, folder: Path) -> None:
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=inputs).logits
        return logits


@torch.inference_mode()
def surprise(scorer: EngineScorer | TransformersScorer, chunks: Tensor) -> Tensor:
    """chunks: [n, CONTEXT + 1] -> fp64 [n]: mean negative log-likelihood of each one's tokens, in nats."""
    found = []
    for some in chunks.split(EVAL_SEQS):
        logits = scorer.logits(some[:, :-1].contiguous())
        nll = F.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="none")
        found.append(nll.view(len(some), CONTEXT).double().mean(1))
    return torch.cat(found)


def perplexity(nll: Tensor) -> float:
    return math.exp(nll.mean().item())


def cost(nll: Tensor, reference: Tensor) -> Cost:
    """Chunk by chunk, so that how hard the text is cancels out."""
    more = nll - reference
    increase = math.exp(more.mean().item())
    se = more.std().item() / math.sqrt(len(more))
    return Cost(100 * (increase - 1), 100 * increase * se)


def measure(folder: Path, texts: dict[str, Tensor], threads: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    reference: dict[str, Tensor] = {}
    for weights, bits, dtype in VARIANTS:
        scorer = EngineScorer(folder, dtype, bits, threads)
        row: dict[str, Any] = {
            "weights": weights, "dtype": str(dtype).removeprefix("torch."), "kernels": scorer.kernels_name,
            "weight_mib": scorer.decoder.weight_bytes / (1 << 20),
        }  # fmt: skip
        for name, chunks in texts.items():
            nll = surprise(scorer, chunks)
            against = cost(nll, reference.setdefault(name, nll))
            row[name] = {"perplexity": perplexity(nll), **vars(against)}
        rows.append(row)
        print(line(row, list(texts)), flush=True)
    return rows


def line(row: dict[str, Any], names: list[str]) -> str:
    cells = [f"{row['weights']:5s} {row['dtype']:9s} {row['weight_mib']:6.2f} MiB"]
    for name in names:
        got = row[name]
        cells.append(
            f"{name} {got['perplexity']:8.4f} ({got['increase_percent']:+.3f} % ± {got['se_percent']:.3f})"
        )
    return "   ".join(cells)


def disagreement(folder: Path, texts: dict[str, Tensor], reference: dict[str, Any]) -> dict[str, float]:
    """Relative distance of the engine's fp32 perplexity from that of transformers, by text."""
    scorer = TransformersScorer(folder)
    theirs = {name: perplexity(surprise(scorer, chunks)) for name, chunks in texts.items()}
    return {name: abs(reference[name]["perplexity"] / ppl - 1) for name, ppl in theirs.items()}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--folder", type=Path, help="where the trained model is, or goes")
    parser.add_argument("--minutes", type=float, default=10.0, help="time to train, if it is not there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=100_000, help="of each held-out text, at most")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    missing = [
        str(args.data / file) for pair in TEXTS.values() for file in pair if not (args.data / file).exists()
    ]
    if missing:
        parser.exit(2, f"no text to measure on: {missing[0]} does not exist; name its folder with --data\n")
    if args.tokens < 2 * CONTEXT:
        parser.error(f"--tokens must be at least {2 * CONTEXT}")
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    disable_progress_bar()
    folder = args.folder or load_settings().home_path / "cache" / "bench" / "perplexity"
    if not (folder / "training.json").exists():
        train(folder, args.data, args.minutes)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    held_out = {name: read_documents(args.data / file) for name, (_, file) in TEXTS.items()}
    texts = {name: cut(encode(tokenizer, documents), args.tokens) for name, documents in held_out.items()}
    rows = measure(folder, texts, args.threads)
    gaps = disagreement(folder, texts, rows[0])
    print("fp32 against transformers, relative: " + ", ".join(f"{n} {g:.1e}" for n, g in gaps.items()))
    if args.out:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
        )
        report = {
            "machine": machine_facts(),
            "commit": commit.stdout.strip(),
            "command": "python benchmarks/perplexity.py " + " ".join(sys.argv[1:]),
            "training": json.loads((folder / "training.json").read_text()),
            "tokens": {name: len(chunks) * CONTEXT for name, chunks in texts.items()},
            "against_transformers": gaps,
            "rows": rows,
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    if max(gaps.values()) > AGREE:
        sys.exit(f"the fp32 perplexity is further than {AGREE:g} from that of transformers")


if __name__ == "__main__":
    main()
