"""Tries a grammar in a process of its own before the engine compiles it.

A hostile schema can keep the compiler busy for ever or overflow its stack, which ends the process: here that
costs a helper, not the engine. `python -m stoa.engine.grammar_probe FOLDER VOCAB END…` reads one grammar a line
and answers each with "" (fine) or the reason against it, as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from stoa.engine.request import Grammar
from stoa.errors import InvalidRequest

_START_S = 60.0
_MEMORY_BYTES = 4 << 30
_STACK_BYTES = 4 << 20  # less than the engine's threads have
_PR_SET_PDEATHSIG = 1


class GrammarProbe:
    """Owns the helper process; starts it when first asked, and again after it was lost. For one thread."""

    def __init__(
        self, folder: Path, vocab_size: int, end_tokens: Sequence[int], *, timeout_s: float = 5.0
    ) -> None:
        self.timeout_s = timeout_s
        words = [str(folder), str(vocab_size), *map(str, end_tokens)]
        self._command = [sys.executable, "-m", "stoa.engine.grammar_probe", *words]
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, grammar: Grammar) -> None:
        """Raises InvalidRequest if the grammar is refused, takes too long, or ends the helper."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            if self._answer(_START_S) is None:
                raise InvalidRequest("grammars cannot be checked now; try again", param="response_format")
        process = self._process
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(grammar) + b"\n")
            process.stdin.flush()
        reason = self._answer(self.timeout_s)
        if reason is None:
            reason = f"it is too complex to compile within {self.timeout_s:g} s"
        if reason:
            raise InvalidRequest(f"the output format cannot be used: {reason}", param="response_format")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _answer(self, timeout_s: float) -> str | None:
        """None, and no helper any more, if there is none in time."""
        assert self._process is not None
        assert self._process.stdout is not None
        if select.select([self._process.stdout], [], [], timeout_s)[0]:
            line = self._process.stdout.readline()
            if line:
                return str(json.loads(line))
        self.close()
        return None


def _try(compiler: object, line: bytes) -> str:
    from stoa.engine.grammar import GrammarCompiler

    assert isinstance(compiler, GrammarCompiler)
    try:
        compiler.compile(msgspec.json.decode(line, type=Grammar)).allowed_mask()
    except InvalidRequest as error:
        return error.message.removeprefix("the output format cannot be used: ")
    return ""


def _serve() -> None:
    from stoa.engine.grammar import GrammarCompiler
    from stoa.engine.tokenizer import Tokenizer

    folder, vocab_size, *ends = sys.argv[1:]
    compiler = GrammarCompiler(
        Tokenizer(Path(folder), chat=False), int(vocab_size), end_tokens=[int(e) for e in ends], cache_size=1
    )
    print('""', flush=True)  # up
    for line in sys.stdin.buffer:
        print(json.dumps(_try(compiler, line)), flush=True)


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
