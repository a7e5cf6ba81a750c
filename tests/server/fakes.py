"""A replica, a registry and a tokenizer that need no model: one token is one byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers

from stoa.engine.adapters.registry import AdapterEntry
from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent, TokenLogprob
from stoa.engine.stats import EngineStats
from stoa.engine.tokenizer import Tokenizer
from stoa.errors import AdapterExists, InvalidAdapter, ModelNotFound, StoaError, Unauthorized
from stoa.tenancy.principal import Principal

MAX_MODEL_LEN = 1000
EOS = "<|im_end|>"
MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]")
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
QWEN = (
    "{% if tools %}tools: {% for t in tools %}{{ t | tojson }}{% endfor %} reply in <tool_call>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
MISTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "{% endfor %}]{% else %}[INST] {{ m.content }}[/INST]{% endif %}{% endfor %}"
)


def make_tokenizer(folder: Path, template: str | None, special: tuple[str, ...] = ()) -> Tokenizer:
    """Bytes, an end token, and the marks of tool calls (special ones as named)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    hf = HfTokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens([EOS, *special])
    hf.add_tokens([m for m in MARKS if m not in special])
    folder.mkdir(parents=True, exist_ok=True)
    hf.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": EOS} | ({} if template is None else {"chat_template": template})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer(folder)


@dataclass
class FakeReplica:
    """Answers every choice with `text`, `step` tokens at a time. Notes what it is asked and what is closed
    before its end."""

    tokenizer: Tokenizer
    text: str = "Hello world"
    texts: list[str] | None = None  # per choice
    step: int = 3
    hang_after: int | None = None  # batches; then nothing comes any more
    fail_after: int | None = None  # batches; then the engine reports `error`
    error: StoaError | TokenEvent | None = None
    refusal: Exception | None = None  # raised by generate() at once
    finish: str = "stop"
    delay_s: float = 0.0
    ready: bool = True
    max_model_len: int = MAX_MODEL_LEN
    restarts: int = 2
    statistics: EngineStats | Exception = field(default_factory=EngineStats)
    requests: list[GenerationRequest] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)  # before the end
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def states(self) -> dict[str, int]:
        return {"ready": int(self.ready), "draining": 0, "lost": 0, "held": 0}

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[TokenEvent]]:
        self.requests.append(request)
        ended = False
        try:
            if self.refusal is not None:
                ended = True
                raise self.refusal
            batches = self.embedding(request) if request.pooling else self.batches(request)
            for i, batch in enumerate(batches):
                if i == self.hang_after:
                    await asyncio.Event().wait()
                if i == self.fail_after:
                    yield [self.failure(request)]
                    break
                await asyncio.sleep(self.delay_s)
                ended = i == len(batches) - 1
                yield batch
        finally:
            if not ended:
                self.closed.append(request.id)

    def embedding(self, request: GenerationRequest) -> list[list[TokenEvent]]:
        if self.fail_after == 0:
            return [[self.failure(request)]]
        vector = [float(len(request.prompt_token_ids)), 4.0, 0.0, 12.0]
        return [[TokenEvent(request_id=request.id, finish_reason="stop", embedding=vector)]]

    def failure(self, request: GenerationRequest) -> TokenEvent:
        assert isinstance(self.error, StoaError)
        return TokenEvent(
            request_id=request.id,
            finish_reason="error",
            error=self.error.message,
            error_code=self.error.code or self.error.type,
        )

    def batches(self, request: GenerationRequest) -> list[list[TokenEvent]]:
        """All choices side by side."""
        choices = [self.choice(request, i) for i in range(request.n)]
        longest = max(map(len, choices))
        return [[e for c in choices for e in c[i : i + 1]] for i in range(longest)]

    def choice(self, request: GenerationRequest, index: int) -> list[TokenEvent]:
        text = self.text if self.texts is None else self.texts[index % len(self.texts)]
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        reason: Any = self.finish
        if len(ids) >= request.params.max_tokens:
            ids, reason = ids[: request.params.max_tokens], "length"
        else:
            ids = [*ids, self.tokenizer.eos_token_ids[0]]
        parts = [ids[i : i + self.step] for i in range(0, len(ids), self.step)]
        events = []
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            shown = [t for t in part if t != self.tokenizer.eos_token_ids[0]]
            events.append(
                TokenEvent(
                    request_id=request.id,
                    index=index,
                    token_ids=part,
                    text=self.tokenizer.decode(shown, skip_special_tokens=False),
                    logprobs=self.logprobs(part, request.params.logprobs),
                    finish_reason=reason if last else None,
                    prompt_tokens=len(request.prompt_token_ids) if last else 0,
                    cached_tokens=5 if last else 0,
                    completion_tokens=len(ids) if last else 0,
                )
            )
        return events

    def logprobs(self, ids: list[int], count: int | None) -> list[TokenLogprob] | None:
        if count is None:
            return None
        return [TokenLogprob(t, -0.5, [(t, -0.5), (0, float("-inf"))][:count]) for t in ids]

    async def stats(self) -> EngineStats:
        if isinstance(self.statistics, Exception):
            raise self.statistics
        return self.statistics

    async def warm(self, ref: AdapterRef) -> None:
        self.calls.append(("warm", ref.id))

    async def forget(self, adapter_id: str) -> None:
        self.calls.append(("forget", adapter_id))


