"""Replicas of models on machines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stoa.errors import ConfigError
from stoa.planner.files.document import Document
from stoa.planner.files.safety import work_of
from stoa.planner.files.throughput import Replica, fits_of, read_replicas
from stoa.planner.problem import Bucket, MachineType, Network, Service
from tests.planner.files.worlds import document, files
from tests.planner.profiles.test_service import load_of

MACHINES = [
    MachineType("l4", "L4", 1, 24.0), MachineType("h100", "H100", 1, 80.0), MachineType("odd", "GAUDI", 1, 96.0),
]  # fmt: skip
TIMES = "machine,model,kind,rows,context_tokens,seconds\n" + "".join(
    f"l4,m,prefill,{n},,{0.02 + n * 1e-5}\nl4,m,decode,{n},{n * 500 + n * n},{0.02 + n * 1e-4 + (n * 500 + n * n) * 1e-7}\n"
    for n in (1, 8, 64, 256)
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "times.csv").write_text(TIMES)
    return files(tmp_path)


def replicas(
    folder: Path, *entries: dict[str, Any], **model: Any
) -> tuple[dict[str, Replica], tuple[str, ...]]:
    content = document(throughput=[{"model": "m", **e} for e in entries], model=[{"name": "m", **model}])
    found, notes = read_replicas(msgspec.convert(content, Document), MACHINES, folder)
    return {replica.machine: replica for replica in found}, notes


def test_the_first_that_speaks_of_a_machine_counts(folder: Path) -> None:
    """Measured where somebody measured, then a table, datasheets for the rest; each says what it is."""
    found, _ = replicas(
        folder,
        {"machines": ["l4"], "profile": "profile.json"},
        {
            "machines": ["h100"],
            "table": "times.csv",
            "select": {"machine": "l4", "model": "m"},
            "max_num_seqs": 32,
        },
        {"machines": ["l4", "h100"], "roofline": True},
        shape="llama-3.2-1b",
    )
    assert {name: r.source for name, r in found.items()} == {"l4": "measured", "h100": "table"}
    assert found["l4"].profile.fixed_s == 0.02
    assert found["h100"].profile.max_num_seqs == 32
    assert 1000 < found["h100"].profile.kv_tokens < 1 << 40
    assert "profile.json" in found["l4"].why
    assert "times.csv" in found["h100"].why


def test_machines_that_cannot_hold_a_model_are_left_out_unless_named(folder: Path) -> None:
    """A pattern takes what goes; a name is meant."""
    found, notes = replicas(
        folder, {"machines": ["*0*", "l4*"], "roofline": True}, shape="llama-3-8b", weights="30 GiB"
    )
    assert list(found) == ["h100"]
    assert "l4 is left out for m" in notes[0]
    with pytest.raises(ConfigError, match="30 GiB"):
        replicas(folder, {"machines": ["l4"], "profile": "profile.json"}, weights="30 GiB")
    with pytest.raises(ConfigError, match="are missing"):
        replicas(folder, {"machines": ["l4"], "roofline": True}, shape="llama-3-70b")


def test_datasheets_need_to_be_there(folder: Path) -> None:
    """Of the accelerator, and the model's shape."""
    with pytest.raises(ConfigError, match="'GAUDI'; known: T4"):
        replicas(folder, {"machines": ["odd"], "roofline": True}, shape="llama-3-8b")
    with pytest.raises(ConfigError, match="'unheard-of' is not known"):
        replicas(folder, {"machines": ["l4"], "roofline": True}, shape="unheard-of")


def test_adapters_take_memory_from_contexts(folder: Path) -> None:
    """As much as is stated, else a part of what the weights leave; none without adapters."""
    entry = {"machines": ["l4"], "roofline": True}
    plain, _ = replicas(folder, entry, shape="llama-3-8b")
    some, _ = replicas(folder, entry, shape="llama-3-8b", adapter="100 MB")
    stated, _ = replicas(folder, entry | {"adapters": "2 GiB"}, shape="llama-3-8b", adapter="100 MB")
    assert (plain["l4"].adapters_gib, stated["l4"].adapters_gib) == (math.inf, 2.0)
    assert some["l4"].adapters_gib == pytest.approx(0.2 * plain["l4"].profile.kv_tokens * 131072 / 2**30)
    assert plain["l4"].profile.kv_tokens - stated["l4"].profile.kv_tokens == pytest.approx(
        2 * 2**30 / 131072, abs=1
    )


def test_a_replica_may_be_run_at_the_pace_of_each_service(folder: Path) -> None:
    """Loads are reckoned under the pace's targets; services with stricter ones, or that want another model, have none."""
    found, _ = replicas(folder, {"machines": ["l4"], "profile": "profile.json"})
    services = {
        "chat": Service("chat", ("m",), 2.0, 0.05), "slow": Service("slow", ("m",), 10.0),
        "other": Service("other", ("n",), 2.0),
    }  # fmt: skip
    buckets = [Bucket(name, "g", 500, 100, (1.0,)) for name in services]
    strict, lax = fits_of([found["l4"]], buckets, services)
    profile = found["l4"].profile
    assert (strict.pace, lax.pace) == ("chat", "slow")
    assert (strict.load_s[0], strict.ttft_s[0]) == load_of(profile, 500, 100, 2.0, 0.05)
    assert strict.load_s[1] == strict.load_s[0] >= lax.load_s[1]
    assert lax.load_s == (math.inf, load_of(profile, 500, 100, 10.0, math.inf)[0], math.inf)
    assert strict.load_s[2] == math.inf


def test_first_tokens_leave_early_enough_for_the_way(folder: Path) -> None:
    """With a network, replicas are less full, so that the first token is in time at the far end too."""
    found, _ = replicas(folder, {"machines": ["l4"], "profile": "profile.json"})
    services = {"chat": Service("chat", ("m",), 0.12)}
    buckets = [Bucket("chat", "g", 500, 100, (1.0,), "far")]
    (near,) = fits_of([found["l4"]], buckets, services)
    (far,) = fits_of([found["l4"]], buckets, services, Network({("far", "here"): 0.05}))
    assert far.load_s[0] >= near.load_s[0]
    assert far.ttft_s[0] <= 0.12 - 0.05


def test_one_pace_has_no_name(folder: Path) -> None:
    """Services with the same targets share a replica without more ado."""
    found, _ = replicas(folder, {"machines": ["l4"], "profile": "profile.json"})
    services = {name: Service(name, ("m",), 2.0, 0.05) for name in ("chat", "code")}
    (fit,) = fits_of([found["l4"]], [Bucket("chat", "g", 500, 100, (1.0,))], services)
    assert fit.pace == ""


def test_work_is_what_requests_load_machines_with(folder: Path) -> None:
    """The mean over machines; where none serves them, tokens."""
    import numpy as np

    found, _ = replicas(folder, {"machines": ["l4", "h100"], "profile": "profile.json"})
    services = {"chat": Service("chat", ("m",), 2.0), "other": Service("other", ("n",), 2.0)}
    buckets = [
        Bucket("chat", "g", 100, 10, (1.0,)),
        Bucket("chat", "g", 100, 100, (1.0,)),
        Bucket("other", "g", 50, 5, (1.0,)),
    ]
    fits = fits_of(list(found.values()), buckets, services)
    prompt, output = np.array([100.0, 100.0, 50.0]), np.array([10.0, 100.0, 5.0])
    work = work_of(fits, prompt, output)
    assert work[1] / work[0] == pytest.approx(fits[0].load_s[1] / fits[0].load_s[0])
    assert work[2] == 55
    assert work_of((), prompt, output).tolist() == [110, 200, 55]
