"""compose.yaml: what is started, in what order, and what it is allowed."""

import re
from typing import Any

import pytest
import yaml

from tests.deploy.renderer import ROOT

TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = ("gateway", "ray-head", "ray-worker")


def test_the_fleet_is_a_profile() -> None:
    """Without a profile there are a gateway, a database and redis; Ray comes with `fleet`."""
    assert {n for n, s in SERVICES.items() if "profiles" not in s} == {"gateway", "postgres", "redis"}
    assert all(SERVICES[n]["profiles"] == ["fleet"] for n in ("ray-head", "ray-worker"))


@pytest.mark.parametrize("name", ["postgres", "redis", "ray-head"])
def test_gateways_wait_for_health(name: str) -> None:
    """Whom the gateway needs has a health check, and the gateway waits for it."""
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES["gateway"]["depends_on"][name]["condition"] == "service_healthy"


@pytest.mark.parametrize("name", OURS)
def test_our_containers_are_confined(name: str) -> None:
    """A read-only image, no capabilities, no new ones; what is written lies in volumes and /tmp."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]


def test_state_is_out_of_reach() -> None:
    """Database and redis publish no port, and their network leads nowhere; the gateway listens on loopback."""
    assert COMPOSE["networks"]["state"]["internal"] is True
    for name in ("postgres", "redis"):
        assert SERVICES[name]["networks"] == ["state"]
        assert "ports" not in SERVICES[name]
    assert SERVICES["gateway"]["ports"] == ["${STOA_PUBLISH:-127.0.0.1:8000}:8000"]


def test_secrets_come_from_outside() -> None:
    """No password, key or token stands in the file, and the database and redis do not start without."""
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"KEY|TOKEN|PASSWORD|AUTH$", name) and name != "STOA_AUTH":
                assert re.fullmatch(r"\$\{\w+(-|:\?[^}]*)\}", value), name
    assert TEXT.count("${POSTGRES_PASSWORD:?") == 2
    assert TEXT.count("${REDIS_PASSWORD:?") == 2


def test_gateways_are_closed_and_may_drain() -> None:
    """Everybody needs a key, and a stopping gateway has longer than its running requests."""
    assert SERVICES["gateway"]["environment"]["STOA_AUTH"] == "keys"
    assert SERVICES["gateway"]["stop_grace_period"] == "45s"


def test_volumes_are_declared_and_paths_agree() -> None:
    """Each volume is declared; gateway and Ray nodes see adapters and models at the same paths."""
    paths: dict[str, set[str]] = {}
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            name, path = mount.split(":")[:2]
            paths.setdefault(name, set()).add(path)
    assert set(paths) == set(COMPOSE["volumes"])
    assert all(len(p) == 1 for p in paths.values())


def test_variables_are_described() -> None:
    """docs/containers.md tells of every variable that the file reads."""
    docs = (ROOT / "docs/containers.md").read_text()
    missing = {name for name in re.findall(r"\$\{(\w+)", TEXT) if f"`{name}`" not in docs}
    assert missing == set()
