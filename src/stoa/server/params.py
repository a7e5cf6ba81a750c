"""Fields that say how tokens are chosen, common to both completion endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request

from stoa.engine.request import Grammar, SamplingParams, ServiceClass
from stoa.errors import ContextLengthExceeded, InvalidRequest
from stoa.server.service import Service

MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_TOKENS = 128
MAX_BIASES = 1024
MAX_LOGPROBS = 20
_INT64 = 1 << 63
_SERVICE_CLASSES: dict[str, ServiceClass] = {
    "auto": "interactive",
    "default": "interactive",
    "flex": "batch",
}
# (field, lowest, highest, what the message says is accepted)
_RANGES: tuple[tuple[str, float, float, str], ...] = (
    ("temperature", 0, 2, "between 0 and 2"),
    ("top_k", -1, _INT64, "-1 or 0 (off), or above"),
    ("min_p", 0, 1, "between 0 and 1"),
    ("seed", -_INT64, _INT64 - 1, "a 64-bit integer"),
    ("min_tokens", 0, _INT64, "0 or above"),
    ("max_tokens", 1, _INT64, "1 or above"),
    ("max_completion_tokens", 1, _INT64, "1 or above"),
    ("presence_penalty", -2, 2, "between -2 and 2"),
    ("frequency_penalty", -2, 2, "between -2 and 2"),
)


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # accepted; there is none


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """`null` means the default everywhere."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def out_of_range(name: str, value: Any, accepted: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{name}': {value!r}; accepted: {accepted}", param=name)


def check_ranges(fields: SamplingFields, service: Service) -> None:
    """Raises InvalidRequest naming the first field out of range and what is accepted."""
    for name, lowest, highest, accepted in _RANGES:
        value = getattr(fields, name, None)
        if value is not None and not lowest <= value <= highest:
            raise out_of_range(name, value, accepted)
    for name, highest in (("top_p", 1), ("repetition_penalty", 100)):
        value = getattr(fields, name)
        if value is not None and not 0 < value <= highest:
            raise out_of_range(name, value, f"above 0 and at most {highest}")
    if fields.n is not None and not 1 <= fields.n <= service.max_choices:
        raise out_of_range("n", fields.n, f"between 1 and {service.max_choices}")
    if fields.service_tier is not None and fields.service_tier not in _SERVICE_CLASSES:
        raise out_of_range("service_tier", fields.service_tier, "auto, default, flex")
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequest("'stream_options' is only accepted with 'stream': true", param="stream_options")
    if fields.metadata is not None and len(fields.metadata) > 16:
        raise out_of_range("metadata", f"{len(fields.metadata)} pairs", "up to 16 pairs")
    _check_stops(fields, service.vocab_size)
    _check_bias(fields.logit_bias or {}, service.vocab_size)


def _check_stops(fields: SamplingFields, vocab_size: int) -> None:
    stops = stop_strings(fields.stop)
    if len(stops) > MAX_STOPS:
        raise out_of_range("stop", f"{len(stops)} strings", f"up to {MAX_STOPS} strings")
    if not all(0 < len(s) <= MAX_STOP_CHARS for s in stops):
        raise InvalidRequest(
            f"Invalid value for 'stop'; accepted: strings of 1 to {MAX_STOP_CHARS} characters", param="stop"
        )
    tokens = fields.stop_token_ids or []
    if len(tokens) > MAX_STOP_TOKENS:
        raise out_of_range("stop_token_ids", f"{len(tokens)} ids", f"up to {MAX_STOP_TOKENS} ids")
    check_token_ids("stop_token_ids", tokens, vocab_size)


def _check_bias(bias: dict[int, float], vocab_size: int) -> None:
    if len(bias) > MAX_BIASES:
        raise out_of_range("logit_bias", f"{len(bias)} tokens", f"up to {MAX_BIASES} tokens")
    check_token_ids("logit_bias", list(bias), vocab_size)
    bad = next((b for b in bias.values() if not -100 <= b <= 100), None)
    if bad is not None:
        raise out_of_range("logit_bias", bad, "between -100 and 100")


def check_token_ids(name: str, ids: Sequence[Any], vocab_size: int) -> None:
    for i in ids:
        if type(i) is not int or not 0 <= i < vocab_size:
            raise out_of_range(name, i, f"token ids from 0 to {vocab_size - 1}")


def check_logprobs(name: str, count: int | None) -> None:
    if count is not None and not 0 <= count <= MAX_LOGPROBS:
        raise out_of_range(name, count, f"between 0 and {MAX_LOGPROBS}")


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def service_class(request: Request, tier: str | None = None) -> ServiceClass:
    """What was said where the request began inside this process, else what its service tier means."""
    said: ServiceClass | None = request.scope.get("stoa.service_class")
    return said or _SERVICE_CLASSES[tier or "auto"]


def completion_room(
    prompt_tokens: int, asked: int | None, default: int | None, limit: int, *, what: str, param: str
) -> int:
    """How many tokens may be generated: what was asked for, else the default, else all that fits.
    Raises ContextLengthExceeded; `what` is where the prompt came from: "messages" or "prompt"."""
    room = limit - prompt_tokens
    if asked is not None and asked > room and prompt_tokens < limit:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limit} tokens. However, you requested "
            f"{prompt_tokens + asked} tokens ({prompt_tokens} in the {what}, {asked} in the completion). "
            f"Please reduce the length of the {what} or completion.",
            param=param,
        )
    if room < 1:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limit} tokens. However, your {what} resulted in "
            f"{prompt_tokens} tokens, which leaves none for the completion. "
            f"Please reduce the length of the {what}.",
            param=param,
        )
    return asked or min(default or room, room)


def sampling_params(
    fields: SamplingFields,
    max_tokens: int,
    *,
    logprobs: int | None,
    grammar: Grammar | None = None,
    keep_special: bool = False,
) -> SamplingParams:
    """`fields` with defaults filled in; their ranges have been checked. `keep_special`: special tokens are
    needed in the text, whatever the caller prefers."""
    if (fields.min_tokens or 0) > max_tokens:
        raise out_of_range("min_tokens", fields.min_tokens, f"at most max_tokens, here {max_tokens}")
    skip = True if fields.skip_special_tokens is None else fields.skip_special_tokens
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=fields.min_tokens or 0,
        temperature=1.0 if fields.temperature is None else fields.temperature,
        top_p=1.0 if fields.top_p is None else fields.top_p,
        top_k=max(fields.top_k or 0, 0),
        min_p=fields.min_p or 0.0,
        seed=fields.seed,
        stop=stop_strings(fields.stop),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        include_stop=bool(fields.include_stop_str_in_output),
        ignore_eos=bool(fields.ignore_eos),
        logprobs=logprobs,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        repetition_penalty=fields.repetition_penalty or 1.0,
        logit_bias=fields.logit_bias or {},
        grammar=grammar,
        skip_special_tokens=skip and not keep_special,
    )
