"""Which starts share a key, and which don't."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import VLLM_DEFAULTS, cuda, host, request, start_python
from tests.conftest import Forked
from vllm_autofit.experience.key import KEY_LENGTH, groups, start_key
from vllm_autofit.facts import knobs
from vllm_autofit.facts.model import ModelIdentity
from vllm_autofit.facts.request import read_request
from vllm_autofit.values import DeviceFacts, Request

MODEL = ModelIdentity("some/model", None, "commit:some/model@abc")


@dataclass(frozen=True)
class Start:
    """An ordinary start, to vary one thing of."""

    model: ModelIdentity = MODEL
    request: Request = field(default_factory=request)
    devices: tuple[DeviceFacts, ...] = (cuda(),)
    vllm: str = "0.32.0"
    launch: str = "api_server"

    @property
    def key(self) -> str:
        return start_key(self.model, self.request, self.devices, self.vllm, self.launch)

    @property
    def groups(self) -> dict[str, str]:
        return groups(self.model, self.request, self.devices)


def asking(**knobs: Any) -> Request:
    """A request in which the user set these knobs."""
    return request(knobs=knobs, knobs_changed=frozenset(knobs))


ORDINARY = Start()
ON_A_HOST = Start(devices=(host(),))


def test_a_key_is_short_and_hexadecimal() -> None:
    assert re.fullmatch(rf"[0-9a-f]{{{KEY_LENGTH}}}", ORDINARY.key)


DIFFERENT = {
    "another model": replace(ORDINARY, model=ModelIdentity("some/model", None, "commit:some/model@def")),
    "another vLLM": replace(ORDINARY, vllm="0.33.0"),
    "a script instead of a server": replace(ORDINARY, launch="llm_class"),
    "a field that the user set": replace(ORDINARY, request=request({"max_model_len": 4096})),
    "a field that the user set to the default": replace(ORDINARY, request=request({"enforce_eager": False})),
    "a field that the user set to None": replace(ORDINARY, request=request({"max_num_seqs": None})),
    "another knob": replace(ORDINARY, request=asking(block_size=32)),
    "more ranks": replace(ORDINARY, request=request(local_ranks=2)),
    "a device of another kind": replace(ORDINARY, devices=(cuda(name="NVIDIA A100"),)),
    "a larger device": replace(ORDINARY, devices=(cuda(96),)),
    "a shared device": replace(ORDINARY, devices=(cuda(ranks=2),)),
    "two devices": replace(ORDINARY, devices=(cuda(), cuda(index=1))),
    "no device": replace(ORDINARY, devices=()),
    "the host": ON_A_HOST,
}


@pytest.mark.parametrize("other", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_what_memory_depends_on_makes_another_key(other: Start) -> None:
    assert other.key != ORDINARY.key


def test_no_two_of_these_share_a_key() -> None:
    assert len({other.key for other in DIFFERENT.values()}) == len(DIFFERENT)


def test_the_values_that_the_user_set_count() -> None:
    short, long = (replace(ORDINARY, request=request({"max_model_len": tokens})) for tokens in (4096, 8192))
    assert short.key != long.key


SAME = {
    "less free memory": replace(ORDINARY, devices=(cuda(free_gib=3),)),
    "another number for the device": replace(ORDINARY, devices=(cuda(index=5),)),
    "a moved model": replace(ORDINARY, model=ModelIdentity("/elsewhere/model", None, "commit:some/model@abc")),
    "another name for the revision": replace(ORDINARY, model=replace(MODEL, revision="main")),
}


@pytest.mark.parametrize("other", SAME.values(), ids=SAME.keys())
def test_what_memory_does_not_depend_on_keeps_the_key(other: Start) -> None:
    assert other.key == ORDINARY.key


def test_the_values_of_knobs_count() -> None:
    one, two = (replace(ORDINARY, request=asking(block_size=size)) for size in (16, 32))
    assert one.key != two.key


def test_the_kind_of_a_device_counts_beside_its_name() -> None:
    assert replace(ON_A_HOST, devices=(replace(host(), kind="cuda"),)).key != ON_A_HOST.key


def test_fields_left_open_share_a_key_whatever_they_were_filled_with() -> None:
    filled = replace(
        ORDINARY.request, values={**ORDINARY.request.values, "gpu_memory_utilization": 0.97, "max_model_len": -1}
    )
    assert replace(ORDINARY, request=filled).key == ORDINARY.key


def test_the_size_of_a_host_does_not_count_because_it_moves_while_it_runs() -> None:
    assert replace(ON_A_HOST, devices=(host(64),)).key == ON_A_HOST.key


def test_the_order_of_knobs_does_not_count() -> None:
    one = replace(ORDINARY, request=asking(block_size=16, dtype="float16"))
    two = replace(ORDINARY, request=asking(dtype="float16", block_size=16))
    assert one.key == two.key


def test_a_knob_at_its_default_is_one_that_was_left_out() -> None:
    assert replace(ORDINARY, request=request(knobs={"block_size": 16})).key == ORDINARY.key


def test_every_process_makes_the_same_key() -> None:
    script = "from tests.experience.test_key import ORDINARY; print(ORDINARY.key)"
    processes = [start_python(script, PYTHONHASHSEED=seed) for seed in ("1", "2")]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [ORDINARY.key] * 2


# Every setting


COUNTED = [name for names in knobs.MEMORY.values() for name in names.split()]
PASSED_OVER = [name for names in knobs.NO_MEMORY.values() for name in names.split()]
SIZES = {name for name in COUNTED if name.endswith(("parallel_size", "size_local")) or name == "nnodes"}
AnyEngineArgs = make_dataclass(
    "AnyEngineArgs",
    [
        ("model", str, "some/model"),
        *((name, Any, default) for name, default in VLLM_DEFAULTS.items()),
        *((name, Any, None) for name in (*COUNTED, *PASSED_OVER, "of_tomorrow")),
    ],
)
"""Every field that any known vLLM has, and one that none has."""

texts = st.text(st.characters(categories=["L", "N"]), max_size=4)
sizes = st.integers(2, 64)
values = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


def key_of(engine_args: Any) -> str:
    return replace(ORDINARY, request=read_request(engine_args, [], {})).key


@given(st.data(), st.sampled_from([*COUNTED, "of_tomorrow"]))
def test_every_knob_changes_the_key(data: st.DataObject, name: str) -> None:
    one, two = (data.draw(sizes if name in SIZES else values) for _ in range(2))
    keys = [key_of(AnyEngineArgs(**{name: value})) for value in (one, two)]
    assert key_of(AnyEngineArgs()) not in keys
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True) or name in knobs.ONLY_WHETHER_SET
    assert (keys[0] == keys[1]) is same


@given(st.dictionaries(st.sampled_from(PASSED_OVER), values), st.dictionaries(st.sampled_from(COUNTED), sizes))
def test_no_other_setting_does(passed_over: dict[str, Any], counted: dict[str, Any]) -> None:
    assert key_of(AnyEngineArgs(**passed_over, **counted)) == key_of(AnyEngineArgs(**counted))


@given(st.sampled_from([name for name in COUNTED if name not in SIZES]), st.dictionaries(texts, values))
def test_the_order_in_which_a_setting_is_written_does_not_count(name: str, value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert key_of(AnyEngineArgs(**{name: value})) == key_of(AnyEngineArgs(**{name: turned}))


def with_value(name: str, value: object) -> Any:
    """In a fork: vLLM's own ``EngineArgs`` with one field changed after it was made, so that any value will do."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    engine_args = AsyncEngineArgs(model="some/model")
    setattr(engine_args, name, value)
    return engine_args


