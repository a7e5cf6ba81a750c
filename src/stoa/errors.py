"""Every refusal Stoa makes, as a typed error.

Each class carries what HTTP needs (status, OpenAI error `type` and `code`), so the server maps errors
to bodies in one place and nobody below it knows about HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping


class StoaError(Exception):
    """Base of all errors that Stoa raises on purpose.

    `message` says what is wrong, where, and what would be accepted; `param` names the offending field.
    """

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(StoaError):
    """A field of a request is missing, malformed or out of range."""

    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and requested completion do not fit the model's context."""

    code = "context_length_exceeded"


class ModelNotFound(StoaError):
    """No base model or adapter of that name is visible to the caller."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class NotFound(StoaError):
    """No such thing is visible to the caller; another project's things look the same as absent ones."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class Conflict(StoaError):
    """Somebody else changed the thing meanwhile, or it is not in a state that allows this."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class Unauthorized(StoaError):
    """No API key, or one that is wrong, expired or revoked."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDenied(StoaError):
    """The key is right but may not do this."""

    status = 403
    type = "invalid_request_error"
    code = "insufficient_permissions"


class RequestTooLarge(StoaError):
    """The request body exceeds the configured limit."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RequestTimeout(StoaError):
    """The client took too long to send its request."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class QueueFull(StoaError):
    """The service holds as many requests as it may; try again after `retry_after_s` seconds."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(StoaError):
    """A limit of the key or its project is reached; in `retry_after_s` seconds the same request would fit."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, retry_after_s: float, headers: Mapping[str, str] | None = None
    ) -> None:
        """`headers`: x-ratelimit-…, of the limit that is reached."""
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})


class QuotaExceeded(StoaError):
    """The project's hard budget is spent, or would be by this request."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class DatabaseUnavailable(StoaError):
    """The database cannot be reached or written to; requests already admitted go on."""

    status = 503
    type = "server_error"
    code = "database_unavailable"


class EngineUnavailable(StoaError):
    """The engine stopped while the request was running, or is not up."""

    status = 503
    type = "server_error"
    code = "engine_unavailable"


class ReplicaLost(EngineUnavailable):
    """A replica went away, or refuses for now; the request can go on on another one."""


class NoAllowedReplica(EngineUnavailable):
    """No replica takes the request at any place where its project may be served; it was sent nowhere else."""

    code = "no_allowed_replica"


class UnsupportedModel(StoaError):
    """A base model folder asks for something the engine does not implement; the message names it."""

    status = 400
    type = "invalid_request_error"
    code = "unsupported_model"


class InvalidModel(UnsupportedModel):
    """A base model folder is damaged or incomplete."""

    code = "invalid_model"


class InvalidAdapter(StoaError):
    """An adapter folder is damaged, unsupported, or does not fit the base model; the message names why."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_adapter"


class AdapterExists(InvalidAdapter):
    """An adapter of that name is registered already."""

    code = "adapter_exists"


class OutOfMemory(StoaError):
    """The memory pool can never hold what was asked for; the message names the setting to change."""

    status = 400
    type = "invalid_request_error"
    code = "out_of_memory"


class StorageFull(InvalidRequest):
    """The project's files have no room for more."""

    code = "storage_limit_exceeded"


class InvalidPrice(InvalidRequest):
    """A price or a table of prices is malformed, overlaps another or leaves a gap."""

    code = "invalid_price"


class InvalidTrace(StoaError):
    """A trace cannot be read; the message names file and line, and what would be accepted."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_trace"


class ConfigError(StoaError):
    """A setting is unknown or malformed; the message names it, its source, and what is accepted."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_configuration"
