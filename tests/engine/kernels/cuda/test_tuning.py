"""Choices are measured once, kept, and never made while they must not be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from stoa.engine.kernels.cuda.tuning import NothingRunsError, Tuning


@dataclass(frozen=True)
class Choice:
    size: int
    deep: bool = False


CHOICES = [Choice(1), Choice(2), Choice(3, True)]


class FakeGPU:
    """Each choice takes `seconds[size]`; those without seconds do not fit. Timer and kernel in one."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.ran: list[int] = []

    def run(self, choice: Choice) -> None:
        if choice.size not in self.seconds:
            raise RuntimeError("out of shared memory")
        self.ran.append(choice.size)

    def time(self, run: Callable[[], None]) -> float:
        run()
        return self.seconds[self.ran[-1]]


def tuning(path: Path | None, gpu: FakeGPU | None, device: str = "H200", version: str = "3") -> Tuning:
    return Tuning(path, device, gpu.time if gpu else None, version)


def test_the_fastest_is_chosen_once_and_remembered_by_the_file(tmp_path: Path) -> None:
    """Another process reads what one has measured; a bool stays a bool."""
    path = tmp_path / "new" / "tuning.json"
    gpu = FakeGPU({1: 3.0, 2: 2.0, 3: 1.0})
    first = tuning(path, gpu)
    assert first.choose("linear", (64, "bf16"), CHOICES, gpu.run) == CHOICES[2]
    assert first.choose("linear", (64, "bf16"), CHOICES, gpu.run) == CHOICES[2]
    assert gpu.ran == [1, 2, 3]
    later = tuning(path, None)
    assert later.choose("linear", (64, "bf16"), CHOICES, gpu.run) is CHOICES[2]
    assert [p.name for p in path.parent.iterdir()] == ["tuning.json"]


def test_other_keys_devices_and_compilers_are_measured_for_themselves(tmp_path: Path) -> None:
    """And none of them loses what the others know."""
    path = tmp_path / "tuning.json"
    a, b = FakeGPU({1: 1.0, 2: 2.0, 3: 3.0}), FakeGPU({1: 2.0, 2: 1.0, 3: 3.0})
    for _ in range(2):
        assert tuning(path, a, "A100").choose("linear", (64,), CHOICES, a.run).size == 1
        assert tuning(path, b, "H200").choose("linear", (64,), CHOICES, b.run).size == 2
        assert tuning(path, b, "A100", "4").choose("linear", (64,), CHOICES, b.run).size == 2
        assert tuning(path, b, "A100").choose("shrink", (64,), CHOICES, b.run).size == 2
    assert a.ran == [1, 2, 3]
    assert b.ran == [1, 2, 3] * 3


def test_two_processes_at_once_keep_each_others_choices(tmp_path: Path) -> None:
    """Both began with the same file."""
    path = tmp_path / "tuning.json"
    gpu = FakeGPU({1: 2.0, 2: 1.0, 3: 3.0})
    one, other = tuning(path, gpu), tuning(path, gpu)
    one.choose("linear", (1,), CHOICES, gpu.run)
    other.choose("linear", (2,), CHOICES, gpu.run)
    third = tuning(path, None)
    assert [third.choose("linear", (k,), CHOICES, gpu.run).size for k in (1, 2)] == [2, 2]


def test_nothing_is_measured_while_frozen_or_without_a_timer(tmp_path: Path) -> None:
    """What is known is used, else the default, which is not remembered."""
    path = tmp_path / "tuning.json"
    gpu = FakeGPU({1: 2.0, 2: 1.0, 3: 3.0})
    assert tuning(path, None).choose("linear", (1,), CHOICES, gpu.run) == CHOICES[0]
    some = tuning(path, gpu)
    some.choose("linear", (1,), CHOICES, gpu.run)
    gpu.ran.clear()
    some.frozen = True
    assert some.choose("linear", (1,), CHOICES, gpu.run) == CHOICES[1]
    assert some.choose("linear", (2,), CHOICES, gpu.run) == CHOICES[0]
    assert gpu.ran == []
    some.frozen = False
    assert some.choose("linear", (2,), CHOICES, gpu.run) == CHOICES[1]


def test_candidates_that_do_not_fit_are_passed_over() -> None:
    """If none fits, that is said."""
    gpu = FakeGPU({2: 5.0})
    some = tuning(None, gpu)
    assert some.choose("linear", (1,), CHOICES, gpu.run) == CHOICES[1]
    with pytest.raises(NothingRunsError, match="linear 2"):
        some.choose("linear", (2,), [CHOICES[0], CHOICES[2]], gpu.run)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "\x00\xff",
        '{"H200 triton 3": [1]}',
        '{"H200 triton 3": {"linear 1": "fast"}}',
        '{"H200 triton 3": {"linear 1": [7, true]}}',
        '{"H200 triton 3": {"linear 1": [2]}}',
    ],
)
def test_a_damaged_or_foreign_file_is_measured_anew(tmp_path: Path, text: str) -> None:
    """Nor does a choice that is none of the candidates get in."""
    path = tmp_path / "tuning.json"
    path.write_bytes(text.encode("latin-1"))
    gpu = FakeGPU({1: 2.0, 2: 1.0, 3: 3.0})
    assert tuning(path, gpu).choose("linear", (1,), CHOICES, gpu.run) == CHOICES[1]
    assert json.loads(path.read_text())["H200 triton 3"]["linear 1"] == [2, False]


def test_a_file_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    """The choice holds for this process."""
    (tmp_path / "file").write_text("")
    gpu = FakeGPU({1: 2.0, 2: 1.0, 3: 3.0})
    some = tuning(tmp_path / "file" / "tuning.json", gpu)
    for _ in range(2):
        assert some.choose("linear", (1,), CHOICES, gpu.run) == CHOICES[1]
    assert gpu.ran == [1, 2, 3]
