"""What an administrator says of a remote: `[[remote]]` tables of stoa.toml.

Only these tables name places that requests are sent to; nothing in a request can. Keys are named by the environment
variable that holds them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from stoa.economics.api_prices import ApiPrice
from stoa.economics.money import parse_usd
from stoa.engine.request import Grammar
from stoa.errors import ConfigError, InvalidPrice

Api = Literal["completions", "chat"]
Dialect = Literal["stoa", "vllm", "openai"]
When = Literal["always", "overflow", "fallback"]
GrammarKind = Literal["json_object", "json_schema", "regex", "lark"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[!-~]*")
_USD = str | int | float
_FALLBACK_S = 1e9
_GRAMMARS: dict[Dialect, tuple[GrammarKind, ...]] = {
    "stoa": ("json_object", "json_schema", "regex", "lark"),
    "vllm": ("json_object", "json_schema", "regex"),
    "openai": ("json_object", "json_schema"),
}


class RemoteConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One remote. Amounts are USD, times seconds; 0 means no limit, or "ask the remote"."""

    name: str
    url: str  # with the path before /completions, usually …/v1
    api_key_env: str = ""  # the environment variable with the key; "": no key
    proxy: str = ""  # variables such as HTTPS_PROXY are not read
    place: str = ""  # where it computes, as a plan names places; "": unknown, which is outside of all
    api: Api = "completions"  # completions: token ids are sent; chat: the client's messages are
    dialect: Dialect = "vllm"  # which fields beyond OpenAI's it knows
    # Ours -> theirs: the base model, adapters by name (PROJECT/NAME where a project owns it). What is not named here
    # is not sent there, unless load_adapters brings it.
    models: dict[str, str] = {}
    max_model_len: Annotated[int, Meta(ge=0)] = 0  # 0: as /models says
    grammars: tuple[GrammarKind, ...] | None = None  # output constraints it takes; default: the dialect's
    max_stops: Annotated[int, Meta(ge=0)] = 4
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra: dict[str, Any] = {}  # further fields of every request body

    load_adapters: bool = False  # by /v1/load_lora_adapter; it must see our adapters' folders
    adapter_paths: dict[str, str] = {}  # our folder -> the same folder as it is called there
    max_adapters: Annotated[int, Meta(ge=1)] = 8  # its --max-cpu-loras, or --max-loras

    input_price: _USD = 0  # per million tokens; `stoa price set api:MODEL:input` wins over these
    cached_price: _USD | None = None  # default: as input
    output_price: _USD = 0
    daily_budget: _USD | None = None  # UTC days and months; spent: nothing is sent until the next
    monthly_budget: _USD | None = None

    max_in_flight: Annotated[int, Meta(ge=1)] = 64
    requests_per_minute: Annotated[int, Meta(ge=0)] = 0
    tokens_per_minute: Annotated[int, Meta(ge=0)] = 0  # prompt and completion

    when: When = "overflow"  # see `handicap_s`
    overflow_s: Annotated[float, Meta(ge=0)] = 1.0

    connect_s: Annotated[float, Meta(gt=0)] = 5.0
    first_token_s: Annotated[float, Meta(gt=0)] = 60.0
    progress_s: Annotated[float, Meta(gt=0)] = 20.0  # between tokens; comments do not count
    total_s: Annotated[float, Meta(gt=0)] = 3600.0
    probe_s: Annotated[float, Meta(gt=0)] = 10.0  # between questions to /models until it has answered

    def takes_grammar(self, grammar: Grammar) -> bool:
        return grammar.kind in (_GRAMMARS[self.dialect] if self.grammars is None else self.grammars)

    @property
    def handicap_s(self) -> float:
        """Seconds that the router adds to its wait. always: none; overflow: it gets what would wait `overflow_s` longer at
        our own replicas; fallback: what no replica of ours takes."""
        return {"always": 0.0, "overflow": self.overflow_s, "fallback": _FALLBACK_S}[self.when]

    @property
    def price(self) -> ApiPrice:
        cached = self.input_price if self.cached_price is None else self.cached_price
        return ApiPrice(parse_usd(self.input_price), parse_usd(cached), parse_usd(self.output_price))


def read_remotes(
    tables: Sequence[Mapping[str, Any]], *, source: str = "stoa.toml", environ: Mapping[str, str] = os.environ
) -> list[RemoteConfig]:
    """The `[[remote]]` tables, checked. Raises ConfigError naming the remote, the key, and what is accepted."""
    found: list[RemoteConfig] = []
    for i, table in enumerate(tables):
        where = f"{source}: remote {table.get('name', i + 1)!r}"
        if "api_key" in table:
            raise ConfigError(
                f"{where}: api_key does not belong into a file; put it into an environment variable and name that in "
                "api_key_env",
                param="api_key",
            )
        try:
            config = msgspec.convert(dict(table), RemoteConfig)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {error}", param="remote") from None
        _check(config, where, environ)
        if config.name in {c.name for c in found}:
            raise ConfigError(f"{where}: there are two remotes of that name", param="name")
        found.append(config)
    return found


def api_key(config: RemoteConfig, environ: Mapping[str, str] = os.environ) -> str:
    return environ.get(config.api_key_env, "") if config.api_key_env else ""


def key_fault(key: str) -> str | None:
    """What is wrong with a key, which is not shown; None: nothing."""
    if _KEY.fullmatch(key):
        return None
    return "has a space, a line end, or another character that is not visible ASCII"


def _check(config: RemoteConfig, where: str, environ: Mapping[str, str]) -> None:
    def refuse(key: str, why: str) -> ConfigError:
        return ConfigError(f"{where}: {key} {why}", param=key)

    if not _NAME.fullmatch(config.name):
        raise refuse("name", "must be 1 to 64 of A-Z a-z 0-9 . _ -")
    if (fault := _url_fault(config.url)) is not None:
        raise refuse("url", fault)
    if config.api_key_env and not environ.get(config.api_key_env):
        raise refuse("api_key_env", f"names {config.api_key_env}, which is not set or empty")
    if (fault := key_fault(api_key(config, environ))) is not None:
        raise refuse("api_key_env", f"names {config.api_key_env}, whose value {fault}")
    if config.api == "chat" and config.load_adapters:
        raise refuse("load_adapters", 'is for api = "completions"')
    if config.load_adapters and config.dialect == "openai":
        raise refuse("load_adapters", 'is for dialect = "vllm" or "stoa"')
    if config.dialect == "openai" and not config.max_model_len:
        raise refuse("max_model_len", "must be set: such a remote does not say how long its context is")
    if not config.models and not config.load_adapters:
        raise refuse("models", 'is empty; accepted: a table such as { "our-base" = "their-base" }')
    for key in ("input_price", "cached_price", "output_price", "daily_budget", "monthly_budget"):
        try:
            parse_usd(getattr(config, key) or 0)
        except InvalidPrice as error:
            raise refuse(key, f"is wrong: {error.message}") from None
    for key in ("daily_budget", "monthly_budget"):
        if getattr(config, key) is not None and not (config.input_price or config.output_price):
            raise refuse(key, "needs input_price and output_price: else nothing would count against it")


def _url_fault(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
    except ValueError as error:
        return f"is {url!r}: {error}"
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok:
        return f"is {url!r}; accepted: http://HOST[:PORT]/v1 or https://…"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "must have no user, password, query or fragment"
    return None
