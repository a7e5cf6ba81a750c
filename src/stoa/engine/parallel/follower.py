"""A rank but the first: `python -m stoa.engine.parallel.follower --line FD`, started by `leader.py`.

It holds its shard and does as it is told. It ends when the other end of its line is closed, whatever it does then.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import threading
import traceback
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from stoa.engine.batch import numbers_on
from stoa.engine.config import EngineConfig
from stoa.engine.kernels.interface import PackedAdapter
from stoa.engine.limits import context_limit, pool_share
from stoa.engine.loading import Loaded, host_adapter_bytes, load, read_shard
from stoa.engine.memory.adapter_cache import HostAdapter, stage
from stoa.engine.memory.pool import PagePool
from stoa.engine.model.config import read_model_config
from stoa.engine.parallel import messages
from stoa.engine.parallel.group import Group, join_store
from stoa.engine.parallel.messages import (
    Failed,
    Forget,
    LaidOut,
    LayOut,
    OpenPool,
    Prefetch,
    Sender,
    Start,
    Step,
    encode,
    read_to_follower,
    rows_of,
)
from stoa.engine.parallel.shards import Shards
from stoa.engine.request import AdapterRef
from stoa.errors import StoaError


class Follower:
    """`run` mirrors rank 0's steps until the line ends."""

    def __init__(self, start: Start, connection: Connection, sender: Sender) -> None:
        """Loads, joins the others and takes its pool."""
        config = start.config
        self._connection = connection
        model = read_model_config(Path(config.model))
        shards = Shards(model, start.rank, config.tensor_parallel)
        self.parts: Loaded = load(config, shards, context_limit(config, model))
        sender.send(encode(messages.Loaded()))
        device = self.parts.kernels.device
        store = join_store(start.store, shards.size)
        self.parts.decoder.group = Group(start.rank, shards.size, store, device)
        self.parts.rehearse(config)
        sender.send(encode(messages.Rehearsed(pool_share(device, shards.size))))
        opening = read_to_follower(connection)
        assert isinstance(opening, OpenPool)
        self.pool = PagePool(opening.pages, self.parts.layout.page_bytes, device)
        self.adapters = FollowerAdapters(config, shards, self.parts, self.pool, sender)
        sender.send(encode(messages.Opened()))

    def run(self) -> None:
        while True:
            message = read_to_follower(self._connection)
            match message:
                case Step():
                    self._step(message)
                case Prefetch():
                    self.adapters.prefetch(message.ref)
                case LayOut():
                    self.adapters.lay_out(message.ref, message.first_page)
                case Forget():
                    self.adapters.forget(message.adapter_id)
                case _:
                    raise AssertionError(message)

    def _step(self, step: Step) -> None:
        decoder, device = self.parts.decoder, self.parts.kernels.device
        tokens = numbers_on(device, step.tokens)
        samples = numbers_on(device, step.samples)
        lora, sample_lora = self._lora(step.lora), self._lora(step.sample_lora)
        hidden = decoder.forward(tokens, rows_of(step), lora, self.pool.arena, self.parts.layout)
        if step.samples:
            decoder.logits(hidden.index_select(0, samples), sample_lora)

    def _lora(self, segments: messages.Segments) -> Any:
        if all(page < 0 for page in segments.first_pages):
            return None
        adapters = [None if page < 0 else self.adapters.at[page] for page in segments.first_pages]
        return self.parts.kernels.lora_rows(segments.starts, adapters)


class FollowerAdapters:
    """Reads adapters ahead, keeps what was read up to so many bytes, and lays out where it is told. One thread does it
    all in the order it was asked for, beside steps."""

    def __init__(
        self, config: EngineConfig, shards: Shards, parts: Loaded, pool: PagePool, sender: Sender
    ) -> None:
        self.at: dict[int, PackedAdapter] = {}  # by first page
        self._config = config
        self._shards = shards
        self._parts = parts
        self._pool = pool
        self._sender = sender
        self._most_bytes = host_adapter_bytes(config)
        self._held: OrderedDict[str, HostAdapter] = OrderedDict()
        self._keys = parts.decoder.module_keys()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapter-loader")

    def prefetch(self, ref: AdapterRef) -> None:
        self._thread.submit(self._try_read, ref)

    def lay_out(self, ref: AdapterRef, first_page: int) -> None:
        self._thread.submit(self._lay_out, ref, first_page)

    def forget(self, adapter_id: str) -> None:
        self._thread.submit(self._held.pop, adapter_id, None)

    def _try_read(self, ref: AdapterRef) -> None:
        """Where it fails, `lay_out` will tell, if it comes to that."""
        self._read(ref)

    def _read(self, ref: AdapterRef) -> HostAdapter:
        held = self._held.get(ref.id)
        if held is None:
            pairs = read_shard(ref, self._shards, self._config.max_lora_rank)
            held = stage(self._parts.kernels, self._parts.decoder.linears, self._keys, pairs)
            self._held[ref.id] = held
            total = sum(h.host_bytes for h in self._held.values())
            while total > self._most_bytes and len(self._held) > 1:
                total -= self._held.popitem(last=False)[1].host_bytes
        self._held.move_to_end(ref.id)
        return held

    def _lay_out(self, ref: AdapterRef, first_page: int) -> None:
        try:
            host = self._read(ref)
            self.at[first_page] = host.lay_out(self._pool.run_bytes(first_page, host.pool_bytes))
            answer = LaidOut(first_page)
        except StoaError as error:
            answer = LaidOut(first_page, _failed(error))
        except Exception as error:  # as unlikely as on rank 0, which has read it already
            traceback.print_exc()
            answer = LaidOut(first_page, Failed("StoaError", f"adapter cannot be laid out: {error!r}"))
        self._sender.send(encode(answer))


def _failed(error: StoaError) -> Failed:
    return Failed(type(error).__name__, error.message, error.param, error.code)


def _end_with(line: int) -> None:
    """Ends this process when the other end of the line is closed, even if it waits for others."""
    hangup = select.poll()
    hangup.register(line, select.POLLRDHUP)
    hangup.poll()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--line", type=int, required=True)
    line = parser.parse_args().line
    for number in (signal.SIGINT, signal.SIGTERM):  # of a whole group are rank 0's to handle
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(line,), daemon=True).start()
    connection = Connection(line)
    sender = Sender(connection)
    try:
        start = read_to_follower(connection)
        assert isinstance(start, Start)
        if start.config.device == "cuda":
            torch.cuda.set_device(start.rank)
        Follower(start, connection, sender).run()
    except StoaError as error:
        sender.send(encode(_failed(error)))
        os._exit(3)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at once, whatever other threads do: rank 0 waits


if __name__ == "__main__":
    main()
