"""How much one replica, a model on a machine, can serve.

service.py    load of a request under its targets: `loads_of`
measured.py   profiles of `stoa bench profile`
table.py      profiles fitted to tables of times: our own layout, Splitwise's, Helix's
roofline.py   profiles from datasheets
models.py     facts of a model, from its config.json
catalog.py    facts of well-known models
"""

from __future__ import annotations

from stoa.planner.profiles.catalog import find_model
from stoa.planner.profiles.fitted import Fitted, Limits
from stoa.planner.profiles.measured import read_measured
from stoa.planner.profiles.models import ModelShape, read_shape
from stoa.planner.profiles.roofline import kv_tokens_of, roofline
from stoa.planner.profiles.service import beside_adapters, loads_of
from stoa.planner.profiles.table import read_table

__all__ = [
    "Fitted", "Limits", "ModelShape", "beside_adapters", "find_model", "kv_tokens_of", "loads_of", "read_measured",
    "read_shape", "read_table", "roofline",
]  # fmt: skip
