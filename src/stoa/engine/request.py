"""What goes into the engine and what comes out of it.

One `GenerationRequest` becomes `n` sequences; each step yields `TokenEvent`s for them. The structs are
msgspec so that the same objects travel between gateway and engine processes without another shape.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "cancelled", "error"]
ServiceClass = Literal["interactive", "batch"]


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """A constraint on the output, compiled by llguidance.

    `kind`: "json_object" (any JSON object), "json_schema" (`source` is the schema as JSON text),
    "regex" (`source` is the expression) or "lark" (`source` is a Lark grammar of llguidance).
    """

    kind: Literal["json_object", "json_schema", "regex", "lark"]
    source: str = ""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen. Ranges are checked by `stoa.engine.sampling.check_params`."""

    max_tokens: int = 16  # > 0; the caller has clamped it to the context
    min_tokens: int = 0
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    min_p: float = 0.0
    seed: int | None = None  # None: drawn from the operating system at admission
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False  # keep the stop string in the text
    ignore_eos: bool = False
    logprobs: int | None = None  # None = none; k = the chosen token's and the k most likely ones'
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    grammar: Grammar | None = None
    skip_special_tokens: bool = True

    @property
    def has_penalty(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


class AdapterRef(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter a request wants. `id` ends with the hash of its content: all caches are keyed by it, so a
    reloaded adapter of the same name can never meet stale pages."""

    id: str  # HASH, or OWNER:HASH
    path: str  # PEFT folder


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, tag="generate", omit_defaults=True):
    """A prompt to continue `n` times, or (with `pooling`) to embed."""

    id: str
    prompt_token_ids: list[int]
    params: SamplingParams = SamplingParams()
    n: int = 1
    adapter: AdapterRef | None = None
    project: str = "default"  # salts the prefix cache, and has a fair share of the engine
    weight: float = 1.0  # of that share; > 0
    account: str = ""  # where its use is booked; opaque to the engine
    service_class: ServiceClass = "interactive"
    pooling: Literal["mean"] | None = None  # yields one event with `embedding`, no tokens
    # Begun elsewhere: of each choice the tokens that it has had there, None if it has ended. The engine goes on behind
    # them with the tokens that would have come there, if `params.seed` is set and its kernels are the same.
    so_far: list[list[int] | None] = []
    waited_s: float = 0.0  # since its arrival at the service, before it came here
    source: bytes = b""  # JSON of the conversation, for remotes that render prompts; no engine gets it


class TokenLogprob(msgspec.Struct, frozen=True):
    token_id: int
    logprob: float
    top: list[tuple[int, float]]  # most likely first


class TokenEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """News of one sequence after one step. `text` holds only whole characters and never a part of a
    possible stop string; the concatenation of all `text` is the answer."""

    request_id: str
    index: int = 0  # which of the n choices
    token_ids: list[int] = []
    text: str = ""
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None  # set on the sequence's last event
    stop_reason: int | str | None = None  # the stop string or token that ended it
    error: str | None = None  # with finish_reason "error"
    error_code: str | None = None  # code of the StoaError behind it, e.g. "invalid_adapter"
    error_param: str | None = None  # the field it blames
    prompt_tokens: int = 0  # on the last event
    cached_tokens: int = 0  # prompt tokens found in the prefix cache; on the last event
    completion_tokens: int = 0  # on the last event
    embedding: list[float] | None = None
