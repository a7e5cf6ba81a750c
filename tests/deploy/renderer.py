"""Helm in a process of its own (its library brings Go's runtime along): one line of JSON in, one out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/stoa"
Manifest = dict[str, Any]


class Refused(Exception):
    """What the chart said against the values."""


class Renderer:
    """`notes` holds what the last rendering said to people."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.notes = ""

    def __call__(self, **values: Any) -> list[Manifest]:
        """Every object of a release stoa in the namespace ai. Raises Refused."""
        answer = self._ask({"render": values})
        self.notes = answer.pop("stoa/templates/NOTES.txt")
        return [d for text in answer.values() for d in yaml.safe_load_all(text) if d is not None]

    def lint(self) -> Any:
        return self._ask({"lint": str(CHART)})

    def close(self) -> None:
        self._process.communicate("")

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer["done"]


def _main() -> None:
    from helm_python import Chart, HelmError, lint

    with Chart.load(CHART) as chart:
        for line in sys.stdin:
            question = json.loads(line)
            try:
                if "lint" in question:
                    done: Any = lint(question["lint"])
                else:
                    done = chart.render(values=question["render"], name="stoa", namespace="ai")
                print(json.dumps({"done": done}), flush=True)
            except HelmError as error:
                print(json.dumps({"refused": str(error)}), flush=True)


if __name__ == "__main__":
    _main()
