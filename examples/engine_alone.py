"""The engine without a server: two adapters and the base model in one batch.

python examples/engine_alone.py
"""

from __future__ import annotations

from stoa.demo import ADAPTERS_DIR, BASE_DIR
from stoa.engine import AdapterRef, Engine, EngineConfig, GenerationRequest, SamplingParams
from stoa.engine.adapters.peft import read_adapter


def main() -> None:
    engine = Engine(EngineConfig(model=str(BASE_DIR), pool_bytes=1 << 28))
    assert engine.tokenizer is not None
    prompt = engine.tokenizer.apply_chat_template([{"role": "user", "content": "portico"}])
    ids = engine.tokenizer.encode(prompt, add_special_tokens=False)
    for name in (None, "reverse", "upper"):
        adapter = None
        if name is not None:
            spec = read_adapter(ADAPTERS_DIR / name, engine.model, max_rank=64)
            adapter = AdapterRef(id=spec.id, path=str(spec.path))
        params = SamplingParams(max_tokens=32, temperature=0)
        engine.add_request(
            GenerationRequest(id=name or "base", prompt_token_ids=ids, params=params, adapter=adapter)
        )
    texts: dict[str, str] = {}
    while engine.has_requests:
        for event in engine.step():
            texts[event.request_id] = texts.get(event.request_id, "") + event.text
        if engine.idle:
            engine.wakeup.wait(0.1)
            engine.wakeup.clear()
    print(texts)
    engine.close()


if __name__ == "__main__":
    main()
