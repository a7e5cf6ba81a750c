"""Request traces: formats, and what is wrong with a file by line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.simulator import InvalidTrace, Requests, load_requests, read_requests, scale_rate
from tests.simulator.worlds import poisson, requests

SHARED = Path(__file__).parents[3] / "shared" / "data" / "traces"
HEADER = "arrival_s,prompt_tokens,output_tokens\n"


def write(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_columns_are_found_by_name_and_projects_and_adapters_are_numbered(tmp_path: Path) -> None:
    """Order of columns and further ones do not matter."""
    path = write(
        tmp_path, "output_tokens,x,project,arrival,prompt_tokens,adapter\n4,?,p,0.5,10,\n5,?,q,1.5,11,a\n"
    )
    found = load_requests(path)
    assert found.arrival_s.tolist() == [0.5, 1.5]
    assert found.prompt_tokens.tolist() == [10, 11]
    assert found.output_tokens.tolist() == [4, 5]
    assert found.project is not None
    assert found.adapter is not None
    assert [found.names[i] for i in found.project] == ["p", "q"]
    assert (found.adapter[0], found.names[found.adapter[1]]) == (-1, "a")


def test_dates_count_from_the_first(tmp_path: Path) -> None:
    """Azure's traces have seven digits after the second."""
    path = write(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 23:59:59.5000000,374,44\n2023-11-17 00:00:01.2500000,396,109\n",
    )
    assert load_requests(path).arrival_s.tolist() == [0.0, 1.75]


def test_json_lines_are_in_milliseconds(tmp_path: Path) -> None:
    """As Mooncake writes them; packed or not is seen from the content."""
    text = '{"timestamp": 1500, "input_length": 6758, "output_length": 500, "hash_ids": [1, 2]}\n\n'
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(text.encode()))
    found = load_requests(path)
    assert (found.arrival_s.tolist(), found.prompt_tokens.tolist()) == ([1.5], [6758])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: no column"),
        ("arrival_s,prompt_tokens\n1,2\n", "line 1: no column output_tokens"),
        (HEADER, "no requests"),
        (HEADER + "1,2,3\n2,3\n", "line 3: 2 fields"),
        (HEADER + "1,2,3\nnan,2,3\n", "line 3: arrival at nan"),
        (HEADER + "-1,2,3\n", "line 2: arrival at -1"),
        (HEADER + "inf,2,3\n", "line 2: arrival at inf"),
        (HEADER + "1,2,3\nsoon,2,3\n", "line 3: 'soon'"),
        (HEADER + "soon,2,3\n", "line 2: 'soon'"),
        (HEADER + "2,2,3\n\n1,2,3\n", "line 4: arrival at 1.000 s, before"),
        (HEADER + "1,0,3\n", "line 2: prompt_tokens is '0'"),
        (HEADER + "1,2,-3\n", "line 2: output_tokens is '-3'"),
        (HEADER + "1,2.5,3\n", "line 2: prompt_tokens is '2.5'"),
        (HEADER + "1,2,\n", "line 2: output_tokens is ''"),
        (HEADER + "1,2,9e99\n", "line 2: output_tokens is '9e99'"),
        (HEADER + "2023-01-01 00:00:01,2,3\n2023-01-01 00:00,2,3\n", "line 3: arrival at -1"),
        (HEADER + "2023-01-01,2,3\n7,2,3\nx,2,3\n", "line 4: 'x'"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 3}\n{"timestamp"', "line 2"),
        ('{"timestamp": 1, "input_length": 2}\n', "line 1.*output_length"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(tmp_path: Path, text: str, says: str) -> None:
    """Nothing is dropped, guessed or clipped."""
    path = write(tmp_path, text)
    with pytest.raises(InvalidTrace, match=says) as caught:
        load_requests(path)
    assert str(path) in caught.value.message


def test_a_file_that_is_absent_or_cut_off_is_told(tmp_path: Path) -> None:
    """Also one whose packing ends early."""
    with pytest.raises(InvalidTrace, match="No such file"):
        load_requests(tmp_path / "absent.csv")
    whole = gzip.compress((HEADER + "1,2,3\n" * 5000).encode())
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidTrace, match="cut"):
        load_requests(tmp_path / "cut.csv.gz")


def test_order_is_checked_across_chunks_or_made(tmp_path: Path) -> None:
    """A month is read in pieces; sorting needs it whole."""
    path = write(tmp_path, HEADER + "5,1,1\n6,2,2\n4,3,3\n")
    with pytest.raises(InvalidTrace, match="line 4"):
        list(read_requests(path, chunk=2))
    assert load_requests(path, sort=True).prompt_tokens.tolist() == [3, 1, 2]


def test_a_long_trace_is_read_in_pieces(tmp_path: Path) -> None:
    """No more than a chunk is in memory."""
    path = write(tmp_path, HEADER + "".join(f"{i},1,1\n" for i in range(10)))
    assert [len(chunk) for chunk in read_requests(path, chunk=4)] == [4, 4, 2]


@pytest.mark.data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("azure2023_conv.csv.gz", 19_366), ("azure2023_code.csv.gz", 8_819),
        ("mooncake_conversation.jsonl.gz", 12_031), ("mooncake_synthetic.jsonl.gz", 3_993),
    ],
)  # fmt: skip
def test_public_traces_can_be_read(name: str, rows: int) -> None:
    """Every request of them."""
    assert len(load_requests(SHARED / name, sort=True)) == rows


# -- at another rate


@settings(deadline=None, max_examples=40)
@given(
    factor=st.sampled_from([0.2, 0.7, 1.0, 1.5, 3.0, 12.25]),
    chunk=st.integers(1, 700),
    jitter_s=st.sampled_from([0.0, 1.0, 60.0]),
    seed=st.integers(0, 99),
)
def test_a_scaled_trace_is_in_order_and_has_its_share(
    factor: float, chunk: int, jitter_s: float, seed: int
) -> None:
    """Requests come `factor` times as often, none earlier than in the trace, none more than the jitter later."""
    trace = poisson(10.0, 1000, seed=4)
    trace.prompt_tokens[:] = np.arange(1, 1001)
    pieces = (trace.part(slice(i, i + chunk)) for i in range(0, 1000, chunk))
    parts = list(scale_rate(pieces, factor, seed=seed, jitter_s=jitter_s))
    arrival_s = np.concatenate([p.arrival_s for p in parts])
    original = np.concatenate([p.prompt_tokens for p in parts]) - 1
    assert (np.diff(arrival_s) >= 0).all()
    assert len(arrival_s) == pytest.approx(1000 * factor, abs=4 * np.sqrt(1000) + 1)
    later = arrival_s - trace.arrival_s[original]
    assert (later >= 0).all()
    assert (later <= jitter_s).all()
    if factor >= 1:
        assert len(np.unique(original)) == 1000


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_factor_is_refused(factor: float) -> None:
    """The message says what is accepted."""
    with pytest.raises(InvalidTrace, match="above 0"):
        scale_rate([requests((0.0, 1, 1))], factor)


def test_scaling_keeps_projects() -> None:
    """A copy belongs to whom the request belongs to."""
    trace = Requests(
        np.arange(4.0), np.ones(4, np.int32), np.ones(4, np.int32), np.arange(4, dtype=np.int32), None, "abcd"
    )
    for part in scale_rate([trace], 2.0, jitter_s=0.0):
        assert part.project is not None
        assert part.project.tolist() == np.floor(part.arrival_s).astype(int).tolist()
