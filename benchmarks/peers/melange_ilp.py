"""Mélange's released solver on cases read as JSON from standard input, a line each; an answer for each is printed.

FOLDER/bin/python melange_ilp.py CHECKOUT --seconds 20

A case: {"gpus": {name: {"cost": USD, "tputs": [[requests/s]]}}, "shares": [[...]], "rate": requests/s, "slices": n}.
An answer: {"counts", "usd", "seconds", "zeros"}, counts None if it found none. The solver is theirs and unchanged but for a
time limit (with it CBC ends on the best that it has). It divides by each throughput, so 0 ends it; with `zeros` such cells
were given a throughput instead with which one slice takes a thousand GPUs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from typing import Any

GPUS_A_SLICE = 1000.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", help="folder that has melange/solver.py")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each case")
    args = parser.parse_args()
    sys.path.insert(0, args.checkout)
    import pulp
    from melange import solver

    pulp.PULP_CBC_CMD = partial(pulp.PULP_CBC_CMD, timeLimit=args.seconds)
    for line in sys.stdin:
        print(json.dumps(answer(solver.MelangeSolver, json.loads(line))), flush=True)


def answer(solver: Any, case: dict[str, Any]) -> dict[str, Any]:
    zeros = any(t == 0 for gpu in case["gpus"].values() for row in gpu["tputs"] for t in row)
    gpus = {
        name: {
            "cost": gpu["cost"],
            "tputs": [
                [t or stand_in(case, i, j) for j, t in enumerate(row)] for i, row in enumerate(gpu["tputs"])
            ],
        }
        for name, gpu in case["gpus"].items()
    }
    began = time.perf_counter()
    found = solver(case["shares"], case["rate"], gpus, case["slices"]).run()
    seconds = time.perf_counter() - began
    if found is None:
        return {"counts": None, "usd": None, "seconds": seconds, "zeros": zeros}
    usd = found.pop("cost")
    return {"counts": found, "usd": usd, "seconds": seconds, "zeros": zeros}


def stand_in(case: dict[str, Any], i: int, j: int) -> float:
    return max(case["shares"][i][j], 1e-6) * case["rate"] / case["slices"] / GPUS_A_SLICE


if __name__ == "__main__":
    main()
