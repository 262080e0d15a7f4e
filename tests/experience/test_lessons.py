"""What records teach the next plan."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pytest

from tests.builders import GIB, measured, record
from vllm_autofit.experience.lessons import (
    CONSIDERED,
    FAILURE_DAYS,
    FLOOR_DEVICE_BYTES,
    MEASURE_AGAIN,
    READ,
    RESTLESS_BYTES,
    SHORT_BYTES,
    lessons_from,
)
from vllm_autofit.experience.observed import LOAD_REQUESTS
from vllm_autofit.experience.record import Record
from vllm_autofit.values import Elsewhere, Lessons, Measured, RunSettings

SETTINGS = RunSettings(8192, 256, 2048, "auto", False)
LOADED: dict[str, Any] = {"requests": LOAD_REQUESTS}
NOON = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.timezone.utc)


def failed(run_id: str, phase: str, overhead_bytes: int = GIB, asked_share: float = 0.8, **numbers: Any) -> Record:
    """A start that failed with ``overhead_bytes`` less free on its device than when it was planned."""
    return record(
        run_id,
        identity={"devices": [{"index": 0, "kind": "cuda", "free_bytes": 70 * GIB, "total_bytes": 80 * GIB}]},
        settings={"gpu_memory_utilization": {"value": asked_share}},
        plan={
            "budget": {
                "free_bytes": 70 * GIB,
                "startup_overhead_bytes": GIB,
                "total_bytes": 80 * GIB,
                "ranks": 1,
            }
        },
        outcome={
            "state": "failed",
            "failure": {
                "phase": phase,
                "numbers": {"device_index": 0, "free_bytes": 70 * GIB - overhead_bytes, **numbers},
            },
        },
    )


def test_without_records_there_are_no_lessons() -> None:
    assert lessons_from([]) == Lessons()


# What a start takes before vLLM's check


def overhead(*records: Record) -> int | None:
    taught = lessons_from(records).startup_overhead
    return None if taught is None else taught.bytes


def test_what_a_start_took_before_vllms_check_is_its_overhead() -> None:
    assert lessons_from([measured("run", GIB)]).startup_overhead == Measured(GIB, "run")


def test_memory_that_was_freed_meanwhile_is_no_negative_overhead() -> None:
    assert overhead(measured(overhead_bytes=-GIB)) == 0


def test_the_largest_of_the_newest_starts_counts() -> None:
    newest_first = [measured("c", 1 * GIB), measured("b", 3 * GIB), measured("a", 2 * GIB)]
    assert lessons_from(newest_first).startup_overhead == Measured(3 * GIB, "b")


def test_what_a_neighbour_took_long_ago_is_forgotten() -> None:
    assert overhead(*(measured(f"new {n}", GIB) for n in range(CONSIDERED)), measured("old", 20 * GIB)) == GIB


def test_no_more_records_are_read_than_count() -> None:
    def newest_first() -> Iterator[Record]:
        for number in range(READ):
            yield measured(str(number), GIB)
        pytest.fail("one record too many was read")

    assert lessons_from(newest_first()).startup_overhead is not None


def test_a_start_that_failed_vllms_check_teaches_its_overhead() -> None:
    assert overhead(failed("run", "startup_check", 2 * GIB)) == 2 * GIB


@pytest.mark.parametrize("phase", ["weight_load", "profile_run", "no_kv_memory", "cudagraph_capture", "runtime"])
def test_a_start_that_failed_later_teaches_no_overhead(phase: str) -> None:
    assert overhead(failed("run", phase, 30 * GIB)) is None


def test_a_start_whose_neighbour_moved_teaches_nothing_about_the_device() -> None:
    """Its own processes grew by 1 GiB, and 5 were gone."""
    start = measured("run", 5 * GIB, rank={"before": {"free_bytes": 65 * GIB, "own_bytes": 2 * GIB}})
    start["plan"]["own_bytes"] = GIB
    assert overhead(start) is None
    start["engines"][0]["ranks"][0]["before"]["free_bytes"] = 69 * GIB
    assert overhead(start) == GIB


def test_another_models_start_on_the_same_devices_is_a_prior_until_this_one_has_its_own() -> None:
    prior = lessons_from([], same_device=[measured("other", 2 * GIB)])
    assert prior.startup_overhead == Measured(2 * GIB, "other", "prior")
    own = lessons_from([measured("own", GIB)], same_device=[measured("other", 2 * GIB)])
    assert own.startup_overhead == Measured(GIB, "own")


# What has to stay free


def test_what_load_was_seen_to_need_and_a_floor_is_the_headroom() -> None:
    """69 GiB free at the check less 60 asked for: 9 kept, of which 2 were taken at most."""
    taught = lessons_from([measured("run", least_free_gib=7, **LOADED)]).headroom
    assert taught == Measured(2 * GIB + FLOOR_DEVICE_BYTES, "run", settings=SETTINGS)


def test_the_start_that_needed_most_counts() -> None:
    starts = [measured("b", least_free_gib=8, **LOADED), measured("a", least_free_gib=6, **LOADED)]
    taught = lessons_from(starts).headroom
    assert taught is not None
    assert (taught.bytes, taught.record_id) == (3 * GIB + FLOOR_DEVICE_BYTES, "a")


@pytest.mark.parametrize(
    "start",
    [
        measured(least_free_gib=7, requests=LOAD_REQUESTS - 1),
        measured(least_free_gib=7, how="out_of_memory", **LOADED),
        measured(least_free_gib=7, how="engine_died", **LOADED),
        measured(least_free_gib=7, how="killed", **LOADED),
    ],
    ids=["little load", "ran out", "died", "killed"],
)
def test_a_start_that_did_not_survive_load_promotes_nothing(start: Record) -> None:
    taught = lessons_from([start], ending=lambda each: (each["outcome"].get("ended") or {}).get("how", "serving"))
    assert (taught.headroom, taught.proven_asked) == (None, None)


def test_a_start_that_survived_load_proves_what_it_asked_for() -> None:
    starts = [measured("b", asked_gib=50, **LOADED), measured("a", asked_gib=61, how="clean", **LOADED)]
    assert lessons_from(starts).proven_asked == Measured(61 * GIB, "a")


# What failures teach


def test_a_start_that_ran_out_should_have_kept_what_was_missing_as_well() -> None:
    """70 GiB free less 1 for start-up and 64 asked for: 5 kept. 2 GiB were tried, half a GiB was there."""
    start = failed("run", "cudagraph_capture", tried_bytes=2 * GIB, free_bytes=GIB // 2)
    assert lessons_from([start]).least_headroom == Measured(5 * GIB + 3 * GIB // 2 + FLOOR_DEVICE_BYTES, "run")


def test_each_failure_that_names_no_amount_doubles_what_is_taken_for_missing() -> None:
    first = failed("a", "sampler_warmup")
    assert lessons_from([first]).least_headroom == Measured(5 * GIB + SHORT_BYTES + FLOOR_DEVICE_BYTES, "a")
    taught = lessons_from([failed("b", "sampler_warmup"), first]).least_headroom
    assert taught == Measured(5 * GIB + 2 * SHORT_BYTES + FLOOR_DEVICE_BYTES, "b")


def test_running_out_while_serving_demotes_what_asked_as_much_or_more() -> None:
    ran_out = measured("c", asked_gib=66, how="out_of_memory", failure={"phase": "runtime"}, **LOADED)
    bolder, milder = measured("b", asked_gib=67, how="clean", **LOADED), measured("a", asked_gib=60, **LOADED)
    judge = {"c": "out_of_memory", "b": "clean", "a": "serving"}
    taught = lessons_from([ran_out, bolder, milder], ending=lambda each: judge[each["run_id"]])
    assert taught.proven_asked == Measured(60 * GIB, "a")
    assert taught.least_headroom is not None
    assert taught.least_headroom.bytes == 3 * GIB + SHORT_BYTES + FLOOR_DEVICE_BYTES


@pytest.mark.parametrize("phase", ["startup_check", "weight_load", "no_kv_memory", "max_len_too_long", "other"])
def test_failures_that_less_of_the_device_would_not_cure_keep_nothing_free(phase: str) -> None:
    assert lessons_from([failed("run", phase)]).least_headroom is None


def test_a_failure_binds_no_longer_when_it_is_old() -> None:
    start = failed("run", "kv_alloc")
    assert lessons_from([start], now=NOON + datetime.timedelta(days=FAILURE_DAYS - 1)).least_headroom is not None
    assert lessons_from([start], now=NOON + datetime.timedelta(days=FAILURE_DAYS, hours=1)).least_headroom is None


def test_no_room_for_the_kv_cache_tells_what_the_rest_takes() -> None:
    start = failed("run", "no_kv_memory", consumed_bytes=18 * GIB)
    assert lessons_from([start]).terms == {"consumed": Measured(18 * GIB, "run")}


# Terms, and starting without measuring


def test_what_the_fullest_rank_measured_is_kept_with_its_settings() -> None:
    start = measured("run")
    start["engines"][0]["ranks"].append({**start["engines"][0]["ranks"][0], "weights_bytes": 16 * GIB})
    assert lessons_from([start]).terms == {
        "weights": Measured(16 * GIB, "run", settings=SETTINGS),
        "activations": Measured(4 * GIB, "run", settings=SETTINGS),
        "non_torch": Measured(GIB, "run", settings=SETTINGS),
        "consumed": Measured(20 * GIB, "run", settings=SETTINGS),
    }


def test_terms_of_another_key_are_a_prior() -> None:
    terms = lessons_from([], same_model=[measured("other")]).terms
    assert terms["weights"] == Measured(15 * GIB, "other", "prior", SETTINGS)


def test_one_start_that_measured_lets_the_next_do_without() -> None:
    assert lessons_from([measured("run")]).skip_profiling == Measured(20 * GIB, "run", settings=SETTINGS)


def test_a_start_that_did_without_repeats_what_was_measured() -> None:
    repeated = measured("b", rank={"profiling_skipped": True, "kv_cache_bytes": GIB})
    assert lessons_from([repeated, measured("a")]).skip_profiling == Measured(20 * GIB, "a", settings=SETTINGS)
    assert lessons_from([repeated]).skip_profiling is None


def test_it_is_measured_again_after_some_starts() -> None:
    repeated = [measured(f"b{number}", rank={"profiling_skipped": True}) for number in range(MEASURE_AGAIN)]
    assert lessons_from([*repeated[1:], measured("a")]).skip_profiling is not None
    assert lessons_from([*repeated, measured("a")]).skip_profiling is None


def test_after_a_failure_it_is_measured() -> None:
    assert lessons_from([failed("b", "kv_alloc"), measured("a")]).skip_profiling is None


def test_settings_of_the_newest_start_that_came_up_are_known() -> None:
    starts = [failed("c", "kv_alloc"), measured("b", engine={"max_num_seqs": 64}), measured("a")]
    assert lessons_from(starts).settings == RunSettings(8192, 64, 2048, "auto", False)


# Workers on other nodes


def spread(run_id: str = "run", *, elsewhere: dict[str, Any] | None = None, index: int = 0) -> Record:
    """A start of two ranks: one here, which lost 1 GiB before the check, and one on another node."""
    start = measured(run_id, GIB)
    far = {
        "rank": 1,
        "node": "another",
        "device_index": index,
        "before": {"device_index": index, "free_bytes": 30 * GIB, "total_bytes": 40 * GIB, "own_bytes": 9 * GIB},
        "after": {"free_bytes": 1 * GIB, "total_bytes": 40 * GIB},
        "requested_bytes": 25 * GIB,
        "kv_cache_bytes": 5 * GIB,
        "weights_bytes": 16 * GIB,
        **(elsewhere or {}),
    }
    start["engines"][0]["ranks"].append(far)
    return start


def test_a_device_of_another_node_is_known_as_its_workers_saw_it() -> None:
    assert lessons_from([spread()]).elsewhere == Elsewhere(30 * GIB, 40 * GIB, 1, "run")
    assert lessons_from([measured("run")]).elsewhere is None


def test_it_says_nothing_of_this_machines_device_of_the_same_number() -> None:
    alone, both = measured("run", GIB, requests=LOAD_REQUESTS), spread()
    both["engines"][0]["serving"] = alone["engines"][0]["serving"]
    here, there = lessons_from([alone]), lessons_from([both])
    assert there.startup_overhead == here.startup_overhead
    assert there.proven_asked == here.proven_asked
    assert there.headroom == here.headroom


def test_the_fullest_rank_counts_wherever_it_is() -> None:
    assert lessons_from([spread()]).terms["weights"].bytes == 16 * GIB


def test_of_the_devices_of_other_nodes_the_one_with_the_least_share_for_a_rank_counts() -> None:
    small = spread("b", elsewhere={"before": {"free_bytes": 20 * GIB, "total_bytes": 22 * GIB}})
    assert lessons_from([small, spread("a")]).elsewhere == Elsewhere(30 * GIB, 40 * GIB, 1, "a")
    shared = spread("c")
    shared["engines"][0]["ranks"].append({**shared["engines"][0]["ranks"][1], "rank": 2})
    assert lessons_from([shared, small]).elsewhere == Elsewhere(30 * GIB, 40 * GIB, 2, "c")


def test_what_another_node_had_free_long_ago_is_forgotten() -> None:
    tight = {"before": {"free_bytes": GIB, "total_bytes": 40 * GIB}}
    starts = [*(spread(f"new {number}") for number in range(CONSIDERED)), spread("old", elsewhere=tight)]
    assert lessons_from(starts).elsewhere == Elsewhere(30 * GIB, 40 * GIB, 1, "new 0")


def test_a_check_that_failed_on_another_node_says_what_was_free_there() -> None:
    start = failed("run", "startup_check", total_bytes=40 * GIB, elsewhere=True)
    start["outcome"]["failure"]["numbers"]["free_bytes"] = 10 * GIB
    assert lessons_from([start]) == Lessons(elsewhere=Elsewhere(10 * GIB, 40 * GIB, 1, "run"))


def test_what_is_pinned_comes_along() -> None:
    assert lessons_from([], pinned={"max_num_seqs": 8}).pinned == {"max_num_seqs": 8}


@pytest.mark.parametrize(
    "start",
    [
        record("run", state="starting"),
        record("run", engines=[{}]),
        record("run", engines=[{"ranks": [{"error": "RuntimeError: no figures"}], "serving": None}]),
        record("run", engines=[{"ranks": [{"device_index": 1, "before": None, "after": None}]}]),
        record("run", outcome={"state": "failed", "failure": {"phase": "startup_check"}}),
        record("run", outcome={"state": "failed", "failure": None}),
        record("run", outcome={"state": "ended", "ended": None}),
    ],
)
def test_a_record_without_figures_teaches_nothing(start: Record) -> None:
    assert lessons_from([start]) == Lessons()


# A kill while vLLM compiles


def killed_while(phase: str, run_id: str = "b", eager: bool = False, **more: Any) -> Record:
    outcome = {"state": "failed", "failure": {"phase": phase, "type": "killed", "numbers": {}}}
    return record(run_id, settings={"enforce_eager": {"value": eager}}, outcome=outcome, **more)


def came_up(run_id: str, eager: bool) -> Record:
    engine = {
        "max_model_len": 8192,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 2048,
        "kv_cache_dtype": "auto",
        "enforce_eager": eager,
    }
    return measured(run_id, engine=engine)


def test_a_start_that_was_killed_while_it_compiled_is_remembered_until_one_comes_up_compiled() -> None:
    assert lessons_from([killed_while("profile_run")]).killed_compiling == "b"
    assert lessons_from([came_up("c", eager=True), killed_while("profile_run")]).killed_compiling == "b"
    assert lessons_from([came_up("c", eager=False), killed_while("profile_run")]).killed_compiling is None


def test_no_other_kill_says_anything_about_compiling() -> None:
    assert lessons_from([killed_while("weight_load")]).killed_compiling is None
    assert lessons_from([killed_while("profile_run", eager=True)]).killed_compiling is None
    told = killed_while("profile_run")
    told["outcome"]["failure"]["type"] = "MemoryError"
    assert lessons_from([told]).killed_compiling is None


def test_a_kill_of_long_ago_is_forgotten() -> None:
    old = killed_while("profile_run", started_at=(NOON - datetime.timedelta(days=FAILURE_DAYS + 1)).isoformat())
    assert lessons_from([old], now=NOON).killed_compiling is None


# Memory that moves between plan and check


def test_what_came_to_be_missing_in_an_attempt_just_before_is_kept_free_up_to_a_bound() -> None:
    def restless(*missing: int) -> int:
        attempts = [failed("a", "startup_check", requested_bytes=69 * GIB + each) for each in missing]
        return lessons_from(attempts, attempts=attempts).restless_bytes

    assert restless() == 0
    assert restless(5, 7) == 7
    assert restless(20 * GIB) == RESTLESS_BYTES
    assert restless(-5) == 0


def test_an_earlier_command_and_another_failure_say_nothing_about_it() -> None:
    missing = failed("a", "startup_check", requested_bytes=70 * GIB)
    assert lessons_from([missing]).restless_bytes == 0
    other = failed("a", "kv_alloc", requested_bytes=70 * GIB)
    assert lessons_from([other], attempts=[other]).restless_bytes == 0


# A context that was too long


def test_what_vllm_said_would_fit_is_remembered_until_more_came_up() -> None:
    too_long = failed("b", "max_len_too_long", estimated_max_model_len=4096)
    assert lessons_from([too_long]).estimated_context == (4096, "b")
    as_long = failed("b", "max_len_too_long", estimated_max_model_len=8192)
    assert lessons_from([came_up("c", eager=True), as_long]).estimated_context == (8192, "b")
    assert lessons_from([came_up("c", eager=True), too_long]).estimated_context is None
    old = {**too_long, "started_at": (NOON - datetime.timedelta(days=FAILURE_DAYS + 1)).isoformat()}
    assert lessons_from([old], now=NOON).estimated_context is None
    assert lessons_from([failed("b", "max_len_too_long", estimated_max_model_len=0)]).estimated_context is None
