from __future__ import annotations

from pathlib import Path

import pytest

from stoa.storage.database import Database
from stoa.storage.objects import LocalObjects
from tests.batches.fakes import Workshop
from tests.tenancy.meters.clock import ManualClock


@pytest.fixture
def workshop(database: Database, database_url: str, tmp_path: Path) -> Workshop:
    return Workshop(database_url, database, LocalObjects(tmp_path / "files"), ManualClock())
