"""`stoa chat`: talk to a running server."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from stoa.config import load_settings
from stoa.errors import InvalidRequest


def chat(
    message: Annotated[str | None, typer.Argument(help="one message; without it, a conversation")] = None,
    model: Annotated[str | None, typer.Option(help="base model or adapter; default: the base model")] = None,
    url: Annotated[str, typer.Option(help="a running server")] = "http://127.0.0.1:8000",
    temperature: Annotated[float, typer.Option()] = 0.7,
    max_tokens: Annotated[int, typer.Option()] = 512,
) -> None:
    """Chat with a model of a running server."""
    import httpx

    key = load_settings().api_key
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=None) as client:
            options["model"] = model or client.get("/v1/models").json()["data"][0]["id"]
            if message is not None:
                _turn(client, [{"role": "user", "content": message}], options)
            else:
                _conversation(client, options)
    except httpx.HTTPError as error:
        raise InvalidRequest(f"{url} cannot be reached: {error}") from None


def _conversation(client: Any, options: dict[str, Any]) -> None:
    history: list[dict[str, str]] = []
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
            raise InvalidRequest(response.json()["error"]["message"])
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
