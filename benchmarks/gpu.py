"""All figures of an engine on one NVIDIA GPU, in stages of a few minutes each.

    python benchmarks/gpu.py --out docs/results                       # all stages
    python benchmarks/gpu.py --out docs/results --stage lora          # one
    python benchmarks/gpu.py --report docs/results                    # benchmarks/gpu.md

Each part of a stage is a process of its own with a limit of its own, and is written to OUT/gpu-STAGE.json as soon as it is
done; what is there already is not done again (but with --again), so what was broken off goes on. What was tuned lies in
OUT too, for another machine with the same GPU. Nothing need be installed but torch with CUDA, Triton, numpy, msgspec,
safetensors, tokenizers and llguidance; for tests and peers also pytest, transformers and PEFT.

`--small` tries the script itself, without a GPU: TRITON_INTERPRET=1, a tiny model, figures that mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

TUNED = "gpu-tuning.json"
BATCHES = (1, 32, 64)


@dataclass(frozen=True)
class Place:
    """What is measured, and where its files lie."""

    model: str
    cache: Path
    small: bool

    def tokens(self) -> dict[str, Any]:
        if self.small:
            return {"prompt_tokens": 4, "output_tokens": 3}
        return {"prompt_tokens": 128, "output_tokens": 128}

    def lora(self, **more: Any) -> dict[str, Any]:
        from stoa.bench.lora import run

        usual = {
            "batches": (1, 2) if self.small else BATCHES, "repeats": 1 if self.small else 5, "device": "cuda",
        }  # fmt: skip
        return run(self.model, cache=self.cache, **(usual | self.tokens() | more))

    def kernels(self, **more: Any) -> dict[str, Any]:
        from stoa.bench.kernels import run

        usual = {"batches": (1, 2), "context": 20, "repeats": 1} if self.small else {"batches": BATCHES}
        return run(self.model, cache=self.cache, **(usual | more))

    def pool(self, **more: Any) -> dict[str, Any]:
        from stoa.bench.adapters import run

        usual = {
            "counts": (32, 2000), "requests": 1024, "at_once": 32, "folders": 32, "preload": True, "pool_gib": 12.0,
            "host_gib": 100.0, "device": "cuda",
        }  # fmt: skip
        if self.small:
            usual |= {"counts": (2, 5), "requests": 4, "at_once": 2, "folders": 2, "pool_gib": 0.01}
        return run(self.model, cache=self.cache, **(usual | self.tokens() | more))


# -- what the parts do; each returns what is written


def facts(place: Place) -> dict[str, Any]:
    from stoa.bench.gpu import ceilings, gpu_facts
    from stoa.bench.machine import machine_facts

    return machine_facts() | gpu_facts() | ceilings()


def tests(place: Place) -> dict[str, Any]:
    """tests/gpu, without the fixtures of other rooms' tests, which want more packages."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    env |= {"STOA_GPU_TESTS": "interpret"} if place.small else {"TRITON_INTERPRET": "0"}
    command = [
        sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(ROOT), "--confcutdir", "tests/gpu",
        "-p", "no:cacheprovider", "-q", "-rs", "-s", "--durations=10", "-m", "gpu", "tests/gpu",
    ]  # fmt: skip
    if place.small:
        command += ["-k", "elementwise"]
    elif importlib.util.find_spec("xdist"):
        command += ["-n", str(min(8, os.cpu_count() or 1))]  # most of the time goes into compiling kernels
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    print(done.stdout[-8000:], done.stderr[-2000:])
    return {"passed": done.returncode == 0, "output": done.stdout[-12000:].splitlines()}


