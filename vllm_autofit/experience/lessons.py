"""From records to what the next plan needs, each at the level where it holds. Pure.

- What a start takes before vLLM's check belongs to the machine and the way of launching: this key's starts say it
  best, another model's on the same devices are a prior.
- What has to stay free beside what vLLM asks for was seen under load, or a failure told.
- Weights, activations, graphs and the rest of a rank belong to the model and the settings it ran with.

Nothing is believed without bounds: the planner holds every figure against its own estimate.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from vllm_autofit.experience import observed
from vllm_autofit.experience.record import KILLED, Record
from vllm_autofit.units import GIB, MIB
from vllm_autofit.values import Elsewhere, FieldValue, Lessons, Measured, RunSettings

CONSIDERED = 3
"""Starts that count for one figure. On a host, what a start takes varies by some 0.5 GiB with the page cache (vLLM
0.32.0, x86-64): the largest of the newest counts, because asking for too much fails a start and asking for too little
wastes some; what a neighbour did long ago is forgotten."""

READ = 12
"""Newest starts of a key that are looked at."""

FLOOR_HOST_BYTES = 128 * MIB
FLOOR_HOST_FRACTION = 0.005
FLOOR_DEVICE_BYTES = 256 * MIB
FLOOR_DEVICE_FRACTION = 0.0025
"""Kept free beyond what was ever seen to be needed. On an idle host two starts in a row found free memory 21 MiB apart,
and took amounts 28 MiB apart before vLLM's check (vLLM 0.32.0, x86-64). Devices: a margin for fragments, not
measured."""

FAILURE_DAYS = 14
"""After that a failure binds no longer: drivers, neighbours and vLLM itself change."""

SHORT_BYTES = 256 * MIB
"""Taken for missing where a failure didn't say how much was, doubled for each one like it."""

MEASURE_AGAIN = 10
"""Starts in a row that may do without vLLM's own measurement."""

RESTLESS_BYTES = GIB
"""At most kept free for memory that moved between the plan and vLLM's check of an attempt just before: what a
neighbour took in one go isn't taken again. Our choice."""

TAKES_LESS = ("kv_alloc", "sampler_warmup", "cudagraph_capture", "runtime", "lora_load", "wake_up")
"""Phases whose failure is cured by asking for less of the device: they take what is beside."""

TAKES_MORE = ("no_kv_memory", "max_len_too_long")
"""Phases whose failure says that what isn't KV cache took more than was thought."""

Ending = Callable[[Record], str]


def lessons_from(
    records: Iterable[Record],
    *,
    same_device: Iterable[Record] = (),
    same_model: Iterable[Record] = (),
    pinned: Mapping[str, FieldValue] | None = None,
    ending: Ending | None = None,
    now: datetime.datetime | None = None,
    attempts: Iterable[Record] = (),
) -> Lessons:
    """What the records of one key teach, and those of other keys where this one has none yet.

    Args:
        records: of the key, newest first; read only as far as needed.
        same_device: of other keys on devices like these, newest first.
        same_model: of other keys with this model, sharded like this.
        pinned: fields whose values the user pinned for this key.
        ending: how a start ended (``experience.ending``); None: as it is written.
        now: the time, for the age of failures.
        attempts: those of ``records`` that this very command made, and that failed.
    """
    own = list(islice(records, READ))
    judge = ending or (lambda record: str(record["outcome"]["state"]))
    failures = [each for each in own if _is_fresh(each, now)]
    least = _least_headroom(failures, judge)
    survivors = [each for each in own if _survived(each, judge)]
    served = [each for each in own if observed.run_settings(each) is not None and each["engines"]]
    return Lessons(
        startup_overhead=_overhead(own) or _as_prior(_overhead(same_device)),
        headroom=_headroom(survivors),
        least_headroom=least,
        proven_asked=_proven(survivors, least),
        terms=_terms(own, failures) or {name: _prior(figure) for name, figure in _terms(same_model, ()).items()},
        settings=observed.run_settings(served[0]) if served else None,
        skip_profiling=_skip_profiling(own),
        pinned=dict(pinned or {}),
        elsewhere=_elsewhere(own),
        killed_compiling=_killed_compiling(own, failures),
        estimated_context=_estimated_context(own, failures),
        restless_bytes=_restless(attempts),
    )


