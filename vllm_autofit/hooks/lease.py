"""Engines that start together on one device take turns, and none counts on memory that another is about to take.

vLLM measures what is free of the whole device while it profiles, so that two engines that come up at once spoil each
other's figures. The turn is a claim in the ledger (``claims/``): entered before a start is planned, held until its
engine has its KV cache, or has failed, or its process is gone. Afterwards the claim stays, without the turn, and says
what the engine takes when it wakes up or grows.

Whoever waits has nothing loaded yet. Launches that are planned in parts wait for each other anyway, and where Ray
places workers isn't known here: those take no part.
"""

from __future__ import annotations

import dataclasses
import getpass
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_autofit.hooks.deadline import HOST, folder, of_devices, within
from vllm_autofit.hooks.guard import attempt, logger

if TYPE_CHECKING:
    from vllm_autofit.claims.claim import Claim, State
    from vllm_autofit.settings import Settings
    from vllm_autofit.values import DeviceFacts, Plan, Request

NAME = "claim"
"""Of a run's claim: ``{"id": ..., "devices": [...]}``."""
PURPOSE = "claiming memory"
POLL_SECONDS = 0.25
NOTICE_SECONDS = 3.0
"""Waiting longer than this is worth a line: who is waited for."""
WAIT_SECONDS = 600.0
"""Longest wait for all others together: as long as vLLM waits for one engine (``VLLM_ENGINE_READY_TIMEOUT_S``)."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """A start's claim, and what it found when it was entered.

    Attributes:
        claim: its id.
        waited: whether others came first, so that what was read before is old.
        to_come: bytes that others take yet, by the device's identity.
    """

    claim: str
    waited: bool
    to_come: dict[str, int]


def take(settings: Settings, request: Request, devices: Sequence[DeviceFacts], model: str, engines: int) -> Turn | None:
    """Wait for this start's turn, and enter its claim; None where it takes no part.

    Args:
        settings: the user's.
        request: what was asked for.
        devices: what will be used.
        model: what the user would call it.
        engines: engine cores that will come up on this machine.

    Raises:
        AutofitError: the ledger can't be used.
        asyncio.CancelledError: Ctrl-C was pressed.
    """
    from vllm_autofit.claims.holding import identity

    places = [place for place in map(identity, devices) if place is not None]
    by_ray = "ray" in (request.knobs.get("distributed_executor_backend"), request.knobs.get("data_parallel_backend"))
    if not places or request.planned_in_parts or by_ray or settings.mode != "on":
        return None
    return _Queue(settings.cache_dir, _new_claim(model, engines, places)).wait()


class _Queue:
    """Waiting for those that started before."""

    def __init__(self, cache_dir: Path, own: Claim) -> None:
        self._cache_dir, self._own = cache_dir, own
        self._above = _processes_above()
        self._given_up = False
        self._others: list[Claim] = []
        self._ahead: list[Claim] = []

    def wait(self) -> Turn:
        """Until nobody is ahead, or it takes too long."""
        try:
            return self._wait()
        except BaseException:
            self._given_up = True  # a folder that answers late finds nobody who wants to be entered
            raise

    def _wait(self) -> Turn:
        from vllm_autofit.hooks.aftermath import sleep

        began, said = time.monotonic(), False
        change(self._cache_dir, self._enter)
        while self._ahead:
            seconds = time.monotonic() - began
            if seconds > WAIT_SECONDS:
                change(self._cache_dir, self._enter_beside)
                text = "vllm-autofit: after %.0f s %s is still starting; going on beside it, without what it claims."
                logger.warning(text, seconds, _named(self._ahead))
                break
            if seconds > NOTICE_SECONDS and not said:
                said = True
                logger.info("vllm-autofit: waiting until %s has started on the same device.", _named(self._ahead))
            sleep(POLL_SECONDS)
            change(self._cache_dir, self._enter)
        waited = time.monotonic() - began
        if said:
            logger.info("vllm-autofit: going on after %.0f s.", waited)
        return Turn(self._own.id, waited > POLL_SECONDS, self._to_come())

    def _enter(self, claims: list[Claim]) -> list[Claim] | None:
        """The claims with ours, unless somebody is ahead."""
        entered = self._enter_beside(claims)
        return None if self._ahead or self._given_up else entered

    def _enter_beside(self, claims: list[Claim]) -> list[Claim]:
        """What this process planned before and didn't start, or what failed there, counts no more.

        A process above this one that plans too waits for this one, rather than the other way round.
        """
        clock = time.monotonic()
        kept = [claim for claim in claims if not self._is_ours(claim) or claim.state in ("starting", "serving")]
        self._others = [claim for claim in kept if not self._is_above(claim) or claim.state == "serving"]
        self._ahead = [
            claim
            for claim in self._others
            if claim.is_coming_up(clock)
            and not self._is_ours(claim)
            and not claim.devices.keys().isdisjoint(self._own.devices)
        ]
        return [*kept, dataclasses.replace(self._own, changed=clock)]

    def _is_ours(self, claim: Claim) -> bool:
        return claim.process == self._own.process

    def _is_above(self, claim: Claim) -> bool:
        return claim.pid in self._above and claim.counts_like(self._own.process)

    def _to_come(self) -> dict[str, int]:
        from vllm_autofit.claims.claim import to_come

        clock = time.monotonic()
        return {place: to_come(self._others, place, clock, self._taken) for place in self._own.devices}

    def _taken(self, claim: Claim, place: str) -> int:
        from vllm_autofit.claims.holding import engine_bytes

        if not claim.counts_like(self._own.process):
            return 0
        limit = HOST if place.startswith("cpu:") else of_devices("cuda")
        return attempt("looking what a neighbour holds", within, limit, engine_bytes, claim.pid, place) or 0


def without_claimed(turn: Turn, devices: Sequence[DeviceFacts]) -> list[DeviceFacts]:
    """The devices, with what others have a claim on."""
    from vllm_autofit.claims.holding import identity

    return [dataclasses.replace(each, claimed_bytes=turn.to_come.get(identity(each) or "", 0)) for each in devices]


def planned(turn: Turn, run: dict[str, Any], request: Request, devices: Sequence[DeviceFacts], plan: Plan) -> None:
    """Enter what a start will take, now that it is planned. Its run carries the claim from here."""
    from vllm_autofit.claims.claim import Part
    from vllm_autofit.claims.holding import identity
    from vllm_autofit.planning.sharing import may_grow, will_take

    parts = {
        place: Part(will_take(plan, request, device), may_grow(plan))
        for device in devices
        if (place := identity(device)) is not None
    }
    run[NAME] = {"id": turn.claim, "devices": list(parts)}
    _change_of(run, lambda claim: _in_state(dataclasses.replace(claim, devices=parts), "planned"))


def starting(run: dict[str, Any]) -> None:
    """The engine of a start is about to be made."""
    _change_of(run, lambda claim: claim if claim.state == "starting" else _in_state(claim, "starting"))


def failed(run: dict[str, Any]) -> None:
    """An attempt failed, and the same start may be planned again: it keeps its turn until then."""
    _change_of(run, lambda claim: _in_state(claim, "failed"))


def up(run: dict[str, Any]) -> None:
    """An engine of a start has its KV cache. With the last of them it is the next one's turn."""

    def one_less(claim: Claim) -> Claim:
        claim = dataclasses.replace(claim, engines=claim.engines - 1)
        return claim if claim.engines > 0 else _in_state(claim, "serving")

    _change_of(run, one_less)


