"""The facts of a start: what is read once, and what is told from it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.builders import VLLM_DEFAULTS, host, request
from vllm_autofit.errors import DeviceError
from vllm_autofit.facts.model import ModelIdentity
from vllm_autofit.hooks import guard, platform
from vllm_autofit.hooks.start_facts import StartFacts, read_start
from vllm_autofit.planning.defaults import NEWEST
from vllm_autofit.settings import read_settings

ARGUMENTS = SimpleNamespace(model="some/model", tokenizer=None, **VLLM_DEFAULTS)


def facts(
    launch: str = "OPENAI_API_SERVER", vllm: str = "0.32.0", name: str = "some/model", **variables: str
) -> StartFacts:
    where = "hub" if name == "some/model" else "folder"
    identity = ModelIdentity(name, None, f"{where}:0123456789abcdef", None)
    return StartFacts(ARGUMENTS, read_settings(variables), request(), [host()], identity, vllm, launch)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "device_type", lambda: "cpu")
    monkeypatch.setattr(platform, "visible_devices", lambda: None)
    monkeypatch.setattr(platform, "read_devices", lambda engine_args: [host(free_gib=30)])
    monkeypatch.setattr(guard.logger, "propagate", True)


def test_what_is_read() -> None:
    found = read_start(ARGUMENTS, frozenset({"max_num_seqs"}), "LLM_CLASS", headless=False)
    assert found is not None
    assert (found.devices, found.model.name, found.launch) == ([host(free_gib=30)], "some/model", "LLM_CLASS")
    assert found.request.set_by_user == {"max_num_seqs"}


def test_without_devices_there_is_nothing_to_say_but_that(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(engine_args: Any) -> None:
        raise DeviceError("device 0", "it is gone", "Look for it")

    monkeypatch.setattr(platform, "read_devices", fail)
    assert read_start(ARGUMENTS, frozenset(), "LLM_CLASS", headless=False) is None
    (said,) = caplog.messages
    assert said.endswith("nothing is filled in.")


def test_a_setting_that_cant_be_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT_RETRIES", "many")
    assert read_start(ARGUMENTS, frozenset(), "LLM_CLASS", headless=False) is not None
    assert "VLLM_AUTOFIT_RETRIES" in caplog.text


def test_a_vllm_that_does_not_say_its_version_is_taken_for_the_newest() -> None:
    assert facts(vllm="0.20.1+cpu").version == (0, 20)
    assert facts(vllm="unknown").version == NEWEST


@pytest.mark.parametrize(
    ("launch", "usage"), [("OPENAI_API_SERVER", "server"), ("LLM_CLASS", "llm"), ("UNKNOWN_CONTEXT", "engine")]
)
def test_the_usage_is_by_how_vllm_was_launched(launch: str, usage: str) -> None:
    assert facts(launch).usage == usage


def test_only_llm_runs_its_engine_in_its_own_process_when_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts("LLM_CLASS").separate_processes
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    assert not facts("LLM_CLASS").separate_processes
    assert facts("OPENAI_API_SERVER").separate_processes


def test_paths_of_folders_stay_here_where_the_user_wants_it() -> None:
    hidden = {"VLLM_AUTOFIT_HASH_PATHS": "1"}
    assert facts(name="/models/mine").model_name == "/models/mine"
    assert facts(name="/models/mine", **hidden).model_name == "folder:0123456789abcdef"
    assert facts(**hidden).model_name == "some/model"
