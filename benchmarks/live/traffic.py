"""Requests of a real trace, sent through the official client, and what came of each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from stoa.simulator import load_requests

MODELS = ("stoa-demo", "reverse", "upper", "caesar", "rotate", "stars")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Ask:
    number: int
    at_s: float  # after the start
    model: str
    prompt: str
    prompt_tokens: int
    output_tokens: int


@dataclass
class Answer:
    ask: Ask
    text: str = ""
    error: str = ""
    tokens: int = 0
    sent_s: float = 0.0  # after the start
    first_s: float = 0.0  # from being sent to the first token
    longest_pause_s: float = 0.0
    ended_s: float = 0.0
    pauses: list[float] = field(default_factory=list)


def read_trace(path: Path, count: int, seconds: float, *, shrink: int, most: int) -> list[Ask]:
    """The first `count` requests, in `seconds`; lengths divided by `shrink`, within 4 and `most` tokens. The trace tells
    no contents: a prompt is random letters (a token each, for the bundled model), a model is drawn by Zipf's law."""
    rng = random.Random(1)
    trace = load_requests(path, sort=True)
    begin, end = float(trace.arrival_s[0]), float(trace.arrival_s[count - 1])
    weights = [1 / (i + 1) for i in range(len(MODELS))]
    asks = []
    for i in range(count):
        prompt = max(4, min(most, int(trace.prompt_tokens[i]) // shrink))
        output = max(4, min(most, int(trace.output_tokens[i]) // shrink))
        at_s = (float(trace.arrival_s[i]) - begin) / (end - begin) * seconds
        letters = "".join(rng.choices(_ALPHABET, k=prompt))
        asks.append(Ask(i, at_s, rng.choices(MODELS, weights)[0], letters, prompt, output))
    return asks


async def replay(url: str, asks: Sequence[Ask]) -> list[Answer]:
    """By the clock."""
    answers = [Answer(ask) for ask in asks]
    started = time.perf_counter()
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as client:

        async def one(answer: Answer) -> None:
            await asyncio.sleep(started + answer.ask.at_s - time.perf_counter())
            await _send(client, answer, started)

        await asyncio.gather(*(one(answer) for answer in answers))
    return answers


async def quiet_answers(url: str, asks: Sequence[Ask], at_once: int = 16) -> list[Answer]:
    """As fast as it goes: what each should be."""
    answers = [Answer(ask) for ask in asks]
    slots = asyncio.Semaphore(at_once)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as client:

        async def one(answer: Answer) -> None:
            async with slots:
                await _send(client, answer, time.perf_counter())

        await asyncio.gather(*(one(answer) for answer in answers))
    return answers


async def _send(client: openai.AsyncOpenAI, answer: Answer, started: float) -> None:
    ask = answer.ask
    sent = last = time.perf_counter()
    answer.sent_s = sent - started
    extra: dict[str, Any] = {"ignore_eos": True}
    try:
        stream = await client.completions.create(
            model=ask.model, prompt=ask.prompt, max_tokens=ask.output_tokens, temperature=1.0, seed=ask.number,
            stream=True, stream_options={"include_usage": True}, extra_body=extra,
        )  # fmt: skip
        async for chunk in stream:
            now = time.perf_counter()
            if chunk.usage is not None:
                answer.tokens = chunk.usage.completion_tokens
            if chunk.choices:
                if not answer.first_s:
                    answer.first_s = now - sent
                else:
                    answer.longest_pause_s = max(answer.longest_pause_s, now - last)
                last = now
                answer.text += chunk.choices[0].text
    except openai.OpenAIError as error:
        answer.error = f"{type(error).__name__}: {error}"[:300]
    answer.ended_s = time.perf_counter() - started
