"""One finished request, as it is billed."""

from __future__ import annotations

from typing import Literal

import msgspec

from stoa.economics.accounts import Account
from stoa.engine.request import FinishReason, ServiceClass
from stoa.engine.usage import RequestUsage

Endpoint = Literal["completions", "embeddings"]


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the usage table before it is one; the fields are the columns."""

    request_id: str
    project_id: str
    key_id: str | None
    model: str
    adapter: str = ""  # name@version
    endpoint: Endpoint = "completions"
    service_class: ServiceClass = "interactive"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_ns: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0
    compute_ns: int = 0
    kv_byte_ms: int = 0
    adapter_byte_ms: int = 0
    outcome: FinishReason = "stop"
    cost_nanos: int = 0
    created_at_s: int

    @classmethod
    def of(
        cls,
        usage: RequestUsage,
        account: Account,
        *,
        cost_nanos: int,
        created_at_s: int,
        adapter: str = "",
        endpoint: Endpoint = "completions",
        service_class: ServiceClass = "interactive",
    ) -> UsageRecord:
        """What the engine measured, with whose it was and what it cost."""
        return cls(
            **msgspec.structs.asdict(usage),
            project_id=account.project_id,
            key_id=account.key_id,
            model=account.model,
            adapter=adapter,
            endpoint=endpoint,
            service_class=service_class,
            cost_nanos=cost_nanos,
            created_at_s=created_at_s,
        )
