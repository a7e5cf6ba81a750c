"""Batches: files of requests that run when there is room, within a window of time.

    validating ──▶ in_progress ──▶ finalizing ──▶ completed, or expired with what was done in time
        └──▶ failed       └──▶ cancelling ──▶ cancelled, with what was done

A batch's row holds its state; a result is a row too, until the output files are written. Whichever gateway holds the
batch's lease works at it (`runner.py`, `run.py`); what it had not written down when it died is done again by the next,
so that every line has one result.
"""

from stoa.batches.batches import ENDPOINTS, Batches
from stoa.batches.runner import BatchRunner
from stoa.batches.sender import Answer, Asked, Sender

__all__ = ["ENDPOINTS", "Answer", "Asked", "BatchRunner", "Batches", "Sender"]
