"""Adapters by name, on disk, shared by all processes of one installation.

    root/<name>/current              the version that the bare name means; replaced atomically
    root/<name>/<version>/           the PEFT folder, never changed once there, and stoa.json: its facts
    root/.seen/<hash>.json           facts of folders that are served in place
    root/.lock                       held while names change

The disk is the truth: what one process adds or removes, all others see with their next question. Facts are
kept beside the weights, so that a start with thousands of adapters reads no weights.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stoa.engine.adapters.names import CONFIG_FILE, WEIGHTS_FILE
from stoa.engine.adapters.peft import AdapterSpec, read_adapter
from stoa.engine.model.config import ModelConfig
from stoa.engine.request import AdapterRef
from stoa.errors import AdapterExists, InvalidAdapter, ModelNotFound

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[0-9a-f]{12}")
_FACTS_FILE = "stoa.json"
_POINTER = "current"
_STALE_S = 3600.0  # a temporary folder older than this was left by a crash


@dataclass(frozen=True)
class AdapterEntry:
    """A registered adapter, checked against the base model it was added for."""

    name: str
    version: str  # first 12 hex digits of id
    id: str  # sha256 of the content
    path: Path
    rank: int  # the largest of its modules
    modules: int  # how many it adapts
    nbytes: int  # of its tensors
    created: int  # Unix seconds
    owner: str = ""  # whose it is; "": everybody's

    @property
    def ref(self) -> AdapterRef:
        """Two owners of the same content share nothing in the engine: how fast it answers tells neither of the other."""
        return AdapterRef(id=f"{self.owner}:{self.id}" if self.owner else self.id, path=str(self.path))


@dataclass(frozen=True)
class _Facts:
    """What stoa.json says. `base` names the shapes that the adapter was checked against; `files` is what
    the folder's files looked like, where they may change (served in place)."""

    id: str
    base: str
    rank: int
    modules: int
    nbytes: int
    created: int
    files: list[list[int]] | None = None


