"""Adapters by project: one registry each, and the public one that all see.

    root/<name>/…               public
    root/@<project>/<name>/…    of a project

A name means the project's own adapter if there is one, else the public one of that name.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from stoa.engine.adapters.registry import AdapterEntry, AdapterRegistry
from stoa.engine.model.config import ModelConfig
from stoa.errors import ModelNotFound


class ProjectAdapters:
    """All methods read or write the disk and may be called from any thread."""

    def __init__(
        self, root: Path, model: ModelConfig, max_rank: int, *, reserved: Collection[str] = ()
    ) -> None:
        self.root = Path(root)
        self._model, self._max_rank, self._reserved = model, max_rank, tuple(reserved)
        self._projects: dict[str, AdapterRegistry] = {}
        self.public = self._open(self.root)

    def of(self, project_id: str | None) -> AdapterRegistry:
        """The project's own registry; None: the public one."""
        if project_id is None:
            return self.public
        found = self._projects.get(project_id)
        if found is None:
            assert "/" not in project_id
            own = self._open(self.root / f"@{project_id}", project_id)
            found = self._projects.setdefault(project_id, own)
        return found

    def get(self, project_id: str, name: str) -> AdapterEntry:
        """What `name`, or `name@version`, means to the project. Raises ModelNotFound, or InvalidAdapter if it does
        not fit this base model."""
        try:
            return self.of(project_id).get(name)
        except ModelNotFound:
            return self.public.get(name)

    def list(self, project_id: str) -> list[AdapterEntry]:
        """All that the project can use, by name."""
        found = {entry.name: entry for entry in (*self.public.list(), *self.of(project_id).list())}
        return [found[name] for name in sorted(found)]

    def _open(self, root: Path, owner: str = "") -> AdapterRegistry:
        return AdapterRegistry(root, self._model, self._max_rank, reserved=self._reserved, owner=owner)
