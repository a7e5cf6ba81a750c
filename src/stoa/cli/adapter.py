"""`stoa adapter`: the adapters under the home folder, or those of a running server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoa.config import Settings, load_settings
from stoa.errors import InvalidRequest
from stoa.tenancy.principal import DEFAULT_ORGANIZATION, DEFAULT_PROJECT

if TYPE_CHECKING:
    from stoa.tenancy.adapters import ProjectAdapters
    from stoa.tenancy.office import Office

app = typer.Typer(
    no_args_is_help=True,
    help="Add, list and remove LoRA adapters. A server that wants a key gets STOA_API_KEY.",
)
Url = Annotated[str | None, typer.Option("--url", help="a running server, e.g. http://127.0.0.1:8000")]
Model = Annotated[
    str | None, typer.Option("--model", help="base model the adapters belong to: demo, a folder, or a hub id")
]
Project = Annotated[str, typer.Option("--project", help="tenant whose adapters are meant, by name or id")]
Public = Annotated[bool, typer.Option("--public", help="those that every project can use")]
Home = Annotated[str | None, typer.Option("--home", help="folder of all state")]


@app.command("add")
def add(
    name: str,
    path: Path,
    replace: bool = False,
    project: Project = DEFAULT_PROJECT,
    public: Public = False,
    url: Url = None,
    model: Model = None,
    home: Home = None,
) -> None:
    """Check the PEFT folder PATH and register it as NAME."""
    if url:
        body = {"lora_name": name, "lora_path": str(path.resolve()), "load_inplace": replace}
        print(_post(url, "/v1/load_lora_adapter", body | _whose(project, public)))
        return
    registry = _adapters(model, home).of(None if public else _project_id(project, home))
    entry = registry.add(name, path, replace=replace)
    print(f"added {entry.name}@{entry.version}: rank {entry.rank}, {entry.nbytes / 1e6:.1f} MB")


@app.command("list")
def list_(
    project: Project = DEFAULT_PROJECT,
    url: Url = None,
    model: Model = None,
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """List registered adapters."""
    if url:
        cards = json.loads(_request("GET", url, "/v1/models", None))["data"]
        rows = [{"name": card["id"], "path": card["root"]} for card in cards if card.get("parent")]
    else:
        rows = [
            {"name": e.name, "version": e.version, "rank": e.rank, "bytes": e.nbytes, "path": str(e.path)}
            for e in _adapters(model, home).list(_project_id(project, home))
        ]
    print(json.dumps(rows) if as_json else _table(rows))


@app.command("rm")
def remove(
    name: str,
    project: Project = DEFAULT_PROJECT,
    public: Public = False,
    url: Url = None,
    model: Model = None,
    home: Home = None,
) -> None:
    """Remove an adapter and its files under the home folder."""
    if url:
        print(_post(url, "/v1/unload_lora_adapter", {"lora_name": name} | _whose(project, public)))
        return
    adapters, project = _adapters(model, home), _project_id(project, home)
    entry = adapters.public.get(name) if public else adapters.get(project, name)
    if not entry.path.is_relative_to(adapters.root):
        raise InvalidRequest(f"{name} is served in place from {entry.path}; it goes when that folder goes")
    adapters.of(None if public else project).remove(name)
    print(f"removed {name}")


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no adapters"
    lines = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _whose(project: str, public: bool) -> dict[str, Any]:
    """For a server, which takes the key's project unless it is told another."""
    return {"public": True} if public else {} if project == DEFAULT_PROJECT else {"project": project}


def _project_id(project: str, home: str | None) -> str:
    """Raises NotFound."""
    if project == DEFAULT_PROJECT:
        return project
    from stoa.cli.administration import with_office

    async def find(office: Office) -> str:
        return (await office.projects.find(DEFAULT_ORGANIZATION, project)).id

    return with_office(home, None, find)


def _adapters(model: str | None, home: str | None) -> ProjectAdapters:
    from stoa.cli.models import folders_in_place, open_adapters, resolve_model

    settings: Settings = load_settings({"model": model, "home": home})
    model_id, folder = resolve_model(settings)
    adapters = open_adapters(settings, model_id, folder)
    for place in folders_in_place(settings):
        adapters.public.add_folder(place)
    return adapters


def _post(url: str, path: str, body: dict[str, Any]) -> str:
    return _request("POST", url, path, body)


def _request(method: str, url: str, path: str, body: dict[str, Any] | None) -> str:
    import httpx

    from stoa.cli.remote import checked, key_header, server_root

    headers = key_header()
    try:
        response = httpx.request(method, server_root(url) + path, json=body, headers=headers, timeout=120)
    except httpx.HTTPError as error:
        raise InvalidRequest(f"{url} cannot be reached: {error}") from None
    return checked(response).text