@pytest.mark.vllm
def test_of_vllms_own_fields_those_change_the_key_that_memory_depends_on(forked: Forked) -> None:
    def wrong() -> list[str]:
        from vllm.engine.arg_utils import AsyncEngineArgs

        ordinary = key_of(AsyncEngineArgs(model="some/model"))
        names = [field.name for field in fields(AsyncEngineArgs)]
        assert len(names) > 200
        changed = {name for name in names if key_of(with_value(name, 63 if name in SIZES else "other")) != ordinary}
        return sorted(changed ^ set(names).intersection(COUNTED))

    assert forked(wrong) == []


@pytest.mark.vllm
def test_vllms_defaults_written_out_make_the_key_of_those_left_out(forked: Forked) -> None:
    def wrong() -> list[str]:
        from vllm.engine.arg_utils import AsyncEngineArgs

        ordinary = AsyncEngineArgs(model="some/model")
        another = AsyncEngineArgs(model="some/model")
        names = [field.name for field in fields(ordinary)]
        written = {name: getattr(another, name) for name in names}
        return [
            name
            for name, value in written.items()
            if key_of(AsyncEngineArgs(**{"model": "some/model", name: value})) != key_of(ordinary)
        ]

    assert forked(wrong) == []


@pytest.mark.vllm
def test_what_vllm_draws_and_writes_itself_does_not_count(forked: Forked, tiny_model: Path) -> None:
    """``create_engine_config`` changes the ``EngineArgs``; the key of the next start must be that of the first."""

    def keys() -> set[str]:
        from vllm.config import KVTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs

        def start() -> Any:
            connector = KVTransferConfig(kv_connector="ExampleConnector", kv_role="kv_both")
            return AsyncEngineArgs(
                model=str(tiny_model),
                kv_transfer_config=connector,
                max_model_len=512,
                spec_method="ngram",
                spec_tokens=3,
            )

        first = start()
        drawn = first.kv_transfer_config.engine_id
        before = key_of(first)
        first.create_engine_config()
        assert first.max_num_batched_tokens is not None
        second = start()
        assert second.kv_transfer_config.engine_id not in (None, drawn)
        return {before, key_of(second)}

    assert len(forked(keys)) == 1


