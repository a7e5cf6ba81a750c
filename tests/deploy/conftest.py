"""The chart's renderer."""

from collections.abc import Iterator

import pytest

from tests.deploy.renderer import Renderer


@pytest.fixture(scope="package")
def render() -> Iterator[Renderer]:
    renderer = Renderer()
    yield renderer
    renderer.close()
