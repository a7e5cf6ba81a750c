"""`stoa chat`: talk to a running server."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from stoa.cli.remote import checked, key_header, server_root
from stoa.errors import InvalidRequest


def chat(
    message: Annotated[str | None, typer.Argument(help="one message; without it, a conversation")] = None,
    model: Annotated[str | None, typer.Option(help="base model or adapter; default: the base model")] = None,
    url: Annotated[str, typer.Option(help="a running server")] = "http://127.0.0.1:8000",
    temperature: Annotated[float, typer.Option()] = 0.7,
    max_tokens: Annotated[int | None, typer.Option(help="default: what fits the context")] = None,
    system: Annotated[str | None, typer.Option(help="system message")] = None,
) -> None:
    """Chat with a model of a running server. A server that wants a key gets STOA_API_KEY."""
    import httpx

    options: dict[str, Any] = {"temperature": temperature}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    history = [] if system is None else [{"role": "system", "content": system}]
    try:
        with httpx.Client(base_url=server_root(url), headers=key_header(), timeout=None) as client:
            options["model"] = model or checked(client.get("/v1/models")).json()["data"][0]["id"]
            if message is not None:
                _turn(client, [*history, {"role": "user", "content": message}], options)
            else:
                _conversation(client, history, options)
    except httpx.HTTPError as error:
        raise InvalidRequest(f"{url} cannot be reached: {error}") from None


def _conversation(client: Any, history: list[dict[str, str]], options: dict[str, Any]) -> None:
    print(f"{options['model']}; end with Ctrl-D")
    while True:
        try:
            history.append({"role": "user", "content": input("> ")})
        except (EOFError, KeyboardInterrupt):
            print()
            return
        history.append({"role": "assistant", "content": _turn(client, history, options)})


def _turn(client: Any, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
    """Streams one answer to the terminal and returns it."""
    answer = ""
    body = {"messages": messages, "stream": True, **options}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.is_error:
            response.read()
            checked(response)
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise InvalidRequest(chunk["error"]["message"])
            for choice in chunk["choices"]:
                text = choice["delta"].get("content") or ""
                answer += text
                print(text, end="", flush=True)
    print()
    return answer
