"""What every peer is told on its command line, so that all run the same workload. Standard library only."""

from __future__ import annotations

import argparse


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapters", required=True)
    parser.add_argument("--mode", required=True, choices=["base", "same", "distinct"])
    parser.add_argument("--batch", type=int, action="append", required=True)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    return parser
