"""Which starts share a key, and which don't."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import pytest

from tests.builders import cuda, host, request, start_python
from vllm_autofit.experience.key import KEY_LENGTH, start_key
from vllm_autofit.facts.model import ModelIdentity
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
    "another knob": replace(ORDINARY, request=request(knobs={"block_size": 32})),
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
    one, two = (replace(ORDINARY, request=request(knobs={"block_size": size})) for size in (16, 32))
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
    one = replace(ORDINARY, request=request(knobs={"block_size": 16, "dtype": "auto"}))
    two = replace(ORDINARY, request=request(knobs={"dtype": "auto", "block_size": 16}))
    assert one.key == two.key


def test_every_process_makes_the_same_key() -> None:
    script = "from tests.experience.test_key import ORDINARY; print(ORDINARY.key)"
    processes = [start_python(script, PYTHONHASHSEED=seed) for seed in ("1", "2")]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [ORDINARY.key] * 2
