"""Adapters are at the remote when a request wants them, under names that cannot be mistaken."""

from __future__ import annotations

import asyncio
from typing import Any

from stoa.engine.request import AdapterRef
from stoa.fleet.remote.mapping import loaded_name
from tests.fleet.remote.conftest import Bench, Ear, MakeBench, request
from tests.fleet.remote.fake_remote import error, hang

TEXT = "Hello world"


def ref(letter: str, owner: str = "") -> AdapterRef:
    return AdapterRef(id=(f"{owner}:" if owner else "") + letter * 64, path=f"/here/{letter}")


async def loading(make: MakeBench, **more: Any) -> Bench:
    bench: Bench = await make(load_adapters=True, adapter_paths={"/here": "/there"}, **more)
    await _until(lambda: bench.replica.ready)
    return bench


async def test_an_adapter_is_loaded_once_and_asked_by_its_content(make: MakeBench) -> None:
    """Requests at once share the load; the folder is named as the remote sees it."""
    bench = await loading(make)
    ears = await asyncio.gather(*(bench.ask(request(str(i), adapter=ref("a"))) for i in range(5)))
    assert [e.text() for e in ears] == [TEXT] * 5
    loads = [body for path, body in bench.remote.asked if path == "/v1/load_lora_adapter"]
    assert loads == [{"lora_name": f"stoa-{'a' * 40}", "lora_path": "/there/a"}]
    assert {b["model"] for b in bench.remote.bodies} == {f"stoa-{'a' * 40}"}


async def test_what_vanished_with_the_remote_is_loaded_again(make: MakeBench) -> None:
    """The request that finds out is answered all the same."""
    bench = await loading(make)
    await bench.ask(request("before", adapter=ref("a")))
    bench.remote.loaded.clear()
    assert (await bench.ask(request("after", adapter=ref("a")))).text() == TEXT
    assert list(bench.remote.loaded) == [loaded_name(ref("a"))]


async def test_the_longest_unused_makes_room_and_what_is_in_use_stays(make: MakeBench) -> None:
    """When all are in use, a request for another one goes elsewhere."""
    bench = await loading(make, max_adapters=2)
    for letter in "aba":
        await bench.ask(request(letter, adapter=ref(letter)))
    bench.remote.script.append(hang(1))
    held = Ear()
    bench.replica.open(request("held", adapter=ref("a")), held)
    await held.some.wait()
    assert (await bench.ask(request("c", adapter=ref("c")))).text() == TEXT
    assert set(bench.remote.loaded) == {loaded_name(ref("a")), loaded_name(ref("c"))}
    bench.remote.script.append(hang(1))
    other = Ear()
    bench.replica.open(request("other", adapter=ref("c")), other)
    await other.some.wait()
    assert (await bench.ask(request("d", adapter=ref("d")))).losses == 1
    assert bench.replica.ready


async def test_an_adapter_that_cannot_be_loaded_is_no_fault_of_the_remote(make: MakeBench) -> None:
    """Its requests go elsewhere, others stay."""
    bench = await loading(make)

    async def no_folder(body: dict[str, Any], wire: Any) -> None:
        await bench.remote.problem(wire, 404, {"error": {"message": "no such folder"}})

    bench.remote._load = no_folder  # type: ignore[method-assign]
    for i in range(10):
        assert (await bench.ask(request(str(i), adapter=ref("a")))).losses == 1
    assert (bench.replica.ready, len(bench.replica._adapters)) == (True, 0)


async def test_what_is_there_already_is_taken_over(make: MakeBench) -> None:
    """From the remote's list at the start, and from its refusal to load it twice."""
    mine = loaded_name(ref("a"))
    bench = await loading(make, fake={"loaded": {mine: "/there/a"}}, max_adapters=1)
    assert (await bench.ask(request("a", adapter=ref("a")))).text() == TEXT
    bench.remote.loaded[loaded_name(ref("b"))] = "/there/b"
    assert (await bench.ask(request("b", adapter=ref("b")))).text() == TEXT
    assert list(bench.remote.loaded) == [loaded_name(ref("b"))]


async def test_warm_loads_ahead_and_forget_unloads(make: MakeBench) -> None:
    """Without a request."""
    bench = await loading(make)
    bench.replica.warm(ref("a"))
    await _until(lambda: bench.remote.loaded)
    bench.replica.forget(ref("a").id)
    await _until(lambda: not bench.remote.loaded)


async def test_two_owners_of_one_content_share_nothing() -> None:
    """Not even the name."""
    names = {loaded_name(ref("a")), loaded_name(ref("a", "proj_a")), loaded_name(ref("a", "proj_b"))}
    assert len(names) == 3


async def test_a_mapped_adapter_is_asked_by_its_name_there(make: MakeBench) -> None:
    """A project's own by PROJECT/NAME only: another project's adapter of that name is another one."""
    models = {"our-base": "their-base", "poet": "their-poet", "proj_a/mine": "their-mine"}
    fake = {"models": [{"id": m} for m in models.values()]}
    bench: Bench = await make(models=models, fake=fake)
    await bench.ask(request("1", model="poet@0123", adapter=ref("a")))
    await bench.ask(request("2", model="mine", adapter=ref("b", "proj_a")))
    assert [b["model"] for b in bench.remote.bodies] == ["their-poet", "their-mine"]
    for name, of in (
        ("mine", ref("b")),
        ("poet", ref("a", "proj_a")),
        ("other", ref("c")),
        ("our-base", ref("a")),
    ):
        assert bench.replica.unfit(request(model=name, adapter=of)) == "it does not have the model"
    bench.remote.script.append(error(404))
    assert (await bench.ask(request("3", model="poet", adapter=ref("a")))).losses == 1


async def _until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
