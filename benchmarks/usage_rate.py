"""Rows a second that the usage writer brings into a database, and what they cost the gateway's process.

python benchmarks/usage_rate.py --db sqlite --db postgresql://USER@HOST/EMPTY_DATABASE --out docs/results/usage-rate.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from stoa.bench.machine import machine_facts
from stoa.economics.records import UsageRecord
from stoa.economics.usage import UsageWriter
from stoa.storage.base import new_id
from stoa.storage.database import Database, database_url
from stoa.storage.migrate import upgrade


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--db", action="append", help="sqlite (default), or the URL of a database of its own")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            asyncio.run(rate("" if db == "sqlite" else db, Path(folder), args.rows, args.repeats))
            for db in args.db or ["sqlite"]
        ]
    report = {"machine": machine_facts(), "rows_written": args.rows, "rows": rows}
    report["command"] = "python benchmarks/usage_rate.py --db sqlite --db postgresql://…"
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


async def rate(url: str, folder: Path, count: int, repeats: int) -> dict[str, Any]:
    database = Database(database_url(url, folder))
    await upgrade(database)
    writer = UsageWriter(database, folder / "usage")
    await writer.start()
    per_s, cpu_us = [], []
    for _ in range(repeats):
        records = [record(i) for i in range(count)]
        cpu, started = time.process_time(), time.perf_counter()
        for each in records:
            writer.add(each)
        while writer.pending:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        per_s.append(count / (time.perf_counter() - started))
        cpu_us.append((time.process_time() - cpu) / count * 1e6)
    await writer.close()
    await database.close()
    return {
        "database": "sqlite" if database.is_sqlite else "postgresql",
        "rows_per_s": round(statistics.median(per_s)),
        "cpu_us_per_row": round(statistics.median(cpu_us), 1),
    }


def record(i: int) -> UsageRecord:
    return UsageRecord(
        request_id=new_id("chatcmpl"), project_id=f"proj_{i % 50}", key_id=f"key_{i % 200}", model="demo",
        adapter="poet@0123456789ab", prompt_tokens=300, cached_tokens=100, completion_tokens=80, queue_ns=10**6,
        prefill_ns=10**8, decode_ns=10**9, compute_ns=10**8, kv_byte_ms=10**10, adapter_byte_ms=10**9,
        cost_nanos=1_234_567, created_at_s=1_800_000_000 + i // 1000,
    )  # fmt: skip


if __name__ == "__main__":
    main()
