"""A plan as JSON: what its schema says, and sums that hold."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.answers import UNHEARD_OF, answered, model_folder
from tests.builders import GIB
from vllm_autofit import render
from vllm_autofit.render.document import plan_document

SCHEMA = json.loads((Path(render.__file__).parent / "plan.schema.json").read_text())


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shapes of an 8-billion-parameter model."""
    return model_folder(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that isn't understood."""
    return model_folder(tmp_path_factory.mktemp("models") / "odd", UNHEARD_OF)


def checked(document: dict[str, Any]) -> dict[str, Any]:
    """The document as a reader gets it, and as the schema wants it."""
    read: dict[str, Any] = json.loads(json.dumps(document))
    jsonschema: Any = importlib.import_module("jsonschema")
    jsonschema.Draft202012Validator(SCHEMA).validate(read)
    return read


def test_the_schema_is_one() -> None:
    jsonschema: Any = importlib.import_module("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_schema_refuses_what_it_does_not_know(model: str) -> None:
    jsonschema: Any = importlib.import_module("jsonschema")
    changes: list[dict[str, Any]] = [{"fits": "yes"}, {"more": 1}, {"schema": 2}, {"settings": {}}]
    for change in changes:
        with pytest.raises(jsonschema.ValidationError):
            checked({**plan_document(answered(model)), **change})


def test_a_plan_that_fits(model: str) -> None:
    document = checked(plan_document(answered(model)))
    assert document["fits"] is True
    assert document["model"]["architecture"] == "LlamaForCausalLM"
    assert document["model"]["context_tokens"] == 131072
    assert document["kv"]["bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    assert document["shortfall_bytes"] == 0
    assert document["device"] == {**document["device"], "name": "NVIDIA H100 80GB HBM3", "count": 1}


@pytest.mark.parametrize("gpu", ["RTX 3060", "H100"])
def test_every_kind_of_plan_is_as_the_schema_says(gpu: str, model: str, odd: str) -> None:
    for name in (model, odd, None):
        checked(plan_document(answered(name, gpu=gpu)))


def test_settings_are_the_decisions(model: str) -> None:
    document = plan_document(answered(model, options={"max_num_seqs": 4}))
    assert document["settings"] == {each["field"]: each["value"] for each in document["decisions"]}
    assert document["settings"]["max_num_seqs"] == 4


def test_what_is_not_weighed_is_null_and_the_rest_is_what_vllm_asks_for(odd: str) -> None:
    answer = answered(odd)
    assert answer.plan.budget is not None
    budget = plan_document(answer)["budget"]
    assert [name for name, size in budget.items() if size is None] == [
        "weights",
        "activations",
        "cuda_graphs",
        "kv_cache",
    ]
    known = sum(size for name, size in budget.items() if size is not None and name != "total")
    assert budget["total"] - known == answer.plan.budget.asked_bytes


@given(
    total_gib=st.floats(2, 300),
    free=st.floats(0, 1),
    ranks=st.sampled_from([1, 2, 4, 8]),
    share=st.none() | st.floats(0.05, 1),
    context=st.none() | st.sampled_from([-1, 512, 8192, 131072]),
    more=st.sampled_from([{}, {"enforce_eager": True}, {"kv_cache_memory_bytes": GIB}, {"cpu_offload_gb": 4.0}]),
    version=st.sampled_from(["0.11", "0.19", "0.20", "0.32"]),
    policy=st.sampled_from(["balanced", "throughput", "context", "safe"]),
)
def test_the_terms_add_up_to_the_total_where_it_fits(
    model: str,
    total_gib: float,
    free: float,
    ranks: int,
    share: float | None,
    context: int | None,
    more: dict[str, object],
    version: str,
    policy: str,
) -> None:
    options = {"tensor_parallel_size": ranks, "gpu_memory_utilization": share, "max_model_len": context, **more}
    total = int(total_gib * GIB)
    answer = answered(
        model,
        options={name: value for name, value in options.items() if value is not None},
        gpu=None,
        gpu_memory_bytes=total,
        gpu_free_bytes=int(free * total),
        vllm_version=version,
        policy=policy,
    )
    document = checked(plan_document(answer))
    budget = document["budget"]
    others = sum(size for name, size in budget.items() if name != "total")
    if document["fits"]:
        assert others == budget["total"]
    else:
        assert document["shortfall_bytes"] > 0 or document["warnings"]