class AdapterRegistry:
    """Names to adapters. All methods may be called from any thread and any process."""

    def __init__(
        self,
        root: Path,
        model: ModelConfig,
        max_rank: int,
        *,
        reserved: Collection[str] = (),
        owner: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`owner` is written into entries. `reserved` names belong to others, e.g. the base model. `root` is made
        when first written to."""
        self.root = Path(root)
        self.max_rank = max_rank
        self._owner = owner
        self._model = model
        self._base = _fingerprint(model)
        self._reserved = frozenset(reserved)
        self._clock = clock
        self._known: dict[tuple[str, str], AdapterEntry | InvalidAdapter] = {}
        self._in_place: dict[str, AdapterEntry] = {}

    # -- questions

    def get(self, name: str) -> AdapterEntry:
        """The adapter called `name`, or `name@version`. Raises ModelNotFound, or InvalidAdapter if it is
        there but does not fit this base model."""
        bare, at, version = name.partition("@")
        if not NAME.fullmatch(bare) or (at and not _VERSION.fullmatch(version)):
            raise _not_found(name)
        current = self._current(bare)
        wanted = version if at and current is not None else current
        entry = None if wanted is None else self._entry(bare, wanted)
        if entry is None:
            entry = self._in_place.get(bare)
        if entry is None or (at and entry.version != version):
            raise _not_found(name)
        return entry

    def list(self) -> list[AdapterEntry]:
        """All adapters that this base model can serve, by name; each in its current version."""
        found = dict(self._in_place)
        for name in self._names():
            try:
                found[name] = self.get(name)
            except (ModelNotFound, InvalidAdapter):
                continue
        return [found[name] for name in sorted(found)]

    def misfits(self) -> dict[str, str]:
        """Name -> reason, of registered adapters that `list` leaves out."""
        reasons = {}
        for name in self._names():
            try:
                self.get(name)
            except InvalidAdapter as error:
                reasons[name] = error.message
            except ModelNotFound:
                continue
        return reasons

    # -- changes

    def add(self, name: str, folder: Path, *, replace: bool = False) -> AdapterEntry:
        """Copies the PEFT folder, checks the copy, and gives it the name; a version already there is kept.
        Raises InvalidAdapter, or AdapterExists without `replace`; then nothing has changed."""
        self._check_name(name)
        self._check_free(name, replace)
        self.root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.root))
        try:
            _copy(Path(folder), work, self.max_bytes)
            spec = _read_copy(work, Path(folder), self._model, self.max_rank)
            _write_atomically(work / _FACTS_FILE, _dump(self._facts(spec)))
            version = spec.id[:12]
            self._publish(name, version, work, replace)
            entry = _make_entry(name, self.root / name / version, self._facts(spec), self._owner)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return entry

    def remove(self, name: str) -> None:
        """Forgets the name and deletes all its versions; an engine that has the files mapped keeps them.
        A folder served in place is only forgotten. Raises ModelNotFound."""
        if not NAME.fullmatch(name):
            raise _not_found(name)
        in_place = self._in_place.pop(name, None)
        home, trash = self.root / name, None
        if home.exists():
            with self._locked():
                trash = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.root))
                try:
                    home.rename(trash / name)
                except FileNotFoundError:  # another process was faster
                    trash.rmdir()
                    trash = None
        for key in [k for k in self._known if k[0] == name]:
            self._known.pop(key, None)
        if trash is not None:
            shutil.rmtree(trash, ignore_errors=True)
        elif in_place is None:
            raise _not_found(name)

    def add_folder(self, folder: Path) -> dict[str, str]:
        """Serves every adapter folder inside `folder` in place, under its own name, for this process only.
        Returns folder name -> reason for each that was refused. Raises InvalidAdapter if there is no such
        folder. A folder must not change while it is served."""
        folder = Path(folder)
        if not folder.is_dir():
            raise InvalidAdapter(f"{folder} is not a folder", param="lora_path")
        refused = {}
        for path in sorted(p for p in folder.iterdir() if (p / CONFIG_FILE).exists()):
            try:
                self._check_name(path.name)
                if self._current(path.name) is not None:
                    raise AdapterExists(
                        f"an adapter named {path.name!r} is registered already", param="lora_name"
                    )
                self._in_place[path.name] = self._serve(path.absolute())
            except InvalidAdapter as error:
                refused[path.name] = error.message
        return refused

    # -- inside

    @property
    def max_bytes(self) -> int:
        """Of a weights file: all linear layers at the largest rank in fp64, and a header."""
        shapes = self._model.linear_shapes().values()
        per_rank = self._model.num_layers * sum(map(sum, shapes))
        return 8 * self.max_rank * per_rank + (64 << 20)

    def _check_name(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise InvalidAdapter(
                f"{name[:200]!r} is not an adapter name; accepted: 1 to 128 of A-Z a-z 0-9 . _ -, "
                "beginning with a letter or digit",
                param="lora_name",
            )
        if name in self._reserved:
            raise InvalidAdapter(f"the name {name!r} is taken by the service itself", param="lora_name")

    def _check_free(self, name: str, replace: bool) -> None:
        if not replace and (name in self._in_place or self._current(name) is not None):
            raise AdapterExists(
                f"an adapter named {name!r} exists already; replace it (--replace, load_inplace) or remove it",
                param="lora_name",
            )

    def _publish(self, name: str, version: str, work: Path, replace: bool) -> None:
        """Moves a finished folder to its place and points the name at it."""
        home = self.root / name
        with self._locked():
            self._check_free(name, replace)
            self._sweep(keep=work)
            home.mkdir(exist_ok=True)
            if not (home / version / _FACTS_FILE).exists():
                work.rename(home / version)
            _write_atomically(home / _POINTER, version)
        self._in_place.pop(name, None)

    def _sweep(self, keep: Path) -> None:
        """Deletes what crashed processes left. Call with the lock held."""
        for path in self.root.glob(".tmp-*"):
            try:
                if path != keep and self._clock() - path.stat().st_mtime > _STALE_S:
                    shutil.rmtree(path, ignore_errors=True)
            except FileNotFoundError:
                continue

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.root / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _names(self) -> Sequence[str]:
        try:
            return [name for name in os.listdir(self.root) if NAME.fullmatch(name)]
        except FileNotFoundError:
            return []

    def _current(self, name: str) -> str | None:
        """The version that the name means now; None if there is no such name."""
        try:
            with open(f"{self.root}/{name}/{_POINTER}", encoding="ascii") as file:
                version = file.read(64)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return version if _VERSION.fullmatch(version) else None

    def _entry(self, name: str, version: str) -> AdapterEntry | None:
        """The adapter in root/name/version; None if it is not there. Checked once per process."""
        known = self._known.get((name, version)) or self._check_entry(name, version)
        if isinstance(known, InvalidAdapter):
            raise known
        return known

    def _check_entry(self, name: str, version: str) -> AdapterEntry | InvalidAdapter | None:
        """Takes stoa.json at its word, unless it speaks of another base model or too high a rank."""
        path = self.root / name / version
        facts = _load_facts(path / _FACTS_FILE)
        if facts is None:
            return None
        known: AdapterEntry | InvalidAdapter
        try:
            if facts.base != self._base or facts.rank > self.max_rank:
                facts = self._facts(read_adapter(path, self._model, max_rank=self.max_rank), facts.created)
            known = _make_entry(name, path, facts, self._owner)
        except InvalidAdapter as error:
            known = error
        self._known[name, version] = known
        return known

    def _serve(self, path: Path) -> AdapterEntry:
        """An adapter where it lies. Its facts stay in root/.seen as long as its files are the same."""
        seen = self.root / ".seen" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
        files = _look(path)
        facts = _load_facts(seen)
        if facts is None or facts.files != files or facts.base != self._base or facts.rank > self.max_rank:
            facts = self._facts(read_adapter(path, self._model, max_rank=self.max_rank), files=files)
            seen.parent.mkdir(parents=True, exist_ok=True)
            _write_atomically(seen, _dump(facts))
        return _make_entry(path.name, path, facts, self._owner)

    def _facts(self, spec: AdapterSpec, created: int | None = None, files: Any = None) -> _Facts:
        return _Facts(
            id=spec.id,
            base=self._base,
            rank=spec.max_rank,
            modules=len(spec.modules),
            nbytes=spec.nbytes,
            created=int(self._clock()) if created is None else created,
            files=files,
        )


def _not_found(name: str) -> ModelNotFound:
    return ModelNotFound(f"there is no adapter named {name[:200]!r}", param="model")


def _fingerprint(model: ModelConfig) -> str:
    """Changes with everything that a check of an adapter depends on, and with what its id is made of."""
    facts = json.dumps([model.num_layers, sorted(model.linear_shapes().items()), "weights, shapes"])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _make_entry(name: str, path: Path, facts: _Facts, owner: str) -> AdapterEntry:
    return AdapterEntry(
        name=name,
        version=facts.id[:12],
        id=facts.id,
        path=path,
        rank=facts.rank,
        modules=facts.modules,
        nbytes=facts.nbytes,
        created=facts.created,
        owner=owner,
    )


def _copy(folder: Path, work: Path, max_bytes: int) -> None:
    """The two files that make an adapter; anything else in the folder stays behind."""
    try:
        if not folder.is_dir():
            raise InvalidAdapter(f"{str(folder)[:500]} is not a folder", param="lora_path")
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if (folder / name).is_file():
                if (folder / name).stat().st_size > max_bytes:
                    raise InvalidAdapter(
                        f"{folder / name} is larger than any adapter of this base model could be",
                        param="lora_path",
                    )
                shutil.copyfile(folder / name, work / name)
    except OSError as error:
        raise InvalidAdapter(
            f"{str(folder)[:500]} cannot be copied: {error.strerror}", param="lora_path"
        ) from None


def _read_copy(work: Path, folder: Path, model: ModelConfig, max_rank: int) -> AdapterSpec:
    """Checks the copy, but speaks of the folder that it came from."""
    source = work if (work / CONFIG_FILE).exists() and (work / WEIGHTS_FILE).exists() else folder
    try:
        return read_adapter(source, model, max_rank=max_rank)
    except InvalidAdapter as error:
        message = error.message.replace(str(work), str(folder))
        raise InvalidAdapter(message, param=error.param or "lora_path") from None


def _look(path: Path) -> list[list[int]]:
    """[size, modification time in ns] of the adapter's files."""
    try:
        stats = [os.stat(path / name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    except OSError:
        return []
    return [[s.st_size, s.st_mtime_ns] for s in stats]


def _dump(facts: _Facts) -> str:
    return json.dumps(asdict(facts))


def _load_facts(path: Path) -> _Facts | None:
    """None if the file is absent or not ours: it is only a cache of what the weights say."""
    try:
        with open(path, "rb") as file:
            return _Facts(**json.loads(file.read(10_000)))
    except (OSError, ValueError, TypeError):
        return None


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
