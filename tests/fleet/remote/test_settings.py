"""What an administrator may say of a remote, and what requests have no words there."""

from __future__ import annotations

from typing import Any

import pytest

from stoa.engine.request import Grammar
from stoa.errors import ConfigError
from stoa.fleet.remote import Calls, RemoteConfig, api_key, read_remotes
from stoa.fleet.remote.mapping import to_body, unfit
from tests.fleet.remote.conftest import config, request

TABLE = {"name": "there", "url": "https://api.example.com/v1", "models": {"our-base": "their-base"}}


def test_a_table_is_a_remote() -> None:
    """Its key comes from the environment."""
    environ = {"THEIR_KEY": "sesame"}
    (made,) = read_remotes([TABLE | {"api_key_env": "THEIR_KEY", "input_price": 2.5}], environ=environ)
    assert (api_key(made, environ), made.price.input_nanos) == ("sesame", 2_500_000_000)
    assert made.price.cached_nanos == made.price.input_nanos


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"api_key": "sesame"}, "api_key_env"),
        ({"api_key_env": "NOT_SET"}, "NOT_SET"),
        ({"url": "ftp://there"}, "http://HOST"),
        ({"url": "https://me:secret@there/v1"}, "user"),
        ({"url": "https://there:99999/v1"}, "url"),
        ({"url": "https://there/v1?key=1"}, "query"),
        ({"name": "a b"}, "name"),
        ({"models": {}}, "models"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"input_price": -1}, "input_price"),
        ({"daily_budget": 5}, "input_price"),
        ({"colour": "red"}, "colour"),
        ({"api": "chat", "load_adapters": True}, "load_adapters"),
        ({"when": "never"}, "when"),
    ],
)
def test_a_wrong_table_is_refused_by_name(more: dict[str, Any], word: str) -> None:
    """The message says which remote, which key, and what would be accepted."""
    with pytest.raises(ConfigError, match=word) as caught:
        read_remotes([TABLE | more], environ={})
    assert "remote" in caught.value.message


def test_two_remotes_need_two_names() -> None:
    """Logs, meters and the ledger tell them apart by it."""
    with pytest.raises(ConfigError, match="two remotes"):
        read_remotes([TABLE, TABLE], environ={})


def test_a_public_provider_must_say_how_long_its_context_is() -> None:
    """Its list of models does not."""
    with pytest.raises(ConfigError, match="max_model_len"):
        read_remotes([TABLE | {"dialect": "openai", "api": "chat"}], environ={})


def test_a_router_sees_when_a_remote_is_wanted() -> None:
    """As seconds of waiting elsewhere that it is better than."""
    found = [
        config("http://there/v1", when=w, overflow_s=3).handicap_s for w in ("always", "overflow", "fallback")
    ]
    assert found[:2] == [0, 3]
    assert found[2] > 10**6


@pytest.mark.parametrize("key", ["sesame\n", "sesame\r\n", "se same", "sesam\x7f", "sésame", "\tsesame"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key: str) -> None:
    """When settings are read, and before anything is sent."""
    tables = [TABLE | {"api_key_env": "THEIR_KEY"}]
    for refuse in (
        lambda: read_remotes(tables, environ={"THEIR_KEY": key}),
        lambda: Calls(config("http://t/v1"), key),
    ):
        with pytest.raises(ConfigError) as caught:
            refuse()
        assert "sam" not in caught.value.message
        assert caught.value.param == "api_key_env"


REGEX, LARK = Grammar(kind="regex", source="a+"), Grammar(kind="lark", source="start: x")
OPENAI: dict[str, Any] = {"dialect": "openai"}


@pytest.mark.parametrize(
    ("settings", "more", "reason"),
    [
        ({}, {"pooling": "mean"}, "embeddings"),
        ({"models": {"else": "x"}}, {}, "model"),
        ({}, {"params": {"max_tokens": 497}}, "context"),
        ({}, {"params": {"grammar": LARK}}, "lark"),
        (OPENAI, {"params": {"grammar": REGEX}}, "regex"),
        (OPENAI, {"params": {"top_k": 5}}, "top_k"),
        (OPENAI, {"params": {"logprobs": 0}}, "logprobs"),
        (OPENAI, {"params": {"stop": tuple("abcde")}}, "stop"),
        ({}, {"so_far": [[1]], "params": {"presence_penalty": 1.0}}, "penalties"),
        ({}, {"so_far": [[1]], "params": {"grammar": REGEX}}, "constraint"),
        (OPENAI | {"api": "chat"}, {"so_far": [[1]]}, "middle"),
        (OPENAI | {"api": "chat"}, {}, "conversations"),
    ],
)
def test_what_cannot_be_said_there_is_not_sent(
    settings: dict[str, Any], more: dict[str, Any], reason: str
) -> None:
    """The reason names what it is."""
    found = unfit(config("http://there/v1", **settings), "our-base", request(**more), 500)
    assert found is not None
    assert reason in found


def test_plain_requests_fit_everywhere() -> None:
    """Also constraints that the dialect knows."""
    for dialect in ("stoa", "vllm", "openai"):
        made: RemoteConfig = config("http://there/v1", dialect=dialect)
        for params in ({}, {"grammar": Grammar(kind="json_object")}, {"seed": 3, "stop": ("a",)}):
            assert unfit(made, "our-base", request(params=params), 500) is None
    assert (
        unfit(config("http://there/v1", dialect="stoa"), "our-base", request(params={"grammar": LARK}), 0)
        is None
    )


def test_defaults_are_said_where_servers_have_their_own() -> None:
    """A model's folder may set others there; a project's prefixes are its own."""
    body = to_body(config("http://there/v1"), "m", request(params={"temperature": 0.0}))
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.0, 1.0, -1, 0.0)
    assert body["repetition_penalty"] == 1.0
    other = to_body(config("http://there/v1"), "m", request().__class__(id="x", prompt_token_ids=[1]))
    assert body["cache_salt"] != other["cache_salt"]


def test_a_seed_of_0_is_said() -> None:
    """As any other, also where it is the sum of the request's and of the choice's number; a penalty of 0 is not."""
    for dialect in ("vllm", "openai"):
        made = config("http://there/v1", dialect=dialect)
        body = to_body(made, "m", request(params={"seed": 0}))
        assert body["seed"] == 0
        assert "presence_penalty" not in body
        assert to_body(made, "m", request(n=3, params={"seed": -2}), 2)["seed"] == 0
        assert "seed" not in to_body(made, "m", request())


def test_constraints_travel_as_structured_outputs() -> None:
    """In vLLM's words; to providers as response_format."""
    schema = Grammar(kind="json_schema", source='{"type":"object"}')
    asked = request(params={"grammar": schema})
    assert to_body(config("http://t/v1"), "m", asked)["structured_outputs"] == {"json": '{"type":"object"}'}
    plain = to_body(config("http://t/v1", dialect="openai", extra={"provider": "x"}), "m", asked)
    assert (plain["response_format"]["type"], plain["provider"]) == ("json_schema", "x")
