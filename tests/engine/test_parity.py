"""The engine against transformers and peft on small random models of every family, in fp32."""

from __future__ import annotations

import pytest
import torch

from tests.engine.driving import drain, make_engine, request
from tests.engine.tiny import LORAS, VARIANTS, adapter_folder, hf_with_adapter, model_folder

PROMPT = torch.arange(40).mul(7).remainder(300).add(3).tolist()


def reference(name: str, which: int | None, prompt: list[int], count: int) -> tuple[torch.Tensor, list[int]]:
    """Log-probabilities of the first new token and the greedy continuation, by transformers."""
    model = hf_with_adapter(name, which)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
        ids = model.generate(
            input_ids=torch.tensor([prompt]),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )
    return logits.log_softmax(-1), ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", VARIANTS)
def test_base_continues_like_transformers(name: str) -> None:
    """Greedy text is the same over 64 tokens and the first token's log-probabilities agree to 1e-4."""
    logprobs, expected = reference(name, None, PROMPT, 64)
    engine = make_engine(model_folder(name), max_batch_tokens=16)
    answer = drain(engine, [request("r", PROMPT, max_tokens=64, logprobs=20)])["r", 0]
    assert answer.tokens == expected
    for token, value in answer.logprobs[0].top:
        assert value == pytest.approx(float(logprobs[token]), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_adapter_in_one_batch_continues_like_peft(name: str) -> None:
    """All adapters and the base together in one step give each what peft gives it alone."""
    engine = make_engine(model_folder(name), max_batch_tokens=48)
    which: list[int | None] = [None, *range(len(LORAS))]
    requests = [
        request(
            str(w), PROMPT[: 20 + i], adapter=None if w is None else adapter_folder(name, w), max_tokens=64
        )
        for i, w in enumerate(which)
    ]
    answers = drain(engine, requests)
    for i, w in enumerate(which):
        assert answers[str(w), 0].tokens == reference(name, w, PROMPT[: 20 + i], 64)[1], w


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_bf16_is_as_close_to_fp32_as_transformers_own(name: str) -> None:
    """bf16 log-probabilities stray from fp32 no further than those of transformers in bf16 do."""
    exact, _ = reference(name, 1, PROMPT, 1)
    model = hf_with_adapter(name, 1).to(torch.bfloat16)
    with torch.no_grad():
        theirs = model(torch.tensor([PROMPT])).logits[0, -1].float().log_softmax(-1)
    engine = make_engine(model_folder(name), dtype="bf16")
    ask = request("r", PROMPT, adapter=adapter_folder(name, 1), max_tokens=1, logprobs=20)
    top = drain(engine, [ask])["r", 0].logprobs[0].top
    error = max(abs(value - float(exact[token])) for token, value in top)
    assert error <= 1.5 * float((theirs - exact).abs().max())
