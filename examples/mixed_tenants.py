"""Five adapters and the base model answer in the same batch. Start `stoa serve` first; `pip install openai`.

python examples/mixed_tenants.py [URL]
"""

from __future__ import annotations

import asyncio
import sys

from openai import AsyncOpenAI

MODELS = ("stoa-demo", "reverse", "upper", "caesar", "stars", "rotate")


async def main(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:

        async def ask(model: str, word: str) -> str:
            answer = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": word}], temperature=0
            )
            return answer.choices[0].message.content or ""

        words = ("column", "marble", "lantern")
        answers = await asyncio.gather(*(ask(m, w) for m in MODELS for w in words))
        for i, model in enumerate(MODELS):
            print(f"{model:10s}", *(f"{a:12s}" for a in answers[i * len(words) : (i + 1) * len(words)]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"))