def asleep(run: dict[str, Any], freed: dict[str, int], sleeping: bool) -> None:
    """An engine gave bytes of its devices back, or took them (then they are negative).

    Args:
        run: its start.
        freed: by the device's identity.
        sleeping: whether it has still to take some when it wakes.
    """

    def changed(claim: Claim) -> Claim:
        parts = {
            place: dataclasses.replace(part, asleep=max(0, part.asleep + freed.get(place, 0)) if sleeping else 0)
            for place, part in claim.devices.items()
        }
        return dataclasses.replace(claim, devices=parts)

    _change_of(run, changed)


def ended(run: dict[str, Any]) -> None:
    """An engine that served is stopped. One that didn't come up may be made again."""
    _change_of(run, lambda claim: None if claim.state == "serving" else claim)


def give_back(run: dict[str, Any]) -> None:
    """A start failed for good: nothing is claimed any more."""
    _change_of(run, _no_more)


def change(cache_dir: Path, make: Callable[[list[Claim]], list[Claim] | None]) -> None:
    """``Ledger.change`` for a cache folder, unless that takes too long.

    Raises:
        AutofitError: it can't be used.
    """
    # Imported here: every process of vLLM's loads this module, few have a claim.
    from vllm_autofit.claims.ledger import Ledger

    within(folder(cache_dir), Ledger(cache_dir).change, make)


def _change_of(run: dict[str, Any], make: Callable[[Claim], Claim | None]) -> None:
    """Change the claim of a start, or end it. One that is gone stays so."""
    if NAME not in run:
        return
    own = run[NAME]["id"]

    def each(claims: list[Claim]) -> list[Claim] | None:
        found = (make(claim) if claim.id == own else claim for claim in claims)
        changed = [claim for claim in found if claim is not None]
        return None if changed == claims else changed

    change(Path(run["cache_dir"]), each)


def _processes_above() -> set[int]:
    import psutil  # late: every process of vLLM's loads this module

    try:
        return {process.pid for process in psutil.Process().parents()}
    except psutil.Error:
        return set()


def _no_more(_: Claim) -> None:
    """What becomes of a claim that is given back."""


def _in_state(claim: Claim, state: State) -> Claim:
    return dataclasses.replace(claim, state=state, changed=time.monotonic())


def _new_claim(model: str, engines: int, places: Sequence[str]) -> Claim:
    from vllm_autofit.claims.claim import Claim, Part
    from vllm_autofit.experience.ending import this_process
    from vllm_autofit.experience.record import now

    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    parts = dict.fromkeys(places, Part())
    return Claim(name, this_process(), _user(), model, now(), "planning", time.monotonic(), engines, parts)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a number without a name, as in many containers
        return str(os.getuid())


def _named(claims: Sequence[Claim]) -> str:
    first, more = claims[0], len(claims) - 1
    seconds = max(0.0, time.monotonic() - first.changed)
    others = f" and {more} more" if more else ""
    return f"{first.model} (process {first.pid} of {first.user}, {first.state} for {seconds:.0f} s){others}"
