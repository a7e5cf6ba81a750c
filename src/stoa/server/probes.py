"""GET /health (is the process alive?) and /ready (may traffic come?)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from stoa.errors import EngineUnavailable
from stoa.server.service import Service
from stoa.server.wire import json_response


class ProbesEndpoint:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, request: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        if not self._service.replica.ready:
            raise EngineUnavailable("the engine is not ready; try again soon")
        return json_response({"status": "ready", "model": self._service.model_id})
