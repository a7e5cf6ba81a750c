"""Why a remote does not answer a request."""

from __future__ import annotations

from stoa.errors import ReplicaLost


class NotCarried(ReplicaLost):
    """The remote's API has no words for what the request asks, it has refused it as malformed, or has no place for its
    adapter. Nothing is wrong with the remote; another replica may take the request."""

    status = 400
    type = "invalid_request_error"
    code = "not_supported_by_remote"


class Throttled(ReplicaLost):
    """The remote wants to be left alone for `retry_after_s` seconds."""

    status = 429
    type = "rate_limit_error"
    code = "remote_throttled"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelUnknown(ReplicaLost):
    """The remote does not know the model by that name: a wrong mapping, or an adapter that vanished there."""

    code = "remote_model_not_found"
