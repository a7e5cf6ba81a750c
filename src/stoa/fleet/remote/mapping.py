"""A request in a remote's words, and what has no words there.

| dialect | beyond OpenAI's fields it knows |
|---|---|
| stoa, vllm | token ids in the answer, top_k, min_p, repetition_penalty, min_tokens, stop_token_ids, structured outputs … |
| openai | nothing: a request that asks for more is not carried |

Prompts go as token ids (api "completions"), so the tokens that a choice has had elsewhere simply follow the prompt;
what counts only output tokens (two penalties, grammars) cannot be continued that way.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from stoa.economics.accounts import parse_account
from stoa.engine.request import AdapterRef, GenerationRequest, Grammar, SamplingParams
from stoa.fleet.remote.settings import RemoteConfig

_INT64 = 1 << 63
_EXTENDED = ("stoa", "vllm")


class ChatSource(msgspec.Struct, frozen=True):
    """Of the client's chat request, what a remote that renders prompts itself needs. Other fields are in `params`."""

    messages: msgspec.Raw
    response_format: Any = None
    tools: Any = None
    chat_template_kwargs: Any = None
    add_generation_prompt: bool | None = None
    reasoning_effort: str | None = None


_source = msgspec.json.Decoder(ChatSource)


def chat_source(request: GenerationRequest) -> ChatSource | None:
    """None: the request is no chat, or nobody kept its body."""
    body: bytes = getattr(request, "source", b"")
    return _source.decode(body) if body else None


def mapped_model(config: RemoteConfig, base: str, request: GenerationRequest) -> str | None:
    """The remote's name of the model, by the configured mapping; `base`: our id of the base model.

    Of an adapter that a project owns the key is PROJECT/NAME: two projects' adapters of one name are not the same.
    """
    if request.adapter is None:
        return config.models.get(base)
    owner, asked = owner_of(request.adapter), parse_account(request.account).model
    prefix = f"{owner}/" if owner else ""
    keys = [prefix + asked, prefix + asked.partition("@")[0]]
    return next((config.models[key] for key in keys if key in config.models and key != base), None)


def owner_of(ref: AdapterRef) -> str:
    return ref.id.rpartition(":")[0]


def loaded_name(ref: AdapterRef) -> str:
    """What an adapter is called at a remote that loads it: its content, and its owner where it has one. Another
    content has another name, so that no stale one can be met."""
    owner, _, content = ref.id.rpartition(":")
    salt = "-" + hashlib.sha256(owner.encode()).hexdigest()[:12] if owner else ""
    return f"stoa-{content[:40]}{salt}"


def unfit(config: RemoteConfig, base: str, request: GenerationRequest, max_model_len: int) -> str | None:
    """Why the remote cannot have the request; None: it can. Asks nobody."""
    p = request.params
    if request.pooling is not None:
        return "embeddings are not asked of remotes"
    if mapped_model(config, base, request) is None and (request.adapter is None or not config.load_adapters):
        return "it does not have the model"
    if max_model_len and len(request.prompt_token_ids) + p.max_tokens > max_model_len:
        return f"its context is {max_model_len} tokens"
    if p.grammar is not None and not config.takes_grammar(p.grammar):
        return f"it takes no output constraint of kind {p.grammar.kind}"
    if request.so_far and (found := _unfit_to_resume(config, p)) is not None:
        return found
    if config.dialect == "openai" and (found := _unfit_for_openai(config, p)) is not None:
        return found
    return _unfit_for_chat(request) if config.api == "chat" else None


def _unfit_to_resume(config: RemoteConfig, p: SamplingParams) -> str | None:
    if config.api == "chat":
        return "a chat cannot be continued in the middle of an answer"
    if p.presence_penalty or p.frequency_penalty:
        return "penalties over tokens that were generated elsewhere cannot be told to it"
    if p.grammar is not None:
        return "an output constraint cannot be continued in the middle there"
    return None


