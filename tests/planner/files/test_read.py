"""Whole documents."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from stoa.errors import ConfigError, InvalidTrace
from stoa.planner.files import read_inputs, read_problem
from stoa.planner.problem import Tier
from tests.planner.files.worlds import PROFILE, cloud, document, files, owned, write
from tests.planner.prices.shared import DATA, PRICES, needs_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return files(tmp_path)


def problem_of(folder: Path, **changes: Any) -> Any:
    return read_problem(write(folder, document(**changes)))


def refused(folder: Path, says: str, **changes: Any) -> ConfigError:
    with pytest.raises(ConfigError, match=says) as caught:
        problem_of(folder, **changes)
    return caught.value


def test_a_document_becomes_a_problem(folder: Path) -> None:
    """Prices, replicas, demand and rules come together."""
    found = problem_of(
        folder, rules={"survive_spot": True, "strain": 1.5, "ramp": 3, "budget": "100 USD", "carbon": "2 t"}
    )
    assert [(o.name, o.hourly_usd) for o in found.offers] == [
        ("small at ireland (on-demand)", 0.8), ("small at ireland (spot)", 0.25),
    ]  # fmt: skip
    (fit,) = found.fits
    assert (fit.machine, fit.model, fit.source) == ("small", "m", "measured")
    assert all(0 < load < math.inf for load in fit.load_s)
    assert sum(rate for b in found.buckets for rate in b.rates) / 24 == pytest.approx(1 / 60, rel=1e-3)
    assert (found.rules.survive_spot, found.rules.strain, found.rules.ramp) == (True, 1.5, 3)
    assert (found.rules.budget_usd, found.rules.carbon_kg) == (100.0, 2000.0)
    assert found.margin(0) >= 1
    assert found.horizon_h == 720


def test_toml_and_yaml_say_the_same(folder: Path) -> None:
    """With the same keys; a date may be a date."""
    toml = folder / "plan.toml"
    toml.write_text(
        '[[place]]\nname = "ireland"\nkind = "cloud"\nregion = "eu"\nprices = "prices.csv"\nmachine = [{ type = "small" }]\n'
        '[[throughput]]\nmodel = "m"\nmachines = ["*"]\nprofile = "profile.json"\n'
        '[[service]]\nname = "chat"\nmodels = ["m"]\nttft = "2 s"\n'
        '[demand]\ntrace = "trace.csv"\nstart = 2024-05-06\n'
    )
    assert read_problem(toml) == problem_of(folder, demand={"trace": "trace.csv", "start": "2024-05-06"})


def test_hours_of_a_trace_are_hours_of_the_documents_zone(folder: Path) -> None:
    """Midnight UTC is nine in Tokyo."""
    (folder / "trace.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n")
    demand = {"trace": "trace.csv", "start": "2024-05-06", "until": "1 d"}
    (bucket,) = problem_of(folder, demand=demand, time_zone="Asia/Tokyo").buckets
    assert [i for i, rate in enumerate(bucket.rates) if rate] == [9]


def test_groups_services_and_origins_part_the_demand(folder: Path) -> None:
    """Each request belongs to one of each."""
    found = problem_of(
        folder,
        place=[cloud([{"type": "small"}]), owned([{"type": "box", "count": 2}], labels=["eu"])],
        machine=[{"name": "box", "accelerator": "L40S"}],
        service=[
            {"name": "quick", "models": ["m"], "ttft": "1 s", "match": {"projects": ["a*"]}},
            {
                "name": "chat",
                "models": ["m"],
                "ttft": "2 s",
                "tpot": "50 ms",
                "attainment": "95 %",
                "survives": False,
            },
        ],
        rule=[{"name": "home", "projects": ["b"], "only": ["owned"]}],
        origin=[{"name": "office", "projects": ["a"]}],
        network={"link": [{"from": "office", "to": "cloud", "latency": "30 ms", "traffic": "1 USD/GiB"}]},
    )
    assert {(b.service, b.group, b.origin) for b in found.buckets} == {
        ("quick", "default", "office"), ("chat", "home", ""),
    }  # fmt: skip
    assert {g.name: g.places for g in found.groups}["home"] == {"cellar"}
    assert found.network.latency_s == {("office", "ireland"): 0.03}
    assert found.network.usd_per_gib == {("office", "ireland"): 1.0}
    assert (found.services[1].attainment, found.services[1].tpot_s, found.services[1].survives) == (
        0.95,
        0.05,
        False,
    )


def test_adapters_take_their_memory_once_for_a_kind(folder: Path) -> None:
    """So many as the service says, where the demand names none, of the model it wants."""
    found = problem_of(
        folder,
        model=[{"name": "m", "adapter": "1 GiB", "shape": "llama-3.2-1b"}],
        service=[{"name": "chat", "models": ["m"], "ttft": "2 s", "adapters": 3}],
    )
    assert sum(b.adapters_gib for b in found.buckets) == pytest.approx(3.0)
    (fit,) = found.fits
    assert fit.adapters_gib == pytest.approx(0.2 * 100_000 * 32768 / 2**30)
    assert fit.profile.kv_tokens == 80_000


def test_apis_stand_at_places_of_their_own(folder: Path) -> None:
    """A project that may not leave the house may not go there; long prompts cost what they cost, up to the longest."""
    (folder / "trace.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,1500,1\n")
    api = {
        "name": "burst",
        "model": "m",
        "prices": "hosted.json",
        "price": "x/m",
        "ttft": "500 ms",
        "tpot": "20 ms",
    }
    content = document(
        api=[api | {"requests": "60 req/min", "tokens": "1 Mtok/min", "labels": ["us"]}],
        demand={"trace": "trace.csv", "until": "1 d"},
        rule=[{"name": "home", "projects": ["b"], "never": ["api"]}],
    )
    found = read_inputs(write(folder, content))
    (hosted,) = found.problem.apis
    assert (hosted.place, hosted.input_usd, hosted.output_usd) == ("x", 1e-6, 2e-6)
    assert (hosted.tiers, hosted.max_prompt_tokens) == ((Tier(1000, 3e-6, 2e-6),), 500)
    assert (hosted.requests_per_s, hosted.tokens_per_s) == (1.0, pytest.approx(1e6 / 60))
    assert found.problem.places[-1].labels == {"api", "x", "us"}
    assert {g.name: g.places for g in found.problem.groups}["home"] == {"ireland"}
    stated = api | {
        "prices": None,
        "price": None,
        "input": "1 USD/Mtok",
        "output": "2 USD/Mtok",
        "place": "ireland",
    }
    plain = problem_of(
        folder, api=[{k: v for k, v in stated.items() if v is not None}], demand=content["demand"]
    )
    assert (plain.apis[0].place, plain.apis[0].input_usd) == ("ireland", pytest.approx(1e-6))
    assert (plain.apis[0].tiers, plain.apis[0].max_prompt_tokens) == ((), math.inf)
    assert {"api", "cloud"} <= plain.places[0].labels


def test_a_few_requests_may_be_late(folder: Path) -> None:
    """Those that nothing serves in time where they may be, up to half of what the service may miss; and notes say so."""
    rows = [f"{60 * i},{'ab'[i % 2]},{9000 if i in (100, 101) else 100},10" for i in range(1440)]
    (folder / "trace.csv").write_text(
        "arrival_s,project,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n"
    )
    slow = PROFILE | {"prompt_row_s": 1e-3}
    (folder / "slow.json").write_text(json.dumps(slow))
    content = document(
        place=[cloud([{"type": "small"}]), owned([{"type": "box", "count": 2}])],
        machine=[{"name": "box", "accelerator": "L40S"}],
        throughput=[
            {"model": "m", "machines": ["small"], "profile": "profile.json"},
            {"model": "m", "machines": ["box"], "profile": "slow.json"},
        ],
        rule=[{"name": "home", "projects": ["b"], "only": ["owned"]}],
        demand={"trace": "trace.csv", "until": "1 d"},
    )
    found = read_inputs(write(folder, content))
    (late,) = [b for b in found.problem.buckets if b.late]
    assert (late.group, late.prompt_tokens) == ("home", 9000)
    assert any("0.069 % of chat cannot be answered in time" in note for note in found.notes)
    box = next(f for f in found.problem.fits if f.machine == "box")
    assert box.load_s[found.problem.buckets.index(late)] < math.inf
    strict = content | {"service": [{"name": "chat", "models": ["m"], "ttft": "2 s", "attainment": 0.999}]}
    assert not any(b.late for b in read_problem(write(folder, strict)).buckets)


def test_demand_may_be_a_table(folder: Path) -> None:
    """It knows nothing of what is within its periods: so its requests come independently of each other, 30 in ten seconds.
    Nine of ten windows have no more than 1 + 1.28 / sqrt(30) times as many. And that is told first of all."""
    (folder / "demand.csv").write_text("prompt_tokens,output_tokens,requests_per_s\n100,10,2\n")
    found = problem_of(folder, demand={"table": "demand.csv", "scale": 1.5}, periods={"kind": "flat"})
    assert [b.rates for b in found.buckets] == [(3.0,)]
    assert found.rules.margin == pytest.approx((1 + 1.2816 / math.sqrt(30),), rel=1e-3)
    told = read_inputs(folder / "plan.yaml").warnings
    assert any("says nothing of bursts" in warning for warning in told)
    stated = {"demand": {"table": "demand.csv"}, "periods": {"kind": "flat"}, "safety": {"margin": 2.0}}
    assert not read_inputs(write(folder, document(**stated))).warnings


def test_rules_that_fit_nobody_are_told_first(folder: Path) -> None:
    """A misspelt rule keeps nobody, and so it is with services and origins."""
    content = document(
        rule=[{"name": "payroll", "projects": ["A", "hr-*"], "only": ["eu"]}],
        place=[cloud([{"type": "small"}], labels=["eu"])],
        origin=[{"name": "office", "projects": ["B*"]}, {"name": "all"}],
        service=[
            {"name": "few", "models": ["m"], "ttft": "2 s", "match": {"projects": ["c"]}},
            {"name": "chat", "models": ["m"], "ttft": "2 s"},
        ],
    )
    assert read_inputs(write(folder, content)).warnings == (
        "rule payroll fits no project of the demand (A, hr-*); those are a, b",
        "service few fits no project of the demand (c); those are a, b",
        "origin office fits no project of the demand (B*); those are a, b",
    )


def test_accelerators_without_a_datasheet_are_described(folder: Path) -> None:
    """By memory, bandwidth and arithmetic; or it is said what is missing."""
    content: dict[str, Any] = {
        "place": [owned([{"type": "box", "count": 2}], power_price="0.25 USD/kWh")],
        "model": [{"name": "m", "shape": "llama-3.1-8b"}],
        "throughput": [{"model": "m", "roofline": True}],
    }
    box = {"name": "box", "accelerator": "Homemade", "memory": "40 GB", "power": "300 W"}
    slow = problem_of(folder, machine=[box | {"bandwidth": "500 GB/s", "compute": "100 TFLOPS"}], **content)
    fast = problem_of(folder, machine=[box | {"bandwidth": "1 TB/s", "compute": "100 TFLOPS"}], **content)
    assert slow.fits[0].load_s[0] > 1.02 * fast.fits[0].load_s[0]
    refused(folder, "bandwidth and compute go together", machine=[box | {"compute": "100 TFLOPS"}], **content)
    refused(folder, "no datasheet .* 'Homemade'.*; accepted: bandwidth and compute", machine=[box], **content)
    bare = {"name": "box", "accelerator": "Homemade"}
    refused(folder, r"plan.yaml \(box\): machine\[0\]: .*accepted: memory", machine=[bare], **content)


def test_scenarios_have_a_factor_for_each_period(folder: Path) -> None:
    """Of all demand, or where a period differs."""
    scenario = [
        {"name": "usual", "probability": 0.9},
        {"name": "sale", "probability": 0.1, "factor": 2.0, "factors": {"12:00-24:00": 3.0}},
    ]
    found = problem_of(folder, safety={"scenario": scenario, "margin": 1.2}, periods={"step": 12})
    assert [(s.name, s.factors) for s in found.scenarios] == [("usual", (1.0, 1.0)), ("sale", (2.0, 3.0))]
    assert found.rules.margin == (1.2, 1.2)
    (dear,) = problem_of(folder, safety={"days": 0.9}, periods={"step": 12}).scenarios
    assert (dear.name, dear.probability, len(dear.factors)) == ("90% of days", 1.0, 2)


def test_a_margin_may_differ_by_period(folder: Path) -> None:
    """And is 1 where nothing is said."""
    by_name = {"margin": {"12:00-24:00": 1.5}}
    assert problem_of(folder, safety=by_name, periods={"step": 12}).rules.margin == (1.0, 1.5)
    refused(folder, "safety.margin: there is no period '12:00-24:00'; accepted: 00:00-01:00", safety=by_name)


def test_bursts_that_a_service_may_sit_out_need_no_margin(folder: Path) -> None:
    """A hundred requests at once, four times an hour: too many for answers in two seconds, few for a quarter of an hour."""
    rows = [f"{900 * i + 0.01 * j},100,10" for i in range(8) for j in range(100)]
    (folder / "trace.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    content: dict[str, Any] = {"periods": {"kind": "flat"}, "demand": {"trace": "trace.csv", "until": "2 h"}}
    patient = {"name": "sweeps", "models": ["m"], "ttft": "1 h"}
    assert problem_of(folder, service=[patient], **content).rules.margin == (1.0,)
    assert problem_of(folder, **content).rules.margin[0] == pytest.approx(90)


def test_a_service_that_hardly_counts_decides_no_margin(folder: Path) -> None:
    """Its few requests all come at once; the others come evenly."""
    rows = [f"{i},steady,100,10" for i in range(7200)]
    rows[3600:3600] = ["3600,few,100,10"] * 5
    (folder / "trace.csv").write_text(
        "arrival_s,project,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n"
    )
    chat = {"name": "chat", "models": ["m"], "ttft": "2 s"}
    few = chat | {"name": "few", "match": {"projects": ["few"]}}
    content: dict[str, Any] = {"periods": {"kind": "flat"}, "demand": {"trace": "trace.csv", "until": "2 h"}}
    assert problem_of(folder, service=[few, chat], **content).rules.margin[0] == pytest.approx(1.0, abs=0.01)


def test_another_currency_is_converted(folder: Path) -> None:
    """Of the document, or of an amount."""
    place = [cloud([{"type": "small", "on_demand": "1/h", "buy": ["on_demand"]}])]
    found = problem_of(folder, place=place, currency="EUR", exchange={"EUR": 1.1})
    assert found.offers[0].hourly_usd == pytest.approx(1.1)
    refused(folder, r"currency is in EUR.*accepted: \[exchange\] EUR", currency="EUR")
    place = [cloud([{"type": "small", "on_demand": "1 GBP/h"}])]
    refused(
        folder, r"place\[0\].machine\[0\].on_demand is in GBP, the document's currency is USD", place=place
    )
    refused(folder, "'dollars' is no currency", currency="dollars")
    refused(folder, "exchange.USD", exchange={"USD": 2.0})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"colour": 1}, "colour: there is no such key; accepted: currency, time_zone"),
        ({"rules": {"survive": True}}, "rules.survive: there is no such key; accepted in rules: survive_place"),
        ({"rules": {"ramp": 0}}, "rules.ramp: Expected int >= 1; accepted: a whole number from 1"),
        ({"periods": {"kind": "days"}}, "periods.kind: Invalid enum value 'days'; accepted: day, flat, spans, week"),
        ({"periods": {"span": [{"name": "s", "hours": "8-20"}]}}, r"hours: .*; accepted: a list, \[...\], of text"),
        ({"safety": {"margin": 0.2}}, "safety.margin: .*; accepted: a number from 1"),
        ({"demand": {"trace": ["a"]}}, "demand.trace: Expected str"),
        ({"demand": {}}, "demand names no file; accepted: one of trace, usage, table"),
        ({"demand": {"trace": "a", "table": "b"}}, "trace and table"),
        ({"demand": {"trace": "trace.csv", "from": "3 d"}}, "the trace spans 0 s"),
        ({"demand": {"trace": "trace.csv", "prompt_edges": [5, 5]}}, "prompt_edges is .*each above the one before"),
        ({"demand": {"trace": "trace.csv", "start": "soon"}}, "'soon'; accepted: a date"),
        ({"place": [cloud([{"type": "small"}]), owned([{"type": "box", "count": 1}], name="ireland")]},
         r"plan.yaml \(ireland\): place\[1\]: 'ireland' stands twice, first as place\[0\]"),
        ({"machine": [{"name": "b", "accelerator": "L4"}, {"name": "b", "accelerator": "H100"}]}, "'b' stands twice"),
        ({"place": [cloud([{"type": "small"}], name=" ")]}, r"place\[0\] has no name"),
        ({"api": [{"name": "ireland", "model": "m", "ttft": "1 s", "tpot": "1 s", "input": "1 USD/Mtok",
                   "output": "1 USD/Mtok"}]}, "there is a place called ireland already, whose labels are not"),
        ({"periods": {"horizon": "1e300 d"}}, "accepted: up to thirty years"),
        ({"demand": {"trace": "trace.csv", "start": "9999-12-31"}}, "accepted: a year from 1970 to 2200"),
        ({"safety": {"scenario": [{"name": "without ireland", "probability": 1.0}]}}, "as a loss is"),
        ({"safety": {"scenario": [{"name": "a", "probability": 0.5}, {"name": "a", "probability": 0.5}]}}, "twice"),
        ({"safety": {"scenario": [{"name": "a", "probability": 1.0, "factor": math.inf}]}}, "factor is inf"),
        ({"network": {"bytes_per_token": math.inf}}, "bytes_per_token is inf"),
        ({"service": []}, "there is no .*service.*; accepted: one at least"),
        ({"service": [{"name": "s", "models": [], "ttft": "1 s"}]}, "answered by no model"),
        ({"service": [{"name": "s", "models": ["m"], "ttft": 2}]}, r"plan.yaml \(s\): service\[0\].ttft has no unit"),
        ({"service": [{"name": "s", "models": ["m"], "ttft": "0 s"}]}, "service s: ttft_s is 0"),
        ({"service": [{"name": "s", "models": ["other"], "ttft": "1 s"}]}, "nothing serves other; there is m"),
        (
            {"service": [{"name": "s", "models": ["m"], "ttft": "1 s", "match": {"projects": ["a"]}}]},
            "no service takes requests with project 'b'; accepted: a last .* without match",
        ),
        ({"throughput": [{"model": "m", "machines": ["*"]}]}, "has nothing; accepted: one of profile, table, roofline"),
        ({"throughput": [{"model": "m", "profile": "profile.json"}]}, "does not say for which machines"),
        ({"throughput": [{"model": "m", "machines": ["x"], "roofline": True}]}, "no machine 'x'; there is small"),
        ({"throughput": [{"model": "m", "roofline": True}]}, "nothing says what m is made of"),
        ({"network": {"link": [{"from": "x", "to": "eu"}]}}, "no .*origin.* 'x'"),
        ({"safety": {"window": "1 h"}}, "from 1 s to 15 min"),
        ({"safety": {"days": 0.9, "scenario": [{"name": "s", "probability": 1.0}]}}, "without safety.scenario"),
        ({"safety": {"scenario": [{"name": "s", "probability": 1.0, "factors": {"noon": 1}}]}}, "no period 'noon'"),
        ({"safety": {"scenario": [{"name": "s", "probability": 0.5}]}}, "probabilities do not sum to 1"),
        ({"time_zone": "CEST+1"}, "no time zone 'CEST"),
        ({"api": [{"name": "a", "model": "m", "ttft": "1 s", "tpot": "1 s"}]}, "a needs a price; accepted: input"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_its_key(folder: Path, changes: dict[str, Any], says: str) -> None:
    """With what would be accepted."""
    refused(folder, says, **changes)


def test_files_that_are_no_documents_are_refused(tmp_path: Path) -> None:
    """Syntax errors with their line."""
    for name, text, says in (
        ("plan.toml", "a = = 1", "plan.toml: .*line 1"),
        ("plan.yaml", "a: [1", "plan.yaml: .*line 1"),
        ("plan.yaml", "- 1", "accepted: tables"),
        ("plan.yaml", "a: 1\nb:\n  - {c: 1, c: 2}", "c stands twice.*line 3"),
        ("plan.yaml", "a: " + "[" * 3000, "nested too deeply"),
        ("plan.yaml", "a: &x [*x]", "nested too deeply|unconstructable"),
        ("plan.toml", "a = " + "1" * 5000, "plan.toml: Exceeds the limit"),
        ("plan.json", "{}", "accepted: a file named .toml"),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ConfigError, match=says):
            read_problem(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_problem(tmp_path / "missing.toml")


def test_a_trace_with_dates_takes_no_other_start(folder: Path) -> None:
    """Two truths are one too many; and a missing trace is said to be missing."""
    (folder / "trace.csv").write_text("arrival,prompt_tokens,output_tokens\n2024-01-01,1,1\n2024-01-02,1,1\n")
    refused(folder, "has dates of its own", demand={"trace": "trace.csv", "start": "2024-01-01"})
    with pytest.raises(InvalidTrace, match="No such file"):
        problem_of(folder, demand={"trace": "missing.csv"})


class TestRealFiles:
    """Real prices and a real trace."""

    pytestmark = needs_data

    def test_a_hybrid_of_three_clouds_and_a_cellar(self, tmp_path: Path) -> None:
        """Every machine has a price and a replica, every bucket is served by something."""
        content = document(
            exchange={"EUR": 1.08},
            machine=[{"name": "box", "accelerator": "L40S", "accelerators": 2}],
            place=[
                owned([{"type": "box", "count": 2}], power_price="0.25 EUR/kWh"),
                cloud(
                    [{"type": "g6.*", "limit": {"spot": 5}}, {"type": "p4d.24xlarge", "committed": 1}],
                    name="virginia", provider="aws", region="us-east-1", reserved="40 % off",
                    prices=str(PRICES / "aws_gpu_instances_ondemand_us_east_1.csv"),
                    spot_advisor=str(PRICES / "aws_gpu_spot_advisor.csv"),
                ),
                cloud(
                    [{"type": "g2-standard-12"}, {"type": "a3-highgpu-1g"}], name="eemshaven", region="europe-west4",
                    prices=str(PRICES / "gcp_gpu_machine_types_ondemand_spot.csv"),
                ),
                cloud(
                    [{"type": "Standard_NC24ads_A100_v4"}], name="amsterdam", region="westeurope",
                    prices=str(PRICES / "azure_gpu_ondemand.csv.gz"),
                ),
            ],
            model=[{"name": "m", "shape": "llama-3.1-8b"}],
            throughput=[{"model": "m", "roofline": True}],
            api=[{"name": "burst", "model": "m", "prices": str(PRICES / "llm_api_prices.json"), "ttft": "1 s",
                  "tpot": "20 ms", "price": "deepinfra/meta-llama/Meta-Llama-3.1-8B-Instruct"}],
            service=[{"name": "chat", "models": ["m"], "ttft": "2 s", "tpot": "200 ms"}],
            demand={"trace": str(DATA / "traces" / "servegen_mid_2days.csv.gz"), "until": "1 d"},
        )  # fmt: skip
        found = read_inputs(write(tmp_path, content))
        problem = found.problem
        assert {f.machine for f in problem.fits} == {o.machine for o in problem.offers}
        assert all(f.source == "roofline" for f in problem.fits)
        assert all(min(f.load_s[k] for f in problem.fits) < math.inf for k in range(len(problem.buckets)))
        by_name = {o.name: o for o in problem.offers}
        assert by_name["p4d.24xlarge at virginia (reserved)"].hourly_usd == pytest.approx(21.957642 * 0.6)
        assert by_name["g6.xlarge at virginia (spot)"].limit == 5
        assert by_name["box at cellar (owned)"].hourly_usd == pytest.approx(0.7 * 0.25 * 1.08)
        assert problem.committed == {("virginia", "p4d.24xlarge"): 1}
        assert any("on-demand x (1 - " in note for note in found.notes)