# Groups


GROUPED = {
    "another vLLM": (replace(ORDINARY, vllm="0.33.0"), "model device"),
    "a script instead of a server": (replace(ORDINARY, launch="llm_class"), "model device"),
    "another batch": (replace(ORDINARY, request=asking(max_num_batched_tokens=4096)), "model device"),
    "a field that the user set": (replace(ORDINARY, request=request({"max_model_len": 4096})), "model device"),
    "another size of the same device": (replace(ORDINARY, devices=(cuda(96),)), "model device"),
    "a device of another kind": (replace(ORDINARY, devices=(cuda(name="NVIDIA A100"),)), "model"),
    "the host": (ON_A_HOST, "model"),
    "a shared device": (replace(ORDINARY, devices=(cuda(ranks=2),)), "model"),
    "more ranks of the same shards": (replace(ORDINARY, request=request(local_ranks=2)), "model"),
    "another model": (replace(ORDINARY, model=ModelIdentity("some/model", None, "commit:some/model@def")), "device"),
    "another dtype": (replace(ORDINARY, request=asking(dtype="float16")), "device"),
    "quantised on the way": (replace(ORDINARY, request=asking(quantization="fp8")), "device"),
    "adapters": (replace(ORDINARY, request=asking(enable_lora=True)), "device"),
    "a draft": (replace(ORDINARY, request=asking(speculative_config={"method": "ngram"})), "device"),
    "sharded": (replace(ORDINARY, request=asking(tensor_parallel_size=2)), ""),
    "engines side by side": (replace(ORDINARY, request=asking(data_parallel_size=2)), "model"),
}


@pytest.mark.parametrize(("other", "shared"), GROUPED.values(), ids=GROUPED.keys())
def test_related_starts_share_a_group(other: Start, shared: str) -> None:
    same = [name for name, group in ORDINARY.groups.items() if other.groups[name] == group]
    assert " ".join(same) == shared


def test_experts_are_sharded_over_engines() -> None:
    one, two = (replace(ORDINARY, request=asking(enable_expert_parallel=True, data_parallel_size=n)) for n in (2, 4))
    assert one.groups["model"] != two.groups["model"]


def test_the_order_and_the_numbers_of_devices_do_not_count_in_a_group() -> None:
    one = replace(ORDINARY, devices=(cuda(), cuda(name="NVIDIA A100", index=1)))
    two = replace(ORDINARY, devices=(cuda(name="NVIDIA A100", index=3), cuda(index=2)))
    assert one.groups == two.groups


def test_groups_have_names_of_their_own() -> None:
    assert ORDINARY.groups.keys() == {"model", "device"}
    assert all(re.fullmatch(f"{name}-[0-9a-f]{{16}}", group) for name, group in ORDINARY.groups.items())