def early(which: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """With STOA_GPU_EARLY, which is read when kernels are loaded."""
    os.environ["STOA_GPU_EARLY"] = which
    return measure()


def peft(place: Place, ways: tuple[str, ...]) -> dict[str, Any]:
    """On the folders that the engine has just served."""
    from stoa.bench.folders import model_folder

    model = model_folder(place.model, place.cache, "cuda")
    adapters = place.cache / "bench" / f"{model.name}-r16"
    tokens = place.tokens()
    command = [
        sys.executable, str(HERE / "peers" / "peft_mixed.py"), "--model", str(model),
        "--adapters", str(adapters), "--mode", "distinct", "--batch", "2" if place.small else "32",
        "--prompt-tokens", str(tokens["prompt_tokens"]), "--output-tokens", str(tokens["output_tokens"]),
        "--repeats", "1", "--device", "cpu" if place.small else "cuda",
    ]  # fmt: skip
    command += [word for way in ways for word in ("--way", way)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


@dataclass(frozen=True)
class Part:
    work: Callable[[Place], dict[str, Any]]
    limit_s: float = 300.0


def _batch(place: Place) -> tuple[int, ...]:
    return (2,) if place.small else (32,)


EAGER = ("fp32-growing", "bf16-growing", "bf16-static")
STAGES: dict[str, dict[str, Part]] = {
    "check": {
        "facts": Part(facts, 120),
        "tests": Part(tests, 420),
        "early": Part(lambda p: early("lora", lambda: tests(p)), 420),
    },
    "tune": {"bf16": Part(lambda p: p.lora(modes=("base", "distinct"), repeats=1, output_tokens=3), 540)},
    "lora": {
        "bf16": Part(lambda p: p.lora(), 400),
        "early": Part(lambda p: early("kernels", lambda: p.lora(modes=("base", "distinct")))),
        "beside": Part(lambda p: early("lora", lambda: p.lora(modes=("base", "distinct")))),
        "rank8": Part(lambda p: p.lora(modes=("base", "distinct"), rank=8)),
        "int8": Part(lambda p: p.lora(modes=("base", "distinct"), quantize="int8"), 400),
        "int4": Part(lambda p: p.lora(modes=("base", "distinct"), quantize="int4"), 400),
    },
    "kernels": {
        "bf16": Part(lambda p: p.kernels()),
        "early": Part(lambda p: early("kernels", p.kernels)),
        "beside": Part(lambda p: early("lora", p.kernels)),
        "int8": Part(lambda p: p.kernels(quantize="int8"), 400),
        "int4": Part(lambda p: p.kernels(quantize="int4"), 400),
    },
    "peft": {
        "stoa": Part(lambda p: p.lora(modes=("distinct",), batches=_batch(p))),
        "eager": Part(lambda p: peft(p, EAGER), 400),
        "compiled": Part(lambda p: peft(p, ("bf16-compiled",)), 240),
    },
    "pool": {
        "rank4": Part(lambda p: p.pool(rank=4, pool_gib=8.0), 300),
        "rank8": Part(lambda p: p.pool(rank=8, cold=False), 420),
    },
}


# -- running them


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for gpu-STAGE.json")
    parser.add_argument("--stage", action="append", choices=list(STAGES), help="default: all, in this order")
    parser.add_argument("--part", help="of the one stage, this part alone")
    parser.add_argument("--model", default="8b", help="a random-weight shape, a folder, or demo")
    parser.add_argument("--home", type=Path, help="where models and adapters are written; default: STOA_HOME")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="begin no part that may take longer than is left"
    )
    parser.add_argument("--small", action="store_true", help="try the script without a GPU")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write what lies in DIR into benchmarks/gpu.md"
    )
    parser.add_argument(
        "--inside", type=Path, help=argparse.SUPPRESS
    )  # do the part here, write it to that file
    args = parser.parse_args()
    if args.report:
        from gpu_report import write

        write(args.report)
        return
    if args.out is None:
        parser.error("--out is missing")
    place = Place(args.model, _cache(args.home), args.small)
    if args.inside:
        args.inside.write_text(json.dumps(STAGES[args.stage[0]][args.part].work(place)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * args.minutes
    wanted = [(stage, part) for stage in args.stage or STAGES for part in STAGES[stage]]
    failed = [not _do(stage, part, args, place, ends) for stage, part in wanted if args.part in (None, part)]
    sys.exit(1 if any(failed) else 0)


def _cache(home: Path | None) -> Path:
    from stoa.config import load_settings

    return (home or load_settings().home_path) / "cache"


def _do(stage: str, part: str, args: argparse.Namespace, place: Place, ends: float) -> bool:
    """Did it go well, now or before?"""
    file = args.out / f"gpu-{stage}.json"
    report: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"parts": {}}
    before = report["parts"].get(part)
    if before is not None and "failed" not in before and not args.again:
        print(f"{stage} {part}: is there")
        return True
    limit_s = min(STAGES[stage][part].limit_s, ends - time.monotonic())
    if limit_s < min(60, STAGES[stage][part].limit_s):
        print(f"{stage} {part}: no time left")
        return False
    _bring_tuned(args.out / TUNED, place.cache / "weights" / TUNED)
    started = time.monotonic()
    found = _in_process(stage, part, args, limit_s)
    _bring_tuned(place.cache / "weights" / TUNED, args.out / TUNED)
    took = round(time.monotonic() - started, 1)
    print(f"{stage} {part}: {found.get('failed', 'done')}, {took} s", flush=True)
    report["about"] = _about(args)
    report["parts"][part] = found | {"took_s": took}
    file.write_text(json.dumps(report, indent=1) + "\n")
    return "failed" not in found


def _in_process(stage: str, part: str, args: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--stage", stage, "--part", part, "--model", args.model]
        command += ["--out", str(args.out), "--inside", str(result)]
        command += (["--home", str(args.home)] if args.home else []) + (["--small"] if args.small else [])
        log = Path(folder) / "log"
        try:
            with log.open("w") as output:
                child = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
                rc = child.wait(limit_s)
            why = f"exit status {rc}" if rc else ""
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # and whom it has started: they would keep the GPU's memory
            child.wait()
            why = f"not done in {limit_s:.0f} s"
        if why:
            tail = log.read_text(errors="replace")[-4000:]
            print(tail)
            return {"failed": why, "output": tail.splitlines()}
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def _bring_tuned(source: Path, target: Path) -> None:
    """The newer of the two counts."""
    if source.exists() and (not target.exists() or source.stat().st_mtime > target.stat().st_mtime):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _about(args: argparse.Namespace) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True, check=False, cwd=ROOT
    ).stdout.strip()  # fmt: skip
    return {
        "command": f"python benchmarks/gpu.py --model {Path(args.model).name} --out OUT",
        "commit": commit,
    }


if __name__ == "__main__":
    main()
