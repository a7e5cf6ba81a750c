"""The engine on the device: transformers' answers, graphs that change nothing, and memory that runs out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stoa.demo import ADAPTERS_DIR, BASE_DIR
from stoa.engine import AdapterRef, Engine, EngineConfig, GenerationRequest, SamplingParams
from stoa.engine.adapters.peft import read_adapter
from stoa.engine.kernels.cuda.device import Gpu
from stoa.engine.kernels.cuda.program import CudaProgram
from stoa.engine.model.config import read_model_config
from stoa.errors import OutOfMemory
from tests.engine.driving import assert_all_returned, drain, make_engine, request
from tests.engine.tiny import adapter_folder, model_folder
from tests.gpu.moved import INTERPRET

pytestmark = pytest.mark.gpu
TOKENS = 6 if INTERPRET else 48
PROMPTS = [[104, 101, 108, 108, 111], [103, 111, 111, 100, 32, 100, 97, 121], [120], list(range(65, 91))]


def demo_request(name: str, prompt: list[int], adapter: str | None) -> GenerationRequest:
    ref = None
    if adapter is not None:
        folder = ADAPTERS_DIR / adapter
        spec = read_adapter(folder, read_model_config(BASE_DIR), max_rank=512)
        ref = AdapterRef(id=spec.id, path=str(folder))
    params = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
    return GenerationRequest(id=name, prompt_token_ids=prompt, params=params, adapter=ref)


def transformers_continue(device: torch.device, prompt: list[int], adapter: str | None) -> list[int]:
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        BASE_DIR, dtype=torch.float32, attn_implementation="eager"
    )
    if adapter is not None:
        import peft

        model = peft.PeftModel.from_pretrained(model, ADAPTERS_DIR / adapter)
    ids = torch.tensor([prompt], device=device)
    with torch.no_grad():
        out = model.to(device).eval().generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=-1, pad_token_id=0,
            max_new_tokens=TOKENS,
        )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def test_the_bundled_model_continues_like_transformers(gpu: Gpu) -> None:
    """In fp32, base and every adapter in one batch: each gets what transformers and PEFT give it alone on the same GPU."""
    engine = Engine(EngineConfig(model=str(BASE_DIR), device="cuda", dtype="fp32", pool_bytes=1 << 26))
    names: list[str | None] = [None, *sorted(path.name for path in ADAPTERS_DIR.iterdir())]
    cases = [(name, PROMPTS[i % len(PROMPTS)]) for i, name in enumerate(names)]
    answers = drain(engine, [demo_request(f"{i}", prompt, name) for i, (name, prompt) in enumerate(cases)])
    for i, (name, prompt) in enumerate(cases):
        assert answers[f"{i}", 0].tokens == transformers_continue(gpu.device, prompt, name), name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_played_graph_is_the_eager_step(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """Bit for bit, with adapters that change while the graph stays."""
    folder = model_folder("llama")

    def ask() -> list[Any]:
        engine = make_engine(folder, device="cuda", dtype=dtype, speculation=False)
        found = []
        for turn in range(1 if INTERPRET else 3):
            asked = [
                request(
                    f"{turn}-{i}", prompt, max_tokens=TOKENS, logprobs=3,
                    adapter=None if i == turn else adapter_folder("llama", (i + turn) % 5),
                )
                for i, prompt in enumerate(PROMPTS)
            ]  # fmt: skip
            answers = drain(engine, asked)
            found += [(answers[r.id, 0].tokens, answers[r.id, 0].logprobs) for r in asked]
        if not eager:
            program = engine.decoder._program
            assert isinstance(program, CudaProgram)
            assert program.captures > 0
        return found

    eager = False
    played = ask()
    eager = True
    monkeypatch.setattr(CudaProgram, "_play", CudaProgram._start)
    assert ask() == played


def test_a_pool_that_does_not_fit_is_refused(gpu: Gpu) -> None:
    """By the setting to lower, and with nothing kept: the next engine starts."""
    with pytest.raises(OutOfMemory) as caught:
        make_engine(model_folder("llama"), device="cuda", pool_bytes=1 << 50)
    assert caught.value.param == "pool_gib"
    engine = make_engine(model_folder("llama"), device="cuda")
    assert drain(engine, [request("r", PROMPTS[0], max_tokens=2)])["r", 0].finish == "length"


def test_a_step_that_finds_no_memory_makes_a_sequence_give_way(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device's own refusal, in the middle of answers: all of them end as they would have."""
    folder = model_folder("llama")
    wanted = {
        str(i): drain(make_engine(folder, device="cuda"), [request("r", p, max_tokens=5)])["r", 0].tokens
        for i, p in enumerate(PROMPTS)
    }
    engine = make_engine(folder, device="cuda", max_batch_tokens=32)
    forward, left = engine.decoder.forward, [2, 1]  # steps that go well before each failure

    def tight(*args: Any) -> torch.Tensor:
        if left and left[0] == 0:
            del left[0]
            if gpu.device.type == "cpu":
                raise torch.OutOfMemoryError("what the interpreter has no memory to run out of")
            torch.empty(1 << 50, dtype=torch.uint8, device=gpu.device)
        elif left:
            left[0] -= 1
        return forward(*args)

    monkeypatch.setattr(engine.decoder, "forward", tight)
    answers = drain(engine, [request(str(i), p, max_tokens=5) for i, p in enumerate(PROMPTS)])
    assert not left
    assert {i: answers[i, 0].tokens for i in wanted} == wanted
    assert_all_returned(engine)


def test_a_step_that_breaks_is_not_taken_for_one_that_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other error of the device comes out of `step`; no token is made up."""
    engine = make_engine(model_folder("llama"), device="cuda")
    engine.add_request(request("r", PROMPTS[0]))

    def broken(*args: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine.decoder, "forward", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.step()
    assert engine.stats().generation_tokens == 0
