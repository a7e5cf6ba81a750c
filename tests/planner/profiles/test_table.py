"""Profiles from tables: what went into a table comes out, and real tables are met within a few percent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stoa.errors import ConfigError
from stoa.fleet.policies.profile import Profile
from stoa.planner.profiles import Fitted, Limits, read_table
from stoa.planner.profiles.steps import Step, fit

SHARED = Path(__file__).parents[4] / "shared" / "data" / "profiles"
TRUE = Profile(name="true", fixed_s=0.03, prompt_row_s=2e-4, decode_row_s=3e-4, context_token_s=4e-7)
OWN = "machine,model,kind,rows,context_tokens,seconds\n"
SPLITWISE = "model,hardware,prompt_size,batch_size,token_size,tensor_parallel,prompt_time,token_time\n"


def own_lines(profile: Profile, machine: str = "a", noise: float = 0.0) -> str:
    rng = np.random.default_rng(0)
    lines = [f"{machine},m,prefill,{rows},,{profile.step_s(rows, 0)}" for rows in (64, 256, 1024, 2048)]
    for rows in (1, 4, 16, 64):
        for context in (100, 1000, 4000):
            seconds = profile.step_s(0, rows, rows * context) * (1 + noise * rng.standard_normal())
            lines.append(f"{machine},m,decode,{rows},{rows * context},{seconds}")
    return "\n".join(lines) + "\n"


def written(folder: Path, text: str, name: str = "times.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def costs(found: Fitted) -> tuple[float, ...]:
    return tuple(
        getattr(found.profile, name)
        for name in ("fixed_s", "prompt_row_s", "decode_row_s", "context_token_s")
    )


def test_exact_times_give_the_profile_back(tmp_path: Path) -> None:
    """Our own layout, without noise, with the limits that were asked for."""
    found = read_table(written(tmp_path, OWN + own_lines(TRUE)), limits=Limits(32, 4096, 9000))
    assert costs(found) == pytest.approx((0.03, 2e-4, 3e-4, 4e-7), rel=1e-6)
    assert found.error < 1e-6
    assert found.source == "table"
    assert (found.profile.max_num_seqs, found.profile.kv_tokens) == (32, 9000)


def test_noise_is_what_the_error_says(tmp_path: Path) -> None:
    """A tenth of noise on twelve of sixteen lines."""
    found = read_table(written(tmp_path, OWN + own_lines(TRUE, noise=0.1)))
    assert 0.02 < found.error < 0.12
    assert "16 measured steps" in found.why


def test_one_of_several_machines_is_selected(tmp_path: Path) -> None:
    """By machine, in any case; an open choice lists what there is."""
    slow = Profile(name="slow", fixed_s=0.3, prompt_row_s=2e-3, decode_row_s=3e-3, context_token_s=4e-6)
    path = written(tmp_path, OWN + own_lines(TRUE, "fast") + own_lines(slow, "slow"))
    assert read_table(path, {"machine": "SLOW"}).profile.fixed_s == pytest.approx(0.3)
    with pytest.raises(
        ConfigError, match="2 machines and models; there is machine fast, model m; machine slow, model m"
    ):
        read_table(path)
    with pytest.raises(ConfigError, match="select fits nothing"):
        read_table(path, {"machine": "none"})
    with pytest.raises(ConfigError, match="select names hardware; accepted: machine, model"):
        read_table(path, {"hardware": "fast"})


def test_splitwise_lines_are_two_steps(tmp_path: Path) -> None:
    """A batch's prompts, and its decoding at the mean context."""
    lines = []
    for batch, prompt, tokens in ((1, 128, 64), (1, 512, 1024), (2, 512, 64), (8, 128, 64), (16, 64, 512)):
        decode_s = TRUE.step_s(0, batch, batch * (prompt + tokens / 2))
        lines.append(
            f"m,h,{prompt},{batch},{tokens},4,{TRUE.step_s(batch * prompt, 0) * 1e3},{decode_s * 1e3}"
        )
    path = written(tmp_path, SPLITWISE + "\n".join(lines))
    found = read_table(path, {"model": "m", "tensor_parallel": 4})
    assert costs(found) == pytest.approx((0.03, 2e-4, 3e-4, 4e-7), rel=1e-6)


def helix(folder: Path, prompt: str, decode: str) -> Path:
    written(folder, prompt, "m__a100__prompt_bs2time.csv")
    return written(folder, decode, "m__a100__decode_bs2time.csv")


def test_helix_files_are_of_one_layer(tmp_path: Path) -> None:
    """Times of ten layers are ten times as long; the first line is no measurement."""
    path = helix(tmp_path, "0,0\n100,2\n200,3\n400,5\n", "0,0\n10,2\n20,3\n40,5\n")
    found = read_table(path, {"layers": 10})
    assert costs(found) == pytest.approx((0.01, 1e-4, 1e-3, 0.0))
    assert found.profile.name == "m on a100"
    assert "unstated length" in found.why
    with pytest.raises(ConfigError, match="must say how many"):
        read_table(path)


