"""The engine on `--device cuda`, in Triton's interpreter: same models, same answers, same contracts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stoa.engine import Engine
from stoa.engine.kernels.cuda import device, program
from stoa.engine.model.rehearsal import rehearse
from tests.engine.driving import assert_all_returned, drain, make_engine, request
from tests.engine.test_parity import PROMPT, reference
from tests.engine.tiny import LORAS, VARIANTS, adapter_folder, model_folder


def cuda_engine(folder: Path, **overrides: Any) -> Engine:
    return make_engine(folder, device="cuda", **({"max_batch_tokens": 48, "max_num_seqs": 8} | overrides))


@pytest.mark.interpreter
@pytest.mark.parametrize(
    "name",
    # the interpreter takes ten seconds for each
    ["mistral-window", *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS if v != "mistral-window")],
)
def test_every_adapter_in_one_batch_continues_like_peft(name: str) -> None:
    """All adapters and the base together, prompts and decode rows mixed, give each what peft gives it alone."""
    engine = cuda_engine(model_folder(name))
    which: list[int | None] = [None, *range(len(LORAS))]
    answers = drain(
        engine,
        [
            request(
                str(w),
                PROMPT[: 6 + i],
                adapter=None if w is None else adapter_folder(name, w),
                max_tokens=4,
            )
            for i, w in enumerate(which)
        ],
    )
    for i, w in enumerate(which):
        assert answers[str(w), 0].tokens == reference(name, w, PROMPT[: 6 + i], 4)[1], w
    assert_all_returned(engine)


@pytest.mark.interpreter
def test_a_sequence_keeps_its_bits_in_any_company() -> None:
    """Alone or among others, in one prompt or in chunks, from a graph or not: the same log-probabilities."""
    folder = model_folder("llama")

    def ask(engine: Engine, others: int) -> list[float]:
        mine = request("mine", PROMPT[:20], adapter=adapter_folder("llama", 1), max_tokens=3, logprobs=0)
        rest = [
            request(f"other {i}", PROMPT[i:12], adapter=adapter_folder("llama", i % 5), max_tokens=2 + i)
            for i in range(others)
        ]
        return [entry.logprob for entry in drain(engine, [*rest, mine])["mine", 0].logprobs]

    alone = ask(cuda_engine(folder), 0)
    assert ask(cuda_engine(folder, max_batch_tokens=13), 3) == alone


@pytest.mark.interpreter
def test_graphs_serve_any_adapters_without_being_made_anew() -> None:
    """A decode step of a size is captured once, and then played for whatever adapters and pages come."""
    engine = cuda_engine(model_folder("llama"), speculation=False)

    def ask(which: list[int | None]) -> None:
        adapters = [None if w is None else adapter_folder("llama", w) for w in which]
        drain(engine, [request(f"{i}", PROMPT[:5], adapter=a, max_tokens=3) for i, a in enumerate(adapters)])

    def graphs() -> dict[Any, Any]:
        found = engine.decoder._program
        assert isinstance(found, program.CudaProgram)
        return {key: graph.captured for key, graph in found._graphs.items()}

    for _ in range(2):  # memory for larger steps may still be taken in the first
        ask([3, 1])  # rank 33 on two layers, rank 16 on all: the rest is within that
    before = graphs()
    ask([4, 0])
    ask([None, 2])
    after = graphs()
    assert len(before) > 0
    assert all(after[key] is captured for key, captured in before.items())


@pytest.mark.interpreter
def test_without_graphs_steps_are_started_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A driver that captures nothing makes it slower, and is said so once."""

    def fail(*args: Any) -> None:
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(program, "capture", fail)
    answer = drain(cuda_engine(model_folder("llama")), [request("r", PROMPT[:5], max_tokens=3)])["r", 0]
    assert answer.tokens == reference("llama", None, PROMPT[:5], 3)[1]
    assert [r.message for r in caplog.records if r.name == program.__name__] == [
        "CUDA graphs cannot be had, steps will take longer: operation not permitted"
    ]


