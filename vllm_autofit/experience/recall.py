"""From the store to the lessons for one start: its own records, and those of other keys that are related."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from vllm_autofit.experience.ending import ending
from vllm_autofit.experience.lessons import lessons_from
from vllm_autofit.experience.record import Record
from vllm_autofit.experience.store import Store
from vllm_autofit.values import Lessons


def recall(store: Store, key: str, related: Mapping[str, str], failed: Sequence[Record] = ()) -> Lessons:
    """What past starts taught.

    Args:
        store: where records are.
        key: of the start (``key.start_key``).
        related: where other keys' records are found (``key.groups``).
        failed: attempts of this very command, newest first; each counts once, whether its record was written or not.

    Raises:
        StoreError: the records can't be read.
    """
    known = {record["run_id"] for record in failed}
    return lessons_from(
        chain(failed, (record for record in store.records(key) if record["run_id"] not in known)),
        same_device=store.related(related["device"]),
        same_model=store.related(related["model"]),
        pinned=(store.pinned(key) or {}).get("settings"),
        ending=ending,
        attempts=failed,
    )
