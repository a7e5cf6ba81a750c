"""`stoa serve`: a gateway in this process, an engine in another."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoa.config import FILE_NAME, Settings, load_settings
from stoa.errors import ConfigError
from stoa.tenancy.principal import DEFAULT_PROJECT

if TYPE_CHECKING:
    from stoa.cli.batching import Batching
    from stoa.cli.fleets import ServedFleet
    from stoa.cli.wiring import Tenancy
    from stoa.engine.config import EngineConfig
    from stoa.fleet.fleet import Fleet
    from stoa.server import Service

_GIB = 1 << 30


def serve(
    host: Annotated[str | None, typer.Option(help="address to bind")] = None,
    port: Annotated[int | None, typer.Option()] = None,
    model: Annotated[str | None, typer.Option(help="demo, a Hugging Face folder, or a hub id")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="the base model's id in the API")] = None,
    adapters: Annotated[str | None, typer.Option(help="folder of PEFT folders, served in place")] = None,
    weights_cache: Annotated[
        bool | None, typer.Option(help="keep packed weights under home, to be mapped at the next start")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option(help="GPUs that share the model, each with a part of every layer")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, bf16 or fp32")] = None,
    quantize: Annotated[
        str | None, typer.Option(help="base weights as none (bf16), int8 or int4; adapters stay bf16")
    ] = None,
    threads: Annotated[int | None, typer.Option()] = None,
    speculation: Annotated[bool | None, typer.Option(help="guess tokens ahead where it pays")] = None,
    isa: Annotated[str | None, typer.Option(help="force an instruction set path; see stoa doctor")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="tokens per sequence")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="sequences in one step")] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(help="rows in one step")] = None,
    max_lora_rank: Annotated[int | None, typer.Option()] = None,
    pool_gib: Annotated[float | None, typer.Option(help="memory for KV blocks and resident adapters")] = None,
    host_adapter_gib: Annotated[
        float | None, typer.Option(help="memory for adapters behind the pool")
    ] = None,
    max_queue: Annotated[int | None, typer.Option(help="requests in flight before 429")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="larger bodies get 413")] = None,
    files_url: Annotated[
        str | None, typer.Option(help="where files lie: s3://… by fsspec; default: under home")
    ] = None,
    max_file_bytes: Annotated[int | None, typer.Option(help="larger uploads to /v1/files get 413")] = None,
    max_stored_bytes: Annotated[
        int | None, typer.Option(help="of one project's files together; 0: no limit")
    ] = None,
    drain_s: Annotated[float | None, typer.Option(help="time for running requests on SIGTERM")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="local, auto (a node of a Ray cluster), ray://HOST:PORT, or HOST:PORT")
    ] = None,
    min_replicas: Annotated[int | None, typer.Option(help="0: none while nobody asks")] = None,
    max_replicas: Annotated[int | None, typer.Option()] = None,
    idle_s: Annotated[
        float | None, typer.Option(help="without a request, before the last replica goes (min_replicas 0)")
    ] = None,
    slo_ttft_ms: Annotated[float | None, typer.Option(help="target for first tokens")] = None,
    hold_s: Annotated[float | None, typer.Option(help="how long a request waits for a replica")] = None,
    profile: Annotated[
        str | None, typer.Option(help="what one replica can do: a file of stoa bench profile")
    ] = None,
    replica_cpus: Annotated[
        float | None, typer.Option(help="that a replica is given on a cluster; so the next four")
    ] = None,
    replica_gpus: Annotated[float | None, typer.Option()] = None,
    replica_memory_gib: Annotated[float | None, typer.Option()] = None,
    replica_resources: Annotated[str | None, typer.Option(help="custom ones of Ray: NAME=AMOUNT,…")] = None,
    replica_labels: Annotated[str | None, typer.Option(help="that its node must have: NAME=VALUE,…")] = None,
    offers: Annotated[
        str | None, typer.Option(help="hourly prices: ZONE/spot=USD,ZONE/on_demand=USD,…")
    ] = None,
    provision_s: Annotated[
        float | None, typer.Option(help="for a node to come; 0: the cluster does not grow")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(help="a file of stoa plan --apply, read again when it changes")
    ] = None,
    zone: Annotated[str | None, typer.Option(help="where this machine stands, as the plan names it")] = None,
    auth: Annotated[
        str | None, typer.Option(help="auto (open on loopback until there is a key), keys, or open")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="one key for everything, beside those of stoa key")
    ] = None,
    db: Annotated[
        str | None, typer.Option(help="sqlite:///FILE or postgresql://…; default: under home")
    ] = None,
    redis: Annotated[str | None, typer.Option(help="where several gateways share limits: redis://…")] = None,
    fairness: Annotated[
        str | None, typer.Option(help="projects' shares counted in cost or tokens, or off")
    ] = None,
    step_target_ms: Annotated[
        float | None, typer.Option(help="how long steps may be beside a project that floods")
    ] = None,
    node: Annotated[str | None, typer.Option(help="what the ledger calls this machine")] = None,
    machine: Annotated[str | None, typer.Option(help="the type that prices speak of; see stoa price")] = None,
    watts: Annotated[float | None, typer.Option(help="what the machine draws")] = None,
    memory_share: Annotated[float | None, typer.Option(help="part of the price that is for memory")] = None,
    home: Annotated[str | None, typer.Option(help="folder of all state")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error")] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json")] = None,
    config: Annotated[Path | None, typer.Option(help="settings file; default ./stoa.toml")] = None,
) -> None:
    """Serve a base model and its adapters over an OpenAI-compatible API."""
    flags = {k: v for k, v in locals().items() if k != "config"}
    settings = load_settings(flags, file=config)
    listener = _bind(settings)
    import uvloop  # with the rest that only serving needs

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, listener, source=str(config or FILE_NAME)))


async def _serve(settings: Settings, listener: socket.socket, *, source: str) -> None:
    from stoa.cli.fleets import open_fleet
    from stoa.cli.models import resolve_model
    from stoa.cli.planfiles import open_plan
    from stoa.fleet.remote.settings import read_remotes
    from stoa.telemetry import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    remotes = read_remotes(settings.remote, source=source)
    model_id, folder = resolve_model(settings)
    served = open_fleet(settings, model_id, _engine_config(settings, folder))
    fleet = served.fleet
    plan = open_plan(settings, model_id, served, remotes)
    starting = asyncio.create_task(served.start())
    tenancy: Tenancy | None = None
    try:
        begun = asyncio.create_task(served.begun())
        await asyncio.wait({starting, begun}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        # What follows is read and imported while the engine does its own.
        from stoa.cli.batching import open_batching
        from stoa.cli.remotes import open_remote
        from stoa.cli.wiring import open_tenancy
        from stoa.server.edge import is_loopback

        tenancy = await open_tenancy(settings, loopback=is_loopback(settings.host))
        await plan.watch(tenancy.office.projects)
        fleet.keep_books(tenancy.metering)
        service = _assemble(settings, model_id, folder, fleet, tenancy)
        for remote in remotes:
            opened = open_remote(remote, model_id, service.tokenizer, tenancy)
            plan.tell(opened.follow)
            fleet.add(opened, slots=remote.max_in_flight, handicap_s=remote.handicap_s)
            await opened.start()
        batching = open_batching(settings, tenancy.database, lambda: fleet.in_flight)
        await _serve_http(settings, service, served, batching, starting, listener)
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await plan.close()
        await served.stop(0)
        if tenancy is not None:
            await tenancy.close()


async def _serve_http(
    settings: Settings,
    service: Service,
    served: ServedFleet,
    batching: Batching,
    starting: asyncio.Task[None],
    listener: socket.socket,
) -> None:
    import uvicorn

    from stoa.server import create_app

    app = create_app(service, files=batching.files, batches=batching.batches)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    )
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment]  # ours, below
    http = asyncio.create_task(server.serve(sockets=[listener]))
    stop = asyncio.Event()

    def end() -> None:
        if stop.is_set():
            served.fleet.hurry()
        stop.set()

    loop = asyncio.get_running_loop()
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping, http}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            gc.collect()
            gc.freeze()  # what is there now stays: looking through it again and again would hold up streams
            _announce(settings, service, served.fleet)
            batching.work(app, served.fleet.stats)
            await asyncio.wait({stopping, http}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            print(
                f"stopping: up to {settings.drain_s:g} s for running requests; once more stops at once",
                file=sys.stderr,
            )
            await batching.stop()
            await served.stop(settings.drain_s)
    finally:
        await batching.stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        server.should_exit = True
        await http


def _assemble(settings: Settings, model_id: str, folder: Path, fleet: Fleet, tenancy: Tenancy) -> Service:
    from stoa.cli.models import folders_in_place, open_adapters
    from stoa.engine.model.config import read_model_config
    from stoa.engine.tokenizer import Tokenizer
    from stoa.server import Service

    adapters = open_adapters(settings, model_id, folder)
    for place in folders_in_place(settings):
        for name, reason in adapters.public.add_folder(place).items():
            print(f"not served: {place / name}: {reason}", file=sys.stderr)
    return Service(
        model_id=model_id,
        replica=fleet,
        tokenizer=Tokenizer(folder),
        adapters=adapters,
        authority=tenancy.authority,
        metering=tenancy.metering,
        office=tenancy.office,
        database=tenancy.database,
        vocab_size=read_model_config(folder).vocab_size,
        max_body_bytes=settings.max_body_bytes,
        max_queue=settings.max_queue,
        max_lora=settings.max_num_seqs,
        keys_wanted=tenancy.keys_wanted,
        keeps_source=any(table.get("api") == "chat" for table in settings.remote),
    )


def _engine_config(settings: Settings, folder: Path) -> EngineConfig:
    from stoa.engine.config import EngineConfig

    return EngineConfig(
        model=str(folder),
        dtype=settings.dtype,
        quantize=settings.quantize,
        speculation=settings.speculation,
        device=settings.device,
        tensor_parallel=settings.tensor_parallel,
        threads=settings.threads,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_batch_tokens=settings.max_batch_tokens,
        pool_bytes=int(settings.pool_gib * _GIB),
        host_adapter_bytes=int(settings.host_adapter_gib * _GIB),
        max_lora_rank=settings.max_lora_rank,
        fairness=settings.fairness,
        step_target_ms=settings.step_target_ms,
        ttft_target_ms=settings.slo_ttft_ms,
        isa=settings.isa or None,
        weights_cache=str(settings.home_path / "cache" / "weights") if settings.weights_cache else "",
    )


def _announce(settings: Settings, service: Service, fleet: Fleet) -> None:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host else host
    url = f"http://{host}:{settings.port}"
    names = [entry.name for entry in service.adapters.list(DEFAULT_PROJECT)]
    shown = names if len(names) <= 12 else [*names[:12], f"… {len(names) - 12} more"]
    body: dict[str, Any] = {
        "model": "reverse" if "reverse" in names else (names or [service.model_id])[0],
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 32,
        "temperature": 0,
    }
    key = ' -H "Authorization: Bearer $STOA_API_KEY"' if service.keys_wanted else ""
    lines = [
        f"Stoa is ready at {url} ({f'kernels: {fleet.kernels}' if fleet.kernels else 'replicas come when asked for'})",
        f"  base model  {service.model_id}",
        f"  adapters    {', '.join(shown) or 'none yet; see stoa adapter add --help'}",
        f"  try         curl -s {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'",
    ]
    if fleet.notice:
        lines.insert(1, f"  note        {fleet.notice}")
    with contextlib.suppress(BrokenPipeError):  # who started it need not listen
        print("\n".join(lines), flush=True)


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(
            f"cannot bind {settings.host}:{settings.port}: {error}; choose another --port"
        ) from None
    return listener
