"""The ledger of claims of one user on one machine: ``claims/<boot>.json`` in the cache folder.

One file for all devices, so that a start over several of them is entered at once or not at all. It is read, changed and
written under a lock that is held for milliseconds. Claims of processes that are gone are passed over, and left out by
the next who writes. A file that can't be read counts as empty: each of the claims in it is made anew with its start.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vllm_autofit.claims.claim import START_SECONDS, Claim, as_document, from_document
from vllm_autofit.errors import RecordError, StoreError
from vllm_autofit.experience.ending import still_runs, this_process
from vllm_autofit.experience.files import make_folder, read_json, write_json
from vllm_autofit.experience.locking import exclusive

FOLDER = "claims"
FORGOTTEN_SECONDS = 86400.0
"""A claim of another container that changed nothing for so long is left out: whether it lives can't be seen."""
OTHER_BOOTS_SECONDS = 30 * 86400.0
"""Ledgers of other machines, or of this one before it was started again, go when nobody changed them for so long."""

Change = Callable[[list[Claim]], list[Claim] | None]
"""From the live claims to those that shall stand; None leaves the ledger as it is."""


class Ledger:
    """The claims of one user on this machine.

    Args:
        folder: the cache folder; made when a first claim is entered.
    """

    def __init__(self, folder: Path) -> None:
        process = this_process()
        boot = hashlib.sha256(str(process["boot"] or process["host"]).encode()).hexdigest()[:16]
        self.path = folder / FOLDER / f"{boot}.json"

    def claims(self) -> list[Claim]:
        """Those of processes that live.

        Raises:
            StoreError: the ledger is there and can't be read.
        """
        with _as_store_error(self.path):
            return [claim for claim in self._read() if _lives(claim)]

    def change(self, change: Change) -> None:
        """Write what ``change`` makes of the live claims. Nobody else writes meanwhile.

        Raises:
            StoreError: the folder can't be written, or the lock can't be had.
        """
        with _as_store_error(self.path):
            make_folder(self.path.parent)
            with exclusive(self.path.with_suffix(".lock")):
                found = self._read()
                live = [claim for claim in found if _lives(claim)]
                changed = change(live)
                if changed is None:
                    return
                unseen = [claim for claim in found if claim not in live and _may_live(claim)]
                if not self.path.exists():
                    self._forget_other_boots()
                document = {"claims": [as_document(claim) for claim in (*unseen, *changed)]}
                write_json(self.path, document, durable=False)  # no claim outlives the machine's next start

    def _read(self) -> list[Claim]:
        try:
            document: Any = read_json(self.path)
        except (FileNotFoundError, RecordError):
            return []
        found = []
        entries = document.get("claims") if isinstance(document, dict) else None
        for entry in entries if isinstance(entries, list) else ():
            with contextlib.suppress(ValueError):  # a newer version's, or damaged
                found.append(from_document(entry))
        return found

    def _forget_other_boots(self) -> None:
        for other in self.path.parent.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - other.stat().st_mtime > OTHER_BOOTS_SECONDS:
                    other.unlink()


def _lives(claim: Claim) -> bool:
    """Whether its process runs; where that can't be seen, whether it is young."""
    runs = still_runs(claim.process)
    return time.monotonic() - claim.changed < START_SECONDS if runs is None else runs


def _may_live(claim: Claim) -> bool:
    return still_runs(claim.process) is None and time.monotonic() - claim.changed < FORGOTTEN_SECONDS


@contextlib.contextmanager
def _as_store_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(str(path), error.strerror or str(error)) from error
