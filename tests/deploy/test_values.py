"""Values of the chart: described, and refused where they are wrong."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import value_sets
from tests.deploy.renderer import CHART, ROOT, Refused, Renderer


def load_script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/containers/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


values_table = load_script("values_table")
VALUES = (CHART / "values.yaml").read_text()


def test_every_value_is_described() -> None:
    """Each value has a comment above it, or above the one that it is a part of."""
    assert [v.path for v in values_table.read_values(VALUES) if not v.text] == []


def test_a_value_without_a_comment_is_found() -> None:
    """A new value that nobody described does not hide among described ones."""
    found = values_table.read_values("# About a.\na: 1\n\ngroup:\n  # About b.\n  b: {c: 1}\n  d: 2\n")
    assert [(v.path, v.text) for v in found] == [("a", "About a."), ("group.b", "About b."), ("group.d", "")]


def test_the_table_is_of_today() -> None:
    """The table in docs/containers.md is what values.yaml says."""
    docs = Path(ROOT / "docs/containers.md").read_text()
    assert values_table.with_table(docs, values_table.read_values(VALUES)) == docs


def test_the_schema_knows_every_value() -> None:
    """Each value has its own place in the schema, and each place there has a value."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(node: dict[str, Any], value: Any, path: str) -> None:
        node = schema["$defs"][node["$ref"].removeprefix("#/$defs/")] if "$ref" in node else node
        if "properties" not in node or path.endswith("resources"):
            return
        assert set(node["properties"]) - {"global"} == set(value), path
        for key, below in value.items():
            compare(node["properties"][key], below, f"{path}.{key}")

    compare(schema, yaml.safe_load(VALUES), "")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gatway": {}}, "gatway"),
        ({"gateway": {"replica": 3}}, "replica"),
        ({"gateway": {"replicas": "three"}}, "replicas"),
        ({"gateway": {"replicas": 0}}, "minimum"),
        ({"gateway": {"port": 70000}}, "maximum"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"auth": {"mode": "auto"}}, "mode"),
        ({"auth": {"apiKey": "sk-secret"}}, "apiKey"),
        ({"database": {"url": "postgresql://u:p@h/n"}}, "url"),
        ({"config": {"api_key": "sk-secret"}}, "api_key"),
        ({"config": {"db": "postgresql://u:p@h/n"}}, "db"),
        ({"config": {"host": "0.0.0.0"}}, "host"),
        ({"config": {"max-queue": 5}}, "max-queue"),
        ({"ray": {"externalAddress": "10.0.0.1"}}, "externalAddress"),
        ({"ray": {"workerGroups": {"spot": {"market": "cheap"}}}}, "market"),
        ({"ray": {"workerGroups": {"spot": {"zone": "eu-1a"}}}}, "zone"),
        ({"ray": {"workerGroups": {"Spot": {}}}}, "Spot"),
        ({"persistence": {"home": {"size": "big"}}}, "size"),
        ({"persistence": {"adapters": {"storage": "disk"}}}, "storage"),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, "maxUnavailable"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_name(render: Renderer, values: dict[str, Any], said: str) -> None:
    """The schema refuses a value that is misspelt, of a wrong kind, or a secret, and names it."""
    with pytest.raises(Refused, match=said):
        render(**values)


RAY = {"enabled": True, "auth": {"existingSecret": "ray"}}
SHARED = {"adapters": {"storage": "none"}}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gateway": {"replicas": 2}}, "database.existingSecret and redis"),
        ({"autoscaling": {"enabled": True}}, "database.existingSecret and redis"),
        ({"autoscaling": {"enabled": True, "minReplicas": 9}}, "autoscaling.minReplicas"),
        ({"database": {"existingSecret": "db"}}, "networkPolicy.databaseTo"),
        ({"redis": {"existingSecret": "redis"}}, "networkPolicy.redisTo"),
        ({"ray": {"enabled": True}, "persistence": SHARED}, "ray.auth.existingSecret"),
        ({"ray": RAY}, "persistence.adapters.storage"),
        ({"ray": RAY | {"externalAddress": "ray://h:10001"}}, "choose one"),
        ({"ray": RAY, "persistence": SHARED, "fleet": {"minReplicas": 9}}, "fleet.maxReplicas"),
        (value_sets.EXTERNAL_RAY | {"networkPolicy": {}}, "networkPolicy.extraEgress"),
        (value_sets.MANY_GATEWAYS | {"persistence": SHARED}, "persistence.home.accessMode"),
        (value_sets.MANY_GATEWAYS | {"persistence": {"home": {"enabled": False}}}, "adapters.storage"),
        ({"ingress": {"enabled": True}}, "ingress.hosts"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_contradictions_are_refused(render: Renderer, values: dict[str, Any], said: str) -> None:
    """Values that cannot go together are refused before anything is installed, and the message says which to give."""
    with pytest.raises(Refused, match=said):
        render(**values)