def _overhead(records: Iterable[Record]) -> Measured | None:
    return _largest(records, lambda record: observed.startup_overhead(record) if observed.is_quiet(record) else None)


def _headroom(survivors: Sequence[Record]) -> Measured | None:
    """What those that survived load needed beside what was asked, and the floor."""
    found = _largest(survivors, observed.needed_beside)
    if found is None:
        return None
    record = next(each for each in survivors if each["run_id"] == found.record_id)
    return replace(found, bytes=found.bytes + _floor(record), settings=_fewest(survivors))


def _elsewhere(records: Iterable[Record]) -> Elsewhere | None:
    """Of the newest ``CONSIDERED`` starts with workers on other nodes: the device with the least share for a rank."""
    known = islice((seen for record in records if (seen := observed.elsewhere(record))), CONSIDERED)
    devices = (device for seen in known for device in seen)
    return min(devices, key=lambda each: each.free_bytes / each.ranks / each.total_bytes, default=None)


def _fewest(survivors: Sequence[Record]) -> RunSettings | None:
    """Settings of the one among those considered that had the fewest sequences: for no more is it proven."""
    known = [each for each in map(observed.run_settings, survivors[:CONSIDERED]) if each is not None]
    return min(known, key=lambda each: each.max_num_seqs, default=None)


def _floor(record: Record) -> int:
    def of(device: Mapping[str, object]) -> int:
        total = device.get("total_bytes")
        size = total if isinstance(total, int) else 0
        if device.get("kind") == "cpu":
            return max(FLOOR_HOST_BYTES, round(size * FLOOR_HOST_FRACTION))
        return max(FLOOR_DEVICE_BYTES, round(size * FLOOR_DEVICE_FRACTION))

    return max(map(of, record["identity"].get("devices", [])), default=FLOOR_DEVICE_BYTES)


def _least_headroom(records: Sequence[Record], judge: Ending) -> Measured | None:
    """The most that a start which ran out should have kept free: what it kept, what was missing, and the floor."""
    unsaid = SHORT_BYTES
    found: list[Measured] = []
    for record in reversed(records):
        kept, failure = observed.kept(record), observed.failure_of(record)
        later = judge(record) == "out_of_memory"
        if kept is None or not (later or failure.get("phase") in TAKES_LESS) or not observed.is_about_device(record):
            continue
        numbers = failure.get("numbers") or {}
        tried, free = numbers.get("tried_bytes"), numbers.get("free_bytes")
        if isinstance(numbers.get("consumed_bytes"), int):
            continue  # vLLM's share was too small for the model
        if isinstance(tried, int) and isinstance(free, int) and tried > free:
            short = tried - free
        else:
            short, unsaid = unsaid, 2 * unsaid
        found.append(Measured(max(0, kept) + short + _floor(record), str(record["run_id"])))
    return max(found, key=lambda each: each.bytes, default=None)


def _proven(survivors: Sequence[Record], least: Measured | None) -> Measured | None:
    """The most that was asked by a start which survived load, and kept no less than one that ran out."""
    found = []
    for record in survivors:
        taken, kept = max(observed.asked(record).values(), default=None), observed.kept(record)
        if taken is not None and kept is not None and (least is None or kept >= least.bytes):
            found.append(Measured(taken, str(record["run_id"])))
    return max(found, key=lambda each: each.bytes, default=None)


def _terms(records: Iterable[Record], failures: Iterable[Record]) -> dict[str, Measured]:
    """Of the newest start that measured; what a newer failure showed to be consumed replaces its sum."""
    found: dict[str, Measured] = {}
    for failure in failures:
        consumed = _consumed_by_failure(failure)
        if consumed is not None:
            found["consumed"] = consumed
            break
    for record in records:
        if found and record["run_id"] < found["consumed"].record_id:
            return found
        if figures := observed.terms(record) if observed.is_quiet(record) else {}:
            run, settings = str(record["run_id"]), observed.run_settings(record)
            return {name: Measured(value, run, settings=settings) for name, value in figures.items()}
    return found


