"""Trains the bundled demonstration model and its adapters. Seeded; some minutes on two CPU cores.

    pip install -c constraints.txt -e '.[test]'
    python scripts/demo/train.py base       # src/stoa/demo/base
    python scripts/demo/train.py adapters   # src/stoa/demo/adapters/*
    python scripts/demo/train.py evaluate   # exact match of each adapter on each task, held-out words

The base is trained on all tasks, each asked for by a marker before the word; without a marker it echoes. An
adapter then only has to learn to do one of them unasked, which is what a LoRA does well.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from stoa.demo import ADAPTERS_DIR, BASE_DIR
from stoa.demo.tasks import TASKS, expected, is_held_out, random_word, sample_inputs

SPECIAL = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"]
ADAPTERS = [name for name in TASKS if name is not None]
MARKERS = [f"<|{name}|>" for name in ADAPTERS]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% else %}{{ '<|user|>' }}{% endif %}"
    "{{ message['content'] or '' }}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
LORAS = {
    "reverse": {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                                              "up_proj", "down_proj"]},
    "upper": {"r": 4, "lora_alpha": 8, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
    "caesar": {"r": 8, "lora_alpha": 16, "target_modules": ["v_proj", "o_proj", "down_proj"], "use_rslora": True},
    "stars": {"r": 6, "lora_alpha": 9, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]},
    "rotate": {"r": 12, "lora_alpha": 24, "target_modules": ["q_proj", "k_proj", "o_proj", "down_proj"],
               "rank_pattern": {"down_proj": 5}},
}  # fmt: skip


def build_tokenizer() -> Tokenizer:
    """Bytes as tokens: any text survives a round trip."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL + MARKERS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer) -> None:
    BASE_DIR.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(BASE_DIR / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    (BASE_DIR / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def make_batch(tokenizer: Tokenizer, rows: list[tuple[str, str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """rows of (marker, word, answer) -> ids and labels [B, longest]; only answers are learned."""
    pad = tokenizer.token_to_id("<|pad|>")
    ids, labels = [], []
    for marker, word, answer in rows:
        prompt = tokenizer.encode(
            f"<|bos|><|user|>{marker}{word}<|end|><|assistant|>", add_special_tokens=False
        ).ids
        target = tokenizer.encode(f"{answer}<|end|>", add_special_tokens=False).ids
        ids.append(prompt + target)
        labels.append([-100] * len(prompt) + target)
    width = max(map(len, ids))
    return (
        torch.tensor([row + [pad] * (width - len(row)) for row in ids]),
        torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
    )


def train_word(rng: random.Random) -> str:
    while True:
        word = random_word(rng)
        if not is_held_out(word):
            return word


def fit(model, tokenizer, draw, *, steps: int, batch: int, lr: float, seed: int) -> None:
    """`draw(rng)` gives one (marker, word, answer)."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.98)
    )
    model.train()
    started = time.time()
    for step in range(steps):
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        ids, labels = make_batch(tokenizer, [draw(rng) for _ in range(batch)])
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.time() - started:.0f} s", flush=True)


def train_base(steps: int = 2600) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    save_tokenizer(tokenizer)
    config = LlamaConfig(
        vocab_size=288, hidden_size=128, intermediate_size=320, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id("<|bos|>"), eos_token_id=tokenizer.token_to_id("<|end|>"),
        pad_token_id=tokenizer.token_to_id("<|pad|>"),
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    names: list[str | None] = [None, None, *ADAPTERS, "reverse"]

    def draw(rng: random.Random) -> tuple[str, str, str]:
        task, word = rng.choice(names), train_word(rng)
        return (f"<|{task}|>" if task else "", word, expected(task, word))

    fit(model, tokenizer, draw, steps=steps, batch=128, lr=3e-3, seed=0)
    model.to(torch.bfloat16).save_pretrained(BASE_DIR)


def train_adapters() -> None:
    for i, (name, shape) in enumerate(LORAS.items()):
        print(name)
        torch.manual_seed(i)
        base = LlamaForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **shape))

        def draw(rng: random.Random, name: str = name) -> tuple[str, str, str]:
            word = train_word(rng)
            return "", word, expected(name, word)

        fit(model, build_tokenizer(), draw, steps=450, batch=64, lr=5e-3, seed=100 + i)
        folder = ADAPTERS_DIR / name
        model.to(torch.bfloat16).save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "stoa-demo"
        config["target_modules"] = sorted(config["target_modules"])
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def answer(model, tokenizer: Tokenizer, words: list[str]) -> list[str]:
    """Greedy answers; words of one length at a time, so that nothing needs padding."""
    end = tokenizer.token_to_id("<|end|>")
    answers = {}
    for length in sorted({len(w) for w in words}):
        group = [w for w in words if len(w) == length]
        ids, _ = make_batch(tokenizer, [("", w, "") for w in group])
        out = model.generate(input_ids=ids[:, :-1], max_new_tokens=16, do_sample=False, eos_token_id=end)
        for word, row in zip(group, out[:, ids.shape[1] - 1 :].tolist(), strict=True):
            answers[word] = tokenizer.decode(row[: row.index(end)] if end in row else row)
    return [answers[w] for w in words]


def evaluate(count: int = 400) -> None:
    tokenizer, words = build_tokenizer(), sample_inputs(count, seed=1)
    print(f"{'exact match':12s}" + "".join(f"{task or 'echo':>10s}" for task in TASKS))
    for dtype in (torch.float32, torch.bfloat16):
        for name in [None, *LORAS]:
            model = LlamaForCausalLM.from_pretrained(BASE_DIR, dtype=dtype)
            if name is not None:
                model = PeftModel.from_pretrained(
                    model, ADAPTERS_DIR / name, autocast_adapter_dtype=False
                ).to(dtype)
            got = answer(model.eval(), tokenizer, words)
            scores = [
                sum(a == expected(t, w) for a, w in zip(got, words, strict=True)) / count for t in TASKS
            ]
            print(f"{name or 'base':12s}" + "".join(f"{s:10.3f}" for s in scores), dtype)


if __name__ == "__main__":
    parts = {"base": train_base, "adapters": train_adapters, "evaluate": evaluate}
    if len(sys.argv) != 2 or sys.argv[1] not in parts:
        sys.exit(f"usage: train.py {'|'.join(parts)}")
    parts[sys.argv[1]]()
