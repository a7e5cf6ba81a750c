"""The chart's renderer, for the values that are exported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deploy.renderer import Renderer


@pytest.fixture(scope="package")
def render() -> Iterator[Renderer]:
    renderer = Renderer()
    yield renderer
    renderer.close()
