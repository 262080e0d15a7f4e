"""What a record says of a start before it happens."""

from __future__ import annotations

from typing import Any

from tests.builders import host, request
from vllm_autofit.facts.model import ModelIdentity
from vllm_autofit.hooks.account import sections
from vllm_autofit.hooks.start_facts import StartFacts
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.settings import read_settings
from vllm_autofit.values import Lessons

NODE = host(free_gib=30, uuid="GPU-1")
RELATED = {"device": "d" * 16}


def told(**variables: str) -> dict[str, Any]:
    settings = read_settings(variables)
    asked = request({"max_num_seqs": 64}, knobs={"tensor_parallel_size": 2}, knobs_changed=frozenset())
    model = ModelIdentity("some/model", "main", "hub:0123", "c0ffee")
    facts = StartFacts(None, settings, asked, [NODE], model, "0.32.0", "LLM_CLASS")
    return sections(facts, RELATED, make_plan(asked, [NODE], Lessons(), settings.rules))


def test_who_starts() -> None:
    identity = told()["identity"]
    assert (identity["vllm"], identity["model"], identity["launch"]) == ("0.32.0", "some/model", "LLM_CLASS")
    assert (identity["tensor_parallel_size"], identity["groups"]) == (2, RELATED)
    assert "uuid" not in identity["devices"][0]
    assert identity["devices"][0]["free_bytes"] == NODE.free_bytes


def test_each_setting_with_who_chose_it() -> None:
    settings = told()["settings"]
    assert settings["max_num_seqs"] == {"value": 64, "chosen_by": "user"}
    assert settings["tensor_parallel_size"] == {"value": 2, "chosen_by": "vllm"}
    assert settings["gpu_memory_utilization"]["chosen_by"] not in ("user", "vllm")


def test_who_only_observes_leaves_the_choice_to_vllm() -> None:
    observed = told(VLLM_AUTOFIT="observe")
    assert observed["settings"]["gpu_memory_utilization"] == {"value": 0.92, "chosen_by": "vllm"}
    assert observed["plan"]["mode"] == "observe"


def test_the_plan_with_its_reasons() -> None:
    plan = told()["plan"]
    assert {decision["field"] for decision in plan["decisions"]} >= {"gpu_memory_utilization", "max_num_seqs"}
    assert plan["budget"]["free_bytes"] == NODE.free_bytes
    assert plan["own_bytes"] > 0