def _unfit_for_openai(config: RemoteConfig, p: SamplingParams) -> str | None:
    plain = SamplingParams()
    extended = (
        "min_tokens", "top_k", "min_p", "stop_token_ids", "include_stop", "ignore_eos", "repetition_penalty",
        "skip_special_tokens",
    )  # fmt: skip
    for name in extended:
        if getattr(p, name) != getattr(plain, name):
            return f"it does not know {name}"
    if len(p.stop) > config.max_stops:
        return f"it takes at most {config.max_stops} stop strings"
    if p.logprobs is not None:
        return "its logprobs do not name tokens by id"
    if config.api == "chat" and p.logit_bias:
        return "logit_bias names tokens of another vocabulary"
    return None


def _unfit_for_chat(request: GenerationRequest) -> str | None:
    source = chat_source(request)
    if source is None:
        return "it takes conversations only"
    if source.tools:
        return "its tool calls are not in this model's format"
    if source.chat_template_kwargs or source.add_generation_prompt is False:
        return "it renders prompts by a template of its own"
    if request.params.logprobs is not None:
        return "its logprobs do not name tokens by id"
    return None


def to_body(
    config: RemoteConfig, model: str, request: GenerationRequest, choice: int | None = None
) -> dict[str, Any]:
    """The JSON body: all choices of the request, or one `choice` of it, continued behind what it has had."""
    p = request.params
    had = (request.so_far[choice] or []) if choice is not None and request.so_far else []
    seed = p.seed if p.seed is None or choice is None else (p.seed + choice + _INT64) % (2 * _INT64) - _INT64
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": request.n if choice is None else 1,
        config.max_tokens_field: p.max_tokens - len(had),
        "temperature": p.temperature,
        "top_p": p.top_p,
        "presence_penalty": p.presence_penalty or None,
        "frequency_penalty": p.frequency_penalty or None,
        "seed": seed,
        "stop": list(p.stop),
        "logit_bias": {str(t): b for t, b in p.logit_bias.items()},
    }
    body = {k: v for k, v in body.items() if v not in (None, [], {})}
    if config.api == "chat":
        body |= _chat_fields(request)
    else:
        body["prompt"] = [*request.prompt_token_ids, *had]
        if p.grammar is not None and config.dialect == "openai":
            body["response_format"] = _response_format(p.grammar)
    if config.dialect in _EXTENDED:
        body |= _extended_fields(config, request, len(had))
    return body | config.extra


def _chat_fields(request: GenerationRequest) -> dict[str, Any]:
    source = chat_source(request)
    assert source is not None
    found: dict[str, Any] = {"messages": source.messages}
    if request.params.grammar is not None:
        found["response_format"] = source.response_format or _response_format(request.params.grammar)
    if source.reasoning_effort is not None:
        found["reasoning_effort"] = source.reasoning_effort
    return found


def _response_format(grammar: Grammar) -> dict[str, Any]:
    if grammar.kind == "json_object":
        return {"type": "json_object"}
    schema = msgspec.Raw(grammar.source.encode())
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _extended_fields(config: RemoteConfig, request: GenerationRequest, had: int) -> dict[str, Any]:
    """Always said, also where it is the default: a server may have other defaults from its model's folder."""
    p = request.params
    found: dict[str, Any] = {
        "top_k": p.top_k or -1,
        "min_p": p.min_p,
        "repetition_penalty": p.repetition_penalty,
        "min_tokens": max(0, p.min_tokens - had),
        "stop_token_ids": list(p.stop_token_ids),
        "include_stop_str_in_output": p.include_stop,
        "ignore_eos": p.ignore_eos,
        "skip_special_tokens": p.skip_special_tokens,
    }
    if config.api == "completions":
        found["return_token_ids"] = True
        if p.logprobs is not None:
            found |= {"logprobs": p.logprobs, "return_tokens_as_token_ids": True}
        if p.grammar is not None:
            found["structured_outputs"] = _structured(p.grammar)
    if config.dialect == "vllm":  # a project's prefixes are its own there too
        found["cache_salt"] = hashlib.sha256(f"stoa:{request.project}".encode()).hexdigest()[:32]
    return found


def _structured(grammar: Grammar) -> dict[str, Any]:
    """As vLLM has it; "grammar" is Lark where llguidance compiles it."""
    if grammar.kind == "json_object":
        return {"json_object": True}
    key = {"json_schema": "json", "regex": "regex", "lark": "grammar"}[grammar.kind]
    return {key: grammar.source}
