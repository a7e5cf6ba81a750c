"""The process that `stoa bench coldstart` starts: an engine to its first token, and when each stage was over.

    python -m stoa.bench.coldstart_child packs|maps|spare

Imports what an engine process imports (`stoa.fleet.worker`), in the same order, and nothing else. Reads the engine's
configuration from stdin; a spare does so after its imports, when it has said that it waits. Prints its stamps, of the
system's monotonic clock, and ends when stdin does.
"""

from __future__ import annotations

import time

_STAMPS = [("interpreter", time.monotonic())]


def main() -> None:
    import stoa.fleet.worker

    _STAMPS.append(("worker", time.monotonic()))
    import torch  # noqa: F401

    _STAMPS.append(("torch", time.monotonic()))
    import stoa.engine.engine  # noqa: F401

    _STAMPS.append(("engine_imports", time.monotonic()))
    import os
    import sys

    if sys.argv[1] == "spare":
        print("waiting", flush=True)
        _STAMPS.clear()
    _serve(sys.stdin.readline())
    sys.stdin.read()
    os._exit(0)  # freeing everything in order takes long


def _serve(told: str) -> None:
    import json

    import msgspec

    from stoa.engine import Engine, EngineConfig, GenerationRequest, SamplingParams

    config = msgspec.json.decode(told, type=EngineConfig)
    _STAMPS.append(("told", time.monotonic()))
    engine = Engine(config)
    _STAMPS.append(("engine", time.monotonic()))
    params = SamplingParams(max_tokens=1, temperature=0)
    engine.add_request(GenerationRequest(id="first", prompt_token_ids=list(range(3, 19)), params=params))
    while not engine.step():
        pass
    _STAMPS.append(("first_token", time.monotonic()))
    print(json.dumps(_STAMPS), flush=True)
    if engine.decoder.writer is not None:
        engine.decoder.writer.join()


if __name__ == "__main__":
    main()
