"""Model cards, and adapters that come and go."""

from __future__ import annotations

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError

from stoa.errors import EngineUnavailable
from tests.server.fakes import MAX_MODEL_LEN, FakeRegistry, FakeReplica


async def test_the_list(client: AsyncOpenAI) -> None:
    """The base model first, adapters with it as parent."""
    base, poet = (await client.models.list()).data
    assert (base.id, base.object, base.owned_by) == ("org/base", "model", "stoa")
    cards = [base.model_extra or {}, poet.model_extra or {}]
    assert [c["parent"] for c in cards] == [None, "org/base"]
    assert [c["max_model_len"] for c in cards] == [MAX_MODEL_LEN] * 2
    assert cards[0]["root"] == "org/base"
    assert cards[0]["permission"][0]["object"] == "model_permission"


async def test_one_model(client: AsyncOpenAI, registry: FakeRegistry) -> None:
    """By id, also with a slash; by name and version; or 404."""
    assert (await client.models.retrieve("org/base")).id == "org/base"
    versioned = f"poet@{registry.get('poet').version}"
    assert (await client.models.retrieve(versioned)).id == versioned
    with pytest.raises(NotFoundError) as caught:
        await client.models.retrieve("painter")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_an_adapter_comes_and_goes(
    http: httpx.AsyncClient, client: AsyncOpenAI, replica: FakeReplica, registry: FakeRegistry
) -> None:
    """vLLM's words; usable at once; warmed, and forgotten with its name."""
    response = await http.post(
        "/v1/load_lora_adapter", json={"lora_name": "painter", "lora_path": "/painter"}
    )
    assert (response.status_code, response.text) == (
        200,
        "Success: LoRA adapter 'painter' added successfully",
    )
    entry = registry.get("painter")
    assert replica.calls == [("warm", entry.id)]
    await client.completions.create(model="painter", prompt="a")
    assert replica.requests[0].adapter == entry.ref
    response = await http.post("/v1/unload_lora_adapter", json={"lora_name": "painter"})
    assert (response.status_code, response.text) == (
        200,
        "Success: LoRA adapter 'painter' removed successfully",
    )
    assert replica.calls[1:] == [("forget", entry.id)]
    with pytest.raises(NotFoundError, match="painter"):
        await client.completions.create(model="painter", prompt="a")


async def test_replacing(http: httpx.AsyncClient, replica: FakeReplica, registry: FakeRegistry) -> None:
    """Only when asked for; the old content is forgotten."""
    body = {"lora_name": "poet", "lora_path": "/better"}
    old = registry.get("poet")
    refused = await http.post("/v1/load_lora_adapter", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "adapter_exists")
    assert (await http.post("/v1/load_lora_adapter", json=body | {"load_inplace": True})).status_code == 200
    assert replica.calls == [("forget", old.id), ("warm", registry.get("poet").id)]


async def test_registration_does_not_need_the_engine(
    http: httpx.AsyncClient, replica: FakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter can be added while the engine restarts."""

    async def down(_: object) -> None:
        raise EngineUnavailable("restarting")

    monkeypatch.setattr(replica, "warm", down)
    response = await http.post("/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": "/new"})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("load", {"lora_name": "x", "lora_path": "/nowhere"}, 400, "lora_path"),
        ("load", {"lora_name": "x", "lora_path": ""}, 400, "lora_path"),
        ("load", {"lora_name": "x", "lora_path": "a\0b"}, 400, "lora_path"),
        ("load", {"lora_name": "x"}, 400, "lora_path"),
        ("load", {"lora_path": "/x"}, 400, "lora_name"),
        ("load", {"lora_name": 1, "lora_path": "/x"}, 400, "lora_name"),
        ("load", {"lora_name": "x", "lora_path": "/x", "code": 1}, 400, "code"),
        ("unload", {"lora_name": "x"}, 404, "lora_name"),
        ("unload", {}, 400, "lora_name"),
    ],
)
async def test_refusals(
    http: httpx.AsyncClient, path: str, body: dict[str, object], status: int, param: str
) -> None:
    """JSON errors that name the field."""
    response = await http.post(f"/v1/{path}_lora_adapter", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
