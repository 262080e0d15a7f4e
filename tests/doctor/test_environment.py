"""Which variables are found misspelt or fighting, and which are left in peace."""

from __future__ import annotations

import pytest

from vllm_autofit import VARIABLES
from vllm_autofit.doctor.environment import Surroundings, environment_verdicts
from vllm_autofit.doctor.verdict import Verdict

VLLM = frozenset({"VLLM_PLUGINS", "VLLM_LOGGING_LEVEL", "VLLM_PORT", "VLLM_HOST_IP", "VLLM_CPU_KVCACHE_SPACE"})
ON_CPU = Surroundings(known=VLLM, backend="cpu", hub_models=1)
SECRET = "hf_secret"


def verdicts(environ: dict[str, str], around: Surroundings = ON_CPU) -> list[Verdict]:
    return environment_verdicts(environ, [], around)


def only(environ: dict[str, str], around: Surroundings = ON_CPU) -> Verdict:
    (verdict,) = verdicts(environ, around)
    return verdict


KUBERNETES = ("VLLM_SERVICE_HOST", "VLLM_SERVICE_PORT", "VLLM_PORT_8000_TCP", "VLLM_PORT_8000_TCP_ADDR")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HF_TOKEN": SECRET, "PATH": "/bin"},
        {"VLLM_LOGGING_LEVEL": "DEBUG", "VLLM_AUTOFIT_POLICY": "safe"},
        {"VLLM_AUTOFIT": "0"},
        {"VLLM_ENABLE_STARTUP_PLAN": "0"},
        {"VLLM_CPU_KVCACHE_SPACE": ""},
        {"VLLM_PORT": "8000"},
        {"VLLM_OF_ANOTHER_PLUGIN": "1"},
        dict.fromkeys(KUBERNETES, "10.0.0.1"),
        {"HF_HUB_OFFLINE": "1"},
        {"CUDA_VISIBLE_DEVICES": "0,1"},
    ],
    ids=lambda environ: " ".join(environ),
)
def test_all_is_well(environ: dict[str, str]) -> None:
    assert only(environ).level == "ok"


@pytest.mark.parametrize(
    ("name", "meant", "level"),
    [
        ("VLLM_AUTOFIT_POLCY", "VLLM_AUTOFIT_POLICY", "problem"),
        ("VLLM_AUTOFIT_CACHE", "VLLM_AUTOFIT_CACHE_DIR", "problem"),
        ("VLLM_AUTO_FIT_HEADROOM", "VLLM_AUTOFIT_HEADROOM", "problem"),
        ("VLLM_LOGING_LEVEL", "VLLM_LOGGING_LEVEL", "note"),
    ],
)
def test_a_misspelt_name_is_told_with_the_nearest(name: str, meant: str, level: str) -> None:
    verdict = only({name: SECRET})
    assert (verdict.level, verdict.do) == (level, f"Did you mean {meant}?")
    assert name in verdict.says
    assert SECRET not in verdict.says


@pytest.mark.parametrize("name", [name for name in VARIABLES if name != "VLLM_AUTOFIT"])
def test_settings_that_are_switched_off_are_named(name: str) -> None:
    verdict = only({"VLLM_AUTOFIT": "off", name: "1"})
    assert verdict.level == "note"
    assert verdict.says == f"VLLM_AUTOFIT=off turns vllm-autofit off: launches don't see {name}"


def test_bad_values_of_ours_are_problems() -> None:
    found = environment_verdicts({}, ["VLLM_AUTOFIT_POLICY='x' is not one", "no home folder"], ON_CPU)
    assert [(each.level, each.says) for each in found] == [
        ("problem", "VLLM_AUTOFIT_POLICY='x' is not one"),
        ("note", "no home folder"),
    ]


@pytest.mark.parametrize(("backend", "effect"), [("cpu", "fixes"), (None, "fixes"), ("cuda", "does nothing")])
def test_a_fixed_kv_cache(backend: str | None, effect: str) -> None:
    verdict = only({"VLLM_CPU_KVCACHE_SPACE": "4"}, Surroundings(VLLM, backend))
    assert verdict.level == "note"
    assert verdict.says.startswith("VLLM_CPU_KVCACHE_SPACE=4 (GiB) " + effect)


def test_vllms_own_memory_of_starts() -> None:
    assert only({"VLLM_ENABLE_STARTUP_PLAN": "1"}).level == "note"


def test_the_old_engine() -> None:
    assert only({"VLLM_USE_V1": "0"}).level == "note"
    assert only({"VLLM_USE_V1": "0"}, Surroundings(VLLM | {"VLLM_USE_V1"})).level == "problem"
    assert only({"VLLM_USE_V1": "1"}).level == "ok"


def test_a_service_called_vllm() -> None:
    verdict = only({"VLLM_PORT": "tcp://10.0.0.1:8000"} | dict.fromkeys(KUBERNETES, "10.0.0.1"))
    assert verdict.level == "problem"
    assert "10.0.0.1" not in verdict.says


@pytest.mark.parametrize(("models", "level"), [(0, "note"), (3, "ok"), (None, "ok")])
def test_offline_without_models(models: int | None, level: str) -> None:
    assert only({"HF_HUB_OFFLINE": "TRUE"}, Surroundings(VLLM, "cpu", hub_models=models)).level == level
    assert only({"HF_HUB_OFFLINE": "0"}, Surroundings(VLLM, "cpu", hub_models=models)).level == "ok"


def test_numbers_of_devices_that_differ() -> None:
    verdict = only({"CUDA_VISIBLE_DEVICES": "1"}, Surroundings(VLLM, "cuda", visible=1, order_matters=True))
    assert verdict.level == "problem"
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in verdict.do


@pytest.mark.parametrize(("visible", "level"), [(3, "ok"), (1, "problem"), (0, "ok")])
def test_devices_that_are_named_and_not_shown(visible: int, level: str) -> None:
    """That none is shown is told by the devices themselves."""
    assert only({"CUDA_VISIBLE_DEVICES": "0,9,1"}, Surroundings(VLLM, "cuda", visible=visible)).level == level


def test_a_limit_of_mps_is_a_note() -> None:
    verdict = only({"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=10G"})
    assert (verdict.level, "0=10G" in verdict.says) == ("note", True)