def test_larger_prefills_than_a_step_can_have_do_not_count(tmp_path: Path) -> None:
    """Attention makes long ones slower than a sum of rows; chunks never are that long."""
    text = OWN + own_lines(TRUE) + "a,m,prefill,32000,,60.0\n"
    assert costs(read_table(written(tmp_path, text))) == pytest.approx((0.03, 2e-4, 3e-4, 4e-7), rel=1e-6)


def test_a_batch_faster_than_a_smaller_one_is_left_out(tmp_path: Path) -> None:
    """It did not do what it says; the result says so."""
    found = read_table(written(tmp_path, OWN + own_lines(TRUE) + "a,m,prefill,2000,,0.05\n"))
    assert costs(found) == pytest.approx((0.03, 2e-4, 3e-4, 4e-7), rel=1e-6)
    assert "1 left out" in found.why


def test_costs_are_never_negative() -> None:
    """Times that fall with the batch leave its cost at zero."""
    found = fit(
        [Step(0, n, 0, 0.1 - 1e-4 * n) for n in (1, 10, 50)] + [Step(n, 0, 0, 0.1 + n) for n in (1, 2, 3)]
    )
    assert found["decode_row_s"] == 0
    assert min(found.values()) >= 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the columns are those of no table"),
        ("a,b,c\n1,2,3\n", "the columns are those of no table"),
        (OWN, "no line of measurements"),
        (OWN + "a,m,prefill,1,,0.1\n", "1 sizes of prompt rows; two or more"),
        (OWN + "a,m,guess,1,,0.1\n", "line 2: kind is 'guess'; accepted: prefill or decode"),
        (OWN + "a,m,decode,-1,,0.1\n", "line 2: rows is '-1'; accepted: 1 or above"),
        (OWN + "a,m,decode,1,,nan\n", "seconds is 'nan'; accepted: a time above 0"),
        (OWN + "a,m,decode,1,,0\n", "seconds is '0'; accepted: a time above 0"),
        (OWN + "a,m,decode,1,,90000\n", "accepted: a time above 0 and below 3600"),
        (OWN + "a,m,prefill,1,5,0.1\n", "only sequences that decode"),
        (OWN + "a,m,decode,1\n", "4 fields instead of 6"),
        (SPLITWISE + "m,h,512,x,128,2,100,50\n", "batch_size is 'x'"),
    ],
)
def test_garbage_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    """And with what would be accepted."""
    with pytest.raises(ConfigError, match=message):
        read_table(written(tmp_path, text))


@pytest.mark.parametrize("line", ["10", "a,b", "10,-1", "10,nan", "1,2,3"])
def test_helix_garbage_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    """Either file may have it."""
    path = helix(tmp_path, f"0,0\n{line}\n", "2,1\n4,2\n")
    with pytest.raises(ConfigError, match=r"line 2: .*; accepted: a size and milliseconds"):
        read_table(path, {"layers": 8})


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (lambda n: n * (1e-3 if n % 3 else 1e-6), "12 of 38 steps are faster than others"),
        (lambda n: 1e-6 * 2**n, "off a sum of rows and contexts"),
    ],
)
def test_times_that_are_no_sum_of_rows_are_refused(
    tmp_path: Path, seconds: Callable[[int], float], message: str
) -> None:
    """Other units in every third line, or doubling with each row."""
    lines = [f"a,m,{kind},{n},,{seconds(n)}" for kind in ("prefill", "decode") for n in range(1, 20)]
    with pytest.raises(ConfigError, match=message):
        read_table(written(tmp_path, OWN + "\n".join(lines)))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """With its path; of Helix's two also the other one."""
    with pytest.raises(ConfigError, match=r"none\.csv: No such file"):
        read_table(tmp_path / "none.csv")
    alone = written(tmp_path, "2,1\n4,2\n", "m__prompt_bs2time.csv")
    with pytest.raises(ConfigError, match=r"m__decode_bs2time\.csv: No such file"):
        read_table(alone, {"layers": 8})


@pytest.mark.data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    ("model", "count"), [("llama2-70b", 2), ("llama2-70b", 4), ("llama2-70b", 8), ("bloom-176b", 8)]
)
@pytest.mark.parametrize("hardware", ["a100-80gb", "h100-80gb", "h100-80gb-pcap"])
def test_splitwise_tables_are_met(model: str, count: int, hardware: str) -> None:
    """Within 8 % on average."""
    chosen = {"model": model, "hardware": hardware, "tensor_parallel": count}
    assert read_table(SHARED / "splitwise_perf_model.csv.gz", chosen).error < 0.08


@pytest.mark.data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_helix_tables_are_met() -> None:
    """All fourteen, within 10 % on average; their times are rounded to whole milliseconds a layer."""
    paths = sorted((SHARED / "helix").glob("*_prompt_bs2time.csv"))
    found = [read_table(path, {"layers": 80 if "70b" in path.name else 60}) for path in paths]
    assert len(found) == 14
    assert max(each.error for each in found) < 0.10
