"""The process between a gateway and Ray: `python -m stoa.fleet.cluster.bridge --address ADDRESS`.

On stdin: frames (4-byte little-endian length first), the plan, then reports. On stdout one frame for each: `Connected`, then
`Answer`s; or `Failed`, and the process ends. It also ends with its stdin.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import struct
import sys
from collections.abc import Set
from typing import IO, Any
from urllib.parse import urlsplit

import msgspec

from stoa.fleet.cluster.machines import ZONE_LABELS, zone_of
from stoa.fleet.cluster.plan import NAMESPACE, Plan
from stoa.fleet.reports import ClusterUnreachable, FleetState, Trouble

_LENGTH = struct.Struct("<I")
_PROBE_S = 5.0
_TRIES = 3  # of a client's connection: Ray's server for it does not always come up, and is waited for 30 s
_ANSWER_S = 8.0  # of the controller's actor; it may be starting again
MOST_BYTES = 64 << 20


class Connected(msgspec.Struct, frozen=True, tag="connected"):
    notices: list[str] = []  # what a person should know


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    state: FleetState


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    trouble: Trouble


FromBridge = Connected | Answer | Failed


def frame(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def read_frame(stream: IO[bytes]) -> bytes | None:
    """None at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    return body if len(body) == length else None


def probe(address: str) -> None:
    """Raises ClusterUnreachable. Ray itself would wait for minutes, and then end the process."""
    host, port = head_of(address)
    try:
        socket.create_connection((host, port), timeout=_PROBE_S).close()
    except OSError as error:
        raise ClusterUnreachable(
            f"no Ray head answers at {host}:{port} ({error}); is it up, and is --cluster {address} what was meant?"
        ) from None


def head_of(address: str) -> tuple[str, int]:
    """Where a connection goes first. "auto", ray://HOST[:PORT] (Ray client), HOST:PORT (the head, from one of its nodes)."""
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address

        try:
            found = canonicalize_bootstrap_address("auto")
        except ConnectionError:
            found = None
        if not found:
            raise ClusterUnreachable(
                "no Ray cluster runs on this machine; start one (ray start --head), name it in RAY_ADDRESS, or give "
                "--cluster ray://HOST:10001"
            )
        address = found
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host:
        raise ClusterUnreachable(
            f"--cluster is {address!r}; accepted: local, auto, ray://HOST:PORT, HOST:PORT"
        )
    return host, port or (10001 if parts.scheme == "ray" else 6379)


def connect(address: str) -> None:
    """Raises ClusterUnreachable."""
    try:
        import ray
    except ImportError:
        raise ClusterUnreachable("Ray is not installed here: pip install 'stoa[cluster]'") from None
    probe(address)
    for left in range(_TRIES if address.startswith("ray://") else 1, 0, -1):
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # Ray raises what its many parts raise, and not always what is the matter
            if left > 1 and "Initialization failure" in str(error):
                ray.shutdown()
                continue
            raise ClusterUnreachable(
                f"the Ray cluster at {address} cannot be joined: {_short(error)}. If it wants a token, set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)"
            ) from None


def controller(plan: Plan) -> Any:
    """The fleet's one controller, made if there is none."""
    import ray

    from stoa.fleet.cluster.actors import ControllerActor

    resources = ray.cluster_resources()
    head = (
        "node:__internal_head__"  # where Ray's own control is: the one node whose loss ends everything anyway
    )
    return (
        ray.remote(ControllerActor)
        .options(
            name=plan.controller_name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_concurrency=1000,
            num_cpus=0,
            resources={head: 0.001} if head in resources else None,
        )
        .remote(msgspec.msgpack.encode(plan))
    )


def serve(address: str, stdin: IO[bytes], stdout: IO[bytes]) -> None:
    def send(message: FromBridge) -> None:
        stdout.write(frame(msgspec.msgpack.encode(message)))
        stdout.flush()

    first = read_frame(stdin)
    if first is None:
        return
    try:
        plan = msgspec.msgpack.decode(first, type=Plan)
        connect(address)
        import ray

        actor = controller(plan)
        theirs = msgspec.msgpack.decode(ray.get(actor.plan.remote(), timeout=60), type=Plan)
        zones = {zone_of(node.get("Labels", {})) for node in ray.nodes() if node["Alive"]}
        send(Connected([*_kept(theirs, plan), *_nowhere(plan, zones)]))
        while (report := read_frame(stdin)) is not None:
            answer = ray.get(actor.report.remote(report), timeout=_ANSWER_S)
            send(Answer(msgspec.msgpack.decode(answer, type=FleetState)))
    except ClusterUnreachable as error:
        send(Failed(Trouble.of(error)))
    except Exception as error:  # whatever it is, the gateway starts another bridge
        send(Failed(Trouble("EngineUnavailable", f"the fleet's controller does not answer: {_short(error)}")))


def _kept(theirs: Plan, plan: Plan) -> list[str]:
    """That the fleet goes on as its first gateway wanted."""
    names = [name for name in Plan.__struct_fields__ if getattr(theirs, name) != getattr(plan, name)]
    if not names:
        return []
    return [
        f"the fleet exists and keeps its first gateway's {', '.join(names)}; to change that, end all its gateways and wait "
        f"until its controller has ended, {theirs.orphan_s:g} s later or a little more"
    ]


def _nowhere(plan: Plan, zones: Set[str]) -> list[str]:
    """Where a cluster that does not grow cannot have a replica."""
    missing = sorted({offer.zone for offer in plan.offers} - zones)
    if not missing or plan.provision_s:
        return []
    return [
        f"offers are for zone {', '.join(missing)}, where no node is; nodes are in {', '.join(sorted(zones))}, by their "
        f"label {ZONE_LABELS[1]}"
    ]


def _short(error: Exception) -> str:
    """Its first line, and the last one of a traceback that it quotes."""
    lines = str(error).strip().splitlines() or [repr(error)]
    return (lines[0] if "Traceback" not in str(error) else f"{lines[0]} {lines[-1]}")[:500]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    args = parser.parse_args()
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what Ray prints is not for the gateway
    with contextlib.suppress(BrokenPipeError):
        serve(args.address, sys.stdin.buffer, stdout)
    os._exit(0)  # Ray's own end waits for a head that may be gone


if __name__ == "__main__":
    main()