def test_a_step_without_memory_makes_a_sequence_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory in a step: the newest sequence is computed again later, and every answer is what it would be."""
    folder = model_folder("llama")
    wanted = {
        str(i): drain(make_engine(folder), [request("r", PROMPT[i:], max_tokens=6)])["r", 0].tokens
        for i in range(4)
    }
    engine = make_engine(folder, max_batch_tokens=64)
    forward = engine.decoder.forward

    def tight(token_ids: torch.Tensor, *args: Any) -> torch.Tensor:
        if len(token_ids) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(token_ids, *args)

    monkeypatch.setattr(engine.decoder, "forward", tight)
    answers = drain(engine, [request(str(i), PROMPT[i:], max_tokens=6) for i in range(4)])
    assert {i: answers[i, 0].tokens for i in wanted} == wanted
    assert engine.stats().preemptions > 0
    assert_all_returned(engine)


def test_a_row_that_never_fits_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even one row finds memory, its request fails with a typed error and the engine goes on."""
    engine = make_engine(model_folder("llama"))
    forward = engine.decoder.forward

    def full(*args: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.decoder, "forward", full)
    answer = drain(engine, [request("r", PROMPT)])["r", 0]
    assert answer.finish == "error"
    assert answer.last is not None
    assert answer.last.error_code == "out_of_memory"
    monkeypatch.setattr(engine.decoder, "forward", forward)
    assert drain(engine, [request("again", PROMPT[:3])])["again", 0].finish == "length"


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "interpreted", lambda: False)


@pytest.mark.usefixtures("no_interpreter")
class TestWithoutGpu:
    """What is said where no GPU can be used."""

    def refusal(self) -> str:
        from stoa.errors import ConfigError

        with pytest.raises(ConfigError) as caught:
            make_engine(model_folder("llama"), device="cuda")
        assert caught.value.param == "device"
        return caught.value.message

    def test_torch_without_cuda_is_named(self) -> None:
        """A CPU build of torch is told from a missing GPU."""
        assert "built without CUDA" in self.refusal()

    @pytest.mark.parametrize(
        ("said", "expected"),
        [
            (
                "The NVIDIA driver on your system is too old (found version 11040).",
                "driver is older than torch's CUDA 13.0",
            ),
            ("Found no NVIDIA driver on your system.", "no NVIDIA driver"),
            ("Unexpected error from cudaGetDeviceCount()\nmore", "CUDA does not start: Unexpected error"),
        ],
    )
    def test_a_driver_that_does_not_do_is_named(
        self, monkeypatch: pytest.MonkeyPatch, said: str, expected: str
    ) -> None:
        """Too old, absent or broken: the message says which."""

        def start() -> None:
            raise RuntimeError(said)

        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "init", start)
        assert expected in self.refusal()

    def test_no_device_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A driver without a GPU, perhaps hidden by CUDA_VISIBLE_DEVICES."""
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert "there is no NVIDIA GPU here (CUDA_VISIBLE_DEVICES is '')" in self.refusal()

    def test_an_old_capability_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Below 8.0 by number; above what torch was built for by its list."""
        from stoa.errors import ConfigError

        with pytest.raises(ConfigError, match=r"Tesla T4 has compute capability 7.5; accepted: 8.0 or newer"):
            device.check_capability("Tesla T4", (7, 5))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90", "compute_90"])
        device.check_capability("L4", (8, 9))
        with pytest.raises(ConfigError, match="has code for sm_80, sm_90"):
            device.check_capability("new", (12, 0))


def test_a_model_that_does_not_fit_says_which_setting_to_lower() -> None:
    """Bytes needed and free, and the quantizations that would fit."""
    from stoa.engine import EngineConfig
    from stoa.engine.limits import check_weights, weight_bytes
    from stoa.engine.model.config import read_model_config
    from stoa.errors import OutOfMemory

    model = read_model_config(model_folder("llama"))
    sizes = [weight_bytes(model, 2, bits) for bits in (16, 8, 4)]
    assert sizes == sorted(sizes, reverse=True)
    config = EngineConfig(model="", device="cuda")
    check_weights(config, model, 2, sizes[0] + 1)
    with pytest.raises(OutOfMemory, match=r"set quantize to int8 .* or int4") as caught:
        check_weights(config, model, 2, sizes[1] + 1)
    assert caught.value.param == "quantize"
    with pytest.raises(OutOfMemory, match="larger GPU or a smaller model"):
        check_weights(config, model, 2, 10)


@pytest.mark.interpreter
def test_a_rehearsal_leaves_no_trace() -> None:
    """Steps on nothing before the first: the answer is the same, and decoding goes on from graphs."""
    engine = cuda_engine(model_folder("llama"), max_batch_tokens=5)
    rehearse(engine.decoder, 5, 2, engine.layout)
    answer = drain(engine, [request("r", PROMPT[:5], max_tokens=3)])["r", 0]
    assert answer.tokens == reference("llama", None, PROMPT[:5], 3)[1]
