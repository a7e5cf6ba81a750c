"""Settings: flags win over STOA_* variables, variables over stoa.toml, the file over defaults."""

from __future__ import annotations

import os
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from stoa.errors import ConfigError

FILE_NAME = "stoa.toml"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `stoa serve` can be told. 0 means "choose from the machine or the model"."""

    home: str = ""  # all state; default: the user's data folder
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    model: str = "demo"  # "demo", a folder, or a hub id
    served_model_name: str = ""  # default: the folder's name
    adapters: str = ""  # a folder of PEFT folders, served in place
    weights_cache: bool = True  # packed weights on disk, mapped at the next start
    device: Literal["cpu", "cuda"] = "cpu"
    tensor_parallel: Annotated[int, Meta(ge=1, le=1024)] = 1  # GPUs that share the model
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    quantize: Literal["none", "int8", "int4"] = "none"  # of the base weights
    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    speculation: bool = True  # prompt lookup, where it pays; changes no token
    isa: str = ""  # force a lower instruction set path
    max_model_len: Annotated[int, Meta(ge=0)] = 0
    max_num_seqs: Annotated[int, Meta(ge=1, le=4096)] = 64
    max_batch_tokens: Annotated[int, Meta(ge=0, le=65536)] = 0
    max_lora_rank: Annotated[int, Meta(ge=1, le=65536)] = 512
    pool_gib: Annotated[float, Meta(ge=0, le=65536)] = 0.0  # KV blocks and resident adapters
    host_adapter_gib: Annotated[float, Meta(ge=0, le=65536)] = 0.0
    max_queue: Annotated[int, Meta(ge=1)] = 1024  # requests in flight before 429
    max_body_bytes: Annotated[int, Meta(ge=1)] = 8 << 20
    files_url: str = ""  # where files lie: s3://… by fsspec; default: a folder under home
    max_file_bytes: Annotated[int, Meta(ge=1)] = 512 << 20
    max_stored_bytes: Annotated[int, Meta(ge=0)] = 16 << 30  # of one project's files together; 0: no limit
    drain_s: Annotated[float, Meta(ge=0, le=86400)] = 30.0
    cluster: str = "local"  # local, auto (a node of a Ray cluster), ray://HOST:PORT, or HOST:PORT of the head
    min_replicas: Annotated[int, Meta(ge=0, le=10_000)] = 1
    max_replicas: Annotated[int, Meta(ge=1, le=10_000)] = 1
    idle_s: Annotated[float, Meta(ge=1, le=86400)] = 300.0  # until the last replica goes
    slo_ttft_ms: Annotated[float, Meta(ge=1, le=600_000)] = 2000.0  # target for first tokens
    hold_s: Annotated[float, Meta(ge=1, le=86400)] = 600.0  # how long a request waits for a replica
    profile: str = ""  # of one replica, a file of stoa bench profile
    replica_cpus: Annotated[float, Meta(ge=0, le=1024)] = 1.0  # that a replica is given on a cluster
    replica_gpus: Annotated[float, Meta(ge=0, le=64)] = 0.0
    replica_memory_gib: Annotated[float, Meta(ge=0, le=65536)] = 0.0
    replica_resources: str = ""  # custom ones of Ray: NAME=AMOUNT,…
    replica_labels: str = ""  # that its node must have: NAME=VALUE,…
    offers: str = ""  # hourly prices: ZONE/spot=USD,ZONE/on_demand=USD,…
    provision_s: Annotated[float, Meta(ge=0, le=86400)] = 0.0  # for a node to come; 0: never
    plan: str = ""  # a file of stoa plan --apply, read again when it changes: docs/planner-live.md
    zone: str = "local"  # where this machine stands
    auth: Literal["auto", "keys", "open"] = "auto"  # auto: open on loopback until there is a key
    api_key: str = ""  # one for everything, beside those in the database
    db: str = ""  # sqlite:///FILE or postgresql://…; default: a file under home
    redis: str = ""  # where several gateways share limits: redis://…
    fairness: Literal["cost", "tokens", "off"] = "cost"  # what projects' shares are counted in
    step_target_ms: Annotated[float, Meta(ge=0, le=60000)] = 0.0
    node: str = ""  # what the ledger calls this machine; default: its host name
    machine: str = "default"  # the type that prices speak of
    watts: Annotated[float, Meta(ge=0, le=1000000)] = 0.0
    memory_share: Annotated[float, Meta(ge=0, le=1)] = 0.2  # part of the price that is for memory
    remote: list[dict[str, Any]] = []  # [[remote]] tables of the file: docs/remotes.md
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    @property
    def home_path(self) -> Path:
        if self.home:
            return Path(self.home).expanduser()
        data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
        return Path(data).expanduser() / "stoa"


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """`flags` that are None were not given. Raises ConfigError naming the key, its source and what is accepted."""
    known = {f.name for f in msgspec.structs.fields(Settings)}
    merged: dict[str, Any] = {}
    sources = [
        (str(file or FILE_NAME), _read_file(file)),
        ("environment", {k: v for k in known if (v := environ.get(f"STOA_{k.upper()}")) is not None}),
        ("command line", {k: v for k, v in (flags or {}).items() if v is not None}),
    ]
    for source, values in sources:
        for key, value in values.items():
            if key not in known:
                raise ConfigError(
                    f"{source}: unknown setting {key!r}; accepted: {', '.join(sorted(known))}", param=key
                )
            _check(source, key, value)
            merged[key] = value
    return msgspec.convert(merged, Settings, strict=False)


def _check(source: str, key: str, value: Any) -> None:
    try:
        settings = msgspec.convert({key: value}, Settings, strict=False)
        if getattr(settings, key) != getattr(settings, key):
            raise msgspec.ValidationError("not a number")
    except msgspec.ValidationError:
        kind = typing.get_type_hints(Settings, include_extras=True)[key]
        raise ConfigError(f"{source}: {key} is {value!r}; accepted: {accepted(kind)}", param=key) from None


def accepted(kind: Any) -> str:
    """What a setting of this type may be, in words."""
    if typing.get_origin(kind) is Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is list:
        return "tables of the settings file"
    bare, *more = typing.get_args(kind) or (kind,)
    words = {"int": "an integer", "float": "a number", "str": "text", "bool": "true, false"}[bare.__name__]
    for meta in more:
        words += f", at least {meta.ge}" + (f" and at most {meta.le}" if meta.le is not None else "")
    return words


def _read_file(file: Path | None) -> dict[str, Any]:
    path = file or Path(FILE_NAME)
    if file is None and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
