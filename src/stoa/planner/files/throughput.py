"""What replicas can do: for each model on each type of machine, seconds of a replica that a request of each bucket takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from stoa.errors import ConfigError
from stoa.fleet.policies.profile import Profile
from stoa.planner import accelerators
from stoa.planner.accelerators import Accelerator
from stoa.planner.files import document as doc
from stoa.planner.files import units
from stoa.planner.problem import Bucket, Fit, MachineType, Network, Service, Source
from stoa.planner.profiles import (
    Fitted,
    Limits,
    ModelShape,
    beside_adapters,
    find_model,
    kv_tokens_of,
    loads_of,
    read_measured,
    read_shape,
    read_table,
    roofline,
)  # fmt: skip

_FOR_ADAPTERS = 0.2  # of the memory for contexts, where nothing is said
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Replica:
    """A model on a machine, before there is demand."""

    machine: str
    model: str
    profile: Profile
    source: Source
    why: str
    adapters_gib: float


@dataclass(frozen=True, slots=True)
class _Pair:
    """A model, whose shape may not be known, on a machine, whose accelerator may not be."""

    at: str  # the key, for messages
    entry: doc.Throughput
    model: doc.Model
    shape: ModelShape | None
    machine: MachineType
    accelerator: Accelerator | None

    @property
    def is_named(self) -> bool:
        """Not by a pattern: what does not go then is an error, and no reason to leave it out."""
        return self.machine.name in (self.entry.machines or ())


def read_replicas(
    document: doc.Document, machines: Sequence[MachineType], folder: Path
) -> tuple[tuple[Replica, ...], tuple[str, ...]]:
    """One for each model and machine that some [[throughput]] speaks of: the first that does counts. And what to say of
    those that are left out. ConfigError for names that do not exist, and for a model that a named machine cannot hold."""
    models = {m.name: (m, _shape(f"model[{i}]", m, folder)) for i, m in enumerate(document.model)}
    found: dict[tuple[str, str], Replica] = {}
    notes: list[str] = []
    declared = {m.name: (f"machine[{i}]", m) for i, m in enumerate(document.machine)}
    for i, entry in enumerate(document.throughput):
        at = f"throughput[{i}]"
        patterns = _patterns(at, entry, machines)
        model, shape = models.get(entry.model, (doc.Model(name=entry.model), None))
        for machine in machines:
            key = (entry.model, machine.name)
            if key in found or not any(fnmatchcase(machine.name, p) for p in patterns):
                continue
            pair = _Pair(at, entry, model, shape, machine, _accelerator(machine, declared.get(machine.name)))
            try:
                found[key] = _replica(pair, folder)
            except ConfigError as error:
                if pair.is_named or error.param not in ("throughput", "adapters_gib"):
                    raise
                notes.append(f"{machine.name} is left out for {model.name}: {error.message}")
    _check_some(document, found, notes)
    return tuple(found.values()), tuple(notes)


def _check_some(
    document: doc.Document, found: Mapping[tuple[str, str], Replica], notes: Sequence[str]
) -> None:
    """ConfigError for a model that no machine can hold."""
    there = {model for model, _ in found}
    for i, entry in enumerate(document.throughput):
        if entry.model not in there:
            at = f"throughput[{i}]"
            raise ConfigError(f"{at}: no machine can hold {entry.model}: {'; '.join(notes)}", param=at)


def _shape(at: str, model: doc.Model, folder: Path) -> ModelShape | None:
    if model.shape is None:
        return None
    path = folder / model.shape
    shape = read_shape(path, model.name) if path.exists() else find_model(model.shape)
    if model.weights is None:
        return shape
    weights_gib = units.gib(model.weights, f"{at}.weights")
    return replace(shape, weight_bytes=weights_gib * _GIB / shape.parameters)


def _accelerator(machine: MachineType, declared: tuple[str, doc.Machine] | None) -> Accelerator | None:
    """What the document says of it, else its datasheet, with the memory that the machine has of it: price lists say what is
    usable."""
    known, memory_gib = accelerators.by_name(machine.accelerator), machine.memory_gib / machine.accelerators
    if declared is not None and (declared[1].bandwidth is not None or declared[1].compute is not None):
        at, entry = declared
        if entry.bandwidth is None or entry.compute is None:
            raise ConfigError(f"{at}: bandwidth and compute go together", param=at)
        return Accelerator(
            entry.accelerator,
            memory_gib,
            units.gb_per_s(entry.bandwidth, f"{at}.bandwidth"),
            units.tflops(entry.compute, f"{at}.compute"),
            1000 * (machine.power_kw or 0.0) / machine.accelerators,
        )
    return None if known is None else replace(known, memory_gib=memory_gib)


def _patterns(at: str, entry: doc.Throughput, machines: Sequence[MachineType]) -> Sequence[str]:
    ways = [name for name in ("profile", "table", "roofline") if getattr(entry, name)]
    if len(ways) != 1:
        raise ConfigError(
            f"{at} has {' and '.join(ways) or 'nothing'}; accepted: one of profile, table, roofline = true",
            param=at,
        )
    if entry.machines is None:
        if not entry.roofline:
            raise ConfigError(f"{at} does not say for which machines; accepted: machines = [names]", param=at)
        return ("*",)
    names = [machine.name for machine in machines]
    for pattern in entry.machines:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"{at}.machines: there is no machine {pattern!r}; there is {', '.join(names) or 'none'}",
                param=at,
            )
    return entry.machines


# -- one replica


def _replica(pair: _Pair, folder: Path) -> Replica:
    """ConfigError, of `throughput` or `adapters_gib`, if the model does not fit."""
    weights = pair.model.weights
    if weights is not None and units.gib(weights, "weights") >= pair.machine.memory_gib:
        raise ConfigError(
            f"{pair.at}: {pair.machine.name} has {pair.machine.memory_gib:.0f} GiB, and the weights of {pair.model.name} "
            f"take {weights}",
            param="throughput",
        )
    found = _fitted(pair, folder)
    profile = found.profile
    adapters_gib = _adapters_gib(pair, profile)
    if pair.shape is not None and 0 < adapters_gib < math.inf:
        profile = beside_adapters(profile, adapters_gib, pair.shape.kv_token_bytes)
    return Replica(pair.machine.name, pair.model.name, profile, found.source, found.said, adapters_gib)


def _fitted(pair: _Pair, folder: Path) -> Fitted:
    entry = pair.entry
    if entry.profile is not None:
        return read_measured(folder / entry.profile)
    if entry.table is not None:
        return read_table(folder / entry.table, entry.select, _limits(pair))
    if pair.shape is None:
        raise ConfigError(
            f"{pair.at}: nothing says what {pair.model.name} is made of; accepted: shape in its [[model]], a well-known "
            "model's name or a config.json",
            param="model",
        )
    accelerator = pair.accelerator
    if accelerator is None:
        raise ConfigError(
            f"{pair.at}: {accelerators.unknown(pair.machine.accelerator)}; accepted: bandwidth and compute in a [[machine]] "
            f"called {pair.machine.name}, or profile or table instead of roofline",
            param="throughput",
        )
    profile = roofline(pair.shape, accelerator, pair.machine.accelerators, _limits(pair))
    return Fitted(profile, math.nan, "roofline", f"reckoned from the datasheet of {accelerator.name}")


def _limits(pair: _Pair) -> Limits:
    stated = {
        name: value
        for name in ("max_num_seqs", "max_batch_tokens")
        if (value := getattr(pair.entry, name)) is not None
    }
    if pair.shape is None or pair.accelerator is None:
        return Limits(**stated)
    return Limits(**stated, kv_tokens=kv_tokens_of(pair.shape, pair.accelerator, pair.machine.accelerators))


def _adapters_gib(pair: _Pair, profile: Profile) -> float:
    """Infinite where the model has none, or nothing says how much memory there is for them."""
    if pair.entry.adapters is not None:
        return units.gib(pair.entry.adapters, f"{pair.at}.adapters")
    if pair.model.adapter is None or pair.shape is None:
        return math.inf
    return _FOR_ADAPTERS * profile.kv_tokens * pair.shape.kv_token_bytes / _GIB


# -- under demand


def fits_of(
    replicas: Sequence[Replica],
    buckets: Sequence[Bucket],
    services: Mapping[str, Service],
    network: Network = Network(),  # noqa: B008  (frozen)
) -> tuple[Fit, ...]:
    """Loads of every bucket on every replica, infinite where its service's targets cannot be kept, or another model is
    wanted. A replica serves several services at the pace of one whose targets are the strictest among them: only then
    may loads be added. So there is a fit for each pace that a model is asked for. First tokens leave the replica so
    early that the longest way of the network is in time, if that leaves half of the target."""
    if not replicas or not buckets:
        return ()
    return tuple(
        _fit(r, pace, buckets, services, max(network.latency_s.values(), default=0.0))
        for r in replicas
        for pace in _paces(r.model, services.values())
    )


def _paces(model: str, services: Iterable[Service]) -> tuple[Service, ...]:
    """Of services with the same targets the first; any for a model that nobody asks for, which has no load then."""
    asking = [s for s in services if model in s.models] or list(services)[:1]
    return tuple({(s.ttft_s, s.tpot_s): s for s in reversed(asking)}.values())[::-1]


def _fit(
    r: Replica, pace: Service, buckets: Sequence[Bucket], services: Mapping[str, Service], away_s: float
) -> Fit:
    asked = [services[b.service] for b in buckets]
    may = [r.model in s.models and pace.ttft_s <= s.ttft_s and pace.tpot_s <= s.tpot_s for s in asked]
    prompt, output = [b.prompt_tokens for b in buckets], [b.output_tokens for b in buckets]
    in_time_s = pace.ttft_s - min(away_s, pace.ttft_s / 2)
    first_s = [math.inf if b.late else in_time_s for b in buckets]
    load, first = loads_of([r.profile], prompt, output, first_s, [pace.tpot_s] * len(may))
    loads = tuple(value if ok else math.inf for value, ok in zip(load[0].tolist(), may, strict=True))
    only = len(_paces(r.model, services.values())) == 1
    return Fit(
        r.machine, r.model, loads, tuple(first[0].tolist()), r.source, r.adapters_gib, r.profile, r.why,
        "" if only else pace.name,
    )  # fmt: skip