def _consumed_by_failure(record: Record) -> Measured | None:
    failure = observed.failure_of(record)
    consumed = (failure.get("numbers") or {}).get("consumed_bytes")
    if not isinstance(consumed, int) or not observed.is_about_device(record):
        return None
    return Measured(consumed, str(record["run_id"]))


def _skip_profiling(records: Sequence[Record]) -> Measured | None:
    """``consumed`` as measured by the starts that came up, unless the newest start did without and failed."""
    measured: list[Measured] = []
    repeated = 0
    for record in records:
        if record["outcome"]["state"] == "failed":
            if not measured:
                return None  # what is known didn't do: vLLM measures anew
            continue
        if observed.skipped_profiling(record):
            repeated += not measured
        elif (consumed := observed.terms(record).get("consumed")) and observed.is_quiet(record):
            measured.append(Measured(consumed, str(record["run_id"]), settings=observed.run_settings(record)))
    if not measured or repeated >= MEASURE_AGAIN:
        return None
    alike = [each for each in measured[:CONSIDERED] if each.settings == measured[0].settings]
    return max(alike, key=lambda each: each.bytes)


def _killed_compiling(records: Sequence[Record], failures: Sequence[Record]) -> str | None:
    """The newest start that was killed before it had a KV cache, unless one came up compiled since."""
    for record in records:
        settings = observed.run_settings(record)
        if record["engines"] and settings is not None and not settings.enforce_eager:
            return None
        failure = observed.failure_of(record)
        killed = failure.get("type") == KILLED and failure.get("phase") == "profile_run"
        if killed and not observed.was_eager(record) and record in failures:
            return str(record["run_id"])
    return None


def _estimated_context(records: Sequence[Record], failures: Sequence[Record]) -> tuple[int, str] | None:
    """Of the newest start whose context was too long, unless a longer one came up since."""
    longest = 0
    for record in records:
        settings = observed.run_settings(record)
        longest = max(longest, 0 if settings is None else settings.max_model_len)
        tokens = (observed.failure_of(record).get("numbers") or {}).get("estimated_max_model_len")
        if record in failures and isinstance(tokens, int) and tokens > 0:
            return None if longest > tokens else (tokens, str(record["run_id"]))
    return None


def _restless(attempts: Iterable[Record]) -> int:
    """What was missing at vLLM's check although it had been free when the attempt was planned: it may move again."""
    missing = [0]
    for record in attempts:
        failure = observed.failure_of(record)
        numbers = failure.get("numbers") or {}
        requested, free = numbers.get("requested_bytes"), numbers.get("free_bytes")
        if failure.get("phase") == "startup_check" and isinstance(requested, int) and isinstance(free, int):
            missing.append(requested - free)
    return min(RESTLESS_BYTES, max(missing))


def _survived(record: Record, judge: Ending) -> bool:
    """Whether it bore load, and nothing suggests that memory ended it."""
    return observed.bore_load(record) and judge(record) in ("serving", "clean", "ended")


def _is_fresh(record: Record, now: datetime.datetime | None) -> bool:
    try:
        started = datetime.datetime.fromisoformat(str(record["started_at"]))
    except ValueError:
        return True
    if started.tzinfo is None:
        started = started.replace(tzinfo=datetime.timezone.utc)
    return (now or datetime.datetime.now(datetime.timezone.utc)) - started < datetime.timedelta(days=FAILURE_DAYS)


def _largest(records: Iterable[Record], figure: Callable[[Record], int | None]) -> Measured | None:
    """The largest of the newest ``CONSIDERED`` starts that have the figure."""
    measured = ((value, str(record["run_id"])) for record in records if (value := figure(record)) is not None)
    newest = list(islice(measured, CONSIDERED))
    return Measured(*max(newest, key=lambda pair: pair[0])) if newest else None


def _as_prior(figure: Measured | None) -> Measured | None:
    return None if figure is None else _prior(figure)


def _prior(figure: Measured) -> Measured:
    return replace(figure, source="prior")
