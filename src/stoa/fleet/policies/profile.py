"""What one replica can do, in numbers that the engine's running fit or `stoa bench profile` gives."""

from __future__ import annotations

import msgspec


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A step takes `step_s`. It has at most `max_num_seqs` sequences and `max_batch_tokens` rows; a decoding sequence is
    one row, a prompt is computed in chunks of what is left of the rows."""

    name: str
    fixed_s: float  # an empty step
    prompt_row_s: float  # each row of a prompt
    decode_row_s: float  # each decoding sequence
    context_token_s: float = 0.0  # each token of context of a decoding sequence
    max_num_seqs: int = 64
    max_batch_tokens: int = 512
    kv_tokens: int = 1 << 60  # context that fits in memory, all sequences together
    load_s: float = 0.0  # from process start to the first request
    adapter_load_s: float = 0.0

    def step_s(self, prompt_rows: float, decode_rows: float, context_tokens: float = 0.0) -> float:
        """Seconds of a step with so many rows; `context_tokens` of its decoding sequences together."""
        return (
            self.fixed_s
            + self.prompt_row_s * prompt_rows
            + self.decode_row_s * decode_rows
            + self.context_token_s * context_tokens
        )
