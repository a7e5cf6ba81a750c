"""What one project has in memory does not make another's answers faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from stoa.demo import BASE_DIR
from stoa.engine import AdapterRef, Engine
from stoa.engine.adapters.registry import AdapterRegistry
from stoa.engine.request import Grammar
from tests.engine.driving import drain, make_engine, request
from tests.engine.tiny import adapter_folder, model_folder

SECRET = [7, 9, 11, 4] * 40


def work_of(engine: Engine, name: str, tokens: list[int], project: str) -> tuple[int, int]:
    """What an answer takes: prompt tokens computed, and steps."""
    before = engine.stats().steps
    answer = drain(engine, [request(name, tokens, project=project, max_tokens=1)])[name, 0]
    assert answer.last is not None
    return answer.last.prompt_tokens - answer.last.cached_tokens, engine.stats().steps - before


def test_a_cached_prompt_is_no_less_work_for_another_project() -> None:
    """The owner's second question finds its prefix; another project's takes what a prompt takes that nobody has
    ever sent. Time follows work: kernels do the same for every row."""
    engine = make_engine(model_folder("llama"), max_batch_tokens=16, fairness="off")
    first = work_of(engine, "first", SECRET, "owner")
    guess = work_of(engine, "guess", SECRET, "spy")
    fresh = work_of(engine, "fresh", [20, *SECRET[1:]], "spy")
    again = work_of(engine, "again", SECRET, "owner")
    assert guess == fresh == first == (len(SECRET), len(SECRET) // 16)
    assert again == (16, 1)


def test_the_same_adapter_of_two_projects_is_read_twice(tmp_path: Path) -> None:
    """Nobody learns from speed that another project has uploaded the same weights."""
    engine = make_engine(model_folder("llama"))
    refs: list[AdapterRef] = []
    for owner in ("a", "b"):
        registry = AdapterRegistry(tmp_path / owner, engine.model, 64, owner=owner)
        refs.append(registry.add("mine", adapter_folder("llama", 1)).ref)
    for i, ref in enumerate(refs):
        asked = msgspec.structs.replace(request(f"{i}", [5, 6, 7]), adapter=ref)
        assert drain(engine, [asked])[f"{i}", 0].finish == "length"
    assert engine.stats().adapter_loads == 2


def test_grammars_of_another_project_are_compiled_again() -> None:
    """Nor what its output formats are."""
    engine: Any = make_engine(BASE_DIR)
    grammar = Grammar(kind="regex", source="[a-z]{3}")
    engine.grammars.compile(grammar, "a")
    assert engine.grammars.submit(grammar, "a").done()
    future = engine.grammars.submit(grammar, "b")
    assert not future.done() or ("b", grammar) in engine.grammars._cache
    future.result(20)
    assert len(engine.grammars._cache) == 2
    engine.close()
