"""What commands that talk to a running server share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stoa.config import load_settings
from stoa.errors import InvalidRequest

if TYPE_CHECKING:
    import httpx


def server_root(url: str) -> str:
    """http://host:port, with or without the /v1 that OpenAI clients want."""
    return url.rstrip("/").removesuffix("/v1")


def key_header() -> dict[str, str]:
    key = load_settings().api_key
    return {"Authorization": f"Bearer {key}"} if key else {}


def checked(response: httpx.Response) -> httpx.Response:
    """Raises InvalidRequest with what the server said."""
    if response.is_error:
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"{response.url} answered {response.status_code}, which no Stoa server does"
        if response.status_code == 401:
            message += "; set STOA_API_KEY"
        raise InvalidRequest(message)
    return response