EVERYBODY = Principal("default", "default", "key_test", frozenset({"all", "admin"}))


@dataclass
class FakeAuthority:
    """Lets everybody in as the default project, or those with `key` only."""

    key: str | None = None
    principal: Principal = EVERYBODY

    async def authenticate(self, secret: str | None) -> Principal:
        if self.key is not None and secret != self.key:
            raise Unauthorized("Incorrect API key provided" if secret else "You didn't provide an API key")
        return self.principal


@dataclass
class FakeTicket:
    requests: list[GenerationRequest]
    headers: dict[str, str]
    closed: int = 0

    def close(self) -> None:
        self.closed += 1


@dataclass
class FakeMetering:
    """Admits everything, or refuses with `refusal`."""

    refusal: Exception | None = None
    headers: dict[str, str] = field(default_factory=dict)
    tickets: list[FakeTicket] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def admit(self, principal: Principal, requests: Any, **facts: Any) -> FakeTicket:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append({"principal": principal, **facts})
        self.tickets.append(FakeTicket(list(requests), self.headers))
        return self.tickets[-1]


@dataclass
class FakeAdapters:
    """One registry that is everybody's, and one for each project that has asked for its own."""

    public: FakeRegistry
    own: dict[str, FakeRegistry] = field(default_factory=dict)

    def of(self, project_id: str | None) -> FakeRegistry:
        if project_id in (None, "default"):
            return self.public
        return self.own.setdefault(project_id, FakeRegistry())

    def get(self, project_id: str, name: str) -> AdapterEntry:
        try:
            return self.of(project_id).get(name)
        except ModelNotFound:
            return self.public.get(name)

    def list(self, project_id: str) -> list[AdapterEntry]:
        found = self.public.entries | self.of(project_id).entries
        return [found[name] for name in sorted(found)]


@dataclass
class FakeRegistry:
    """Any path but /nowhere is an adapter; its id is made of name and path."""

    entries: dict[str, AdapterEntry] = field(default_factory=dict)
    max_bytes: int = 1 << 20

    def get(self, name: str) -> AdapterEntry:
        bare, _, version = name.partition("@")
        entry = self.entries.get(bare)
        if entry is None or version not in ("", entry.version):
            raise ModelNotFound(f"there is no adapter named {name!r}", param="model")
        return entry

    def list(self) -> list[AdapterEntry]:
        return [self.entries[name] for name in sorted(self.entries)]

    def add(self, name: str, folder: Path, *, replace: bool = False) -> AdapterEntry:
        if folder == Path("/nowhere"):
            raise InvalidAdapter(f"{folder} is not a folder", param="lora_path")
        if name in self.entries and not replace:
            raise AdapterExists(f"an adapter named {name!r} exists already", param="lora_name")
        hexed = f"{name}{folder}".encode().hex()[:64].ljust(64, "0")
        entry = AdapterEntry(name, hexed[:12], hexed, folder, 8, 4, 1000, 1_700_000_000)
        self.entries[name] = entry
        return entry

    def remove(self, name: str) -> None:
        if name not in self.entries:
            raise ModelNotFound(f"there is no adapter named {name!r}", param="model")
        del self.entries[name]
