"""``vllm-autofit plan``: what it prints, where, with which exit status, and what it needs for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.answers import UNHEARD_OF, model_folder
from tests.builders import GIB
from vllm_autofit.cli.main import EXIT_BAD_INPUT, EXIT_DOES_NOT_FIT, EXIT_OK, main
from vllm_autofit.cli.plan import RENDERERS

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The shapes of an 8-billion-parameter model."""
    return model_folder(tmp_path / "model")


@pytest.fixture
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's host memory, whatever devices it has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")


def plan_json(capsys: Captured, *words: str, status: int = EXIT_OK) -> dict[str, Any]:
    assert main(["plan", *words, "--format", "json"]) == status
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


# A model on a device that is named


def test_a_table_says_that_it_fits_and_how_to_start_it(model: str, capsys: Captured) -> None:
    assert main(["plan", model, "--gpu", "h100"]) == EXIT_OK
    output = capsys.readouterr().out
    assert "FITS." in output
    assert f"vllm serve {model} --gpu-memory-utilization 0." in output


def test_what_does_not_fit_has_a_status_of_its_own_and_is_still_json(model: str, capsys: Captured) -> None:
    document = plan_json(capsys, model, "--gpu", "RTX 3060", status=EXIT_DOES_NOT_FIT)
    assert document["fits"] is False
    assert document["shortfall_bytes"] > 0
    assert document["remedies"]


def test_a_model_that_is_not_understood_is_planned_as_far_as_may_be(tmp_path: Path, capsys: Captured) -> None:
    document = plan_json(capsys, model_folder(tmp_path / "odd", UNHEARD_OF), "--gpu", "h100")
    assert document["fits"] is None
    assert document["budget"]["weights"] is None
    assert any("not known" in warning for warning in document["warnings"])
    assert document["settings"]["gpu_memory_utilization"] > 0.9


def test_what_the_user_set_stands(model: str, capsys: Captured) -> None:
    words = "--gpu-memory-utilization 0.5 --max-num-seqs 8 --max-model-len 8k --kv-cache-dtype auto --no-enforce-eager"
    document = plan_json(capsys, model, "--gpu", "h100", *words.split())
    assert document["settings"] == {
        "gpu_memory_utilization": 0.5,
        "max_model_len": 8000,
        "enforce_eager": False,
        "kv_cache_dtype": "auto",
        "max_num_seqs": 8,
    }
    assert {decision["source"] for decision in document["decisions"]} == {"user"}


def test_a_pasted_command_is_understood(model: str, capsys: Captured) -> None:
    words = f"vllm serve {model} -tp 2 --gpu-mem 0.8 --host 0.0.0.0 --port 80 --api-key k --gpu h100 --gpu-count 2"
    document = plan_json(capsys, *words.split())
    assert document["device"]["count"] == 2
    assert document["settings"]["gpu_memory_utilization"] == 0.8


def test_a_second_device_halves_the_weights(model: str, capsys: Captured) -> None:
    one = plan_json(capsys, model, "--gpu", "h100")
    two = plan_json(capsys, model, "--gpu", "h100", "-tp", "2")
    assert 0.45 < two["budget"]["weights"] / one["budget"]["weights"] < 0.55


@pytest.mark.parametrize(
    ("words", "total_gib", "free_gib"),
    [
        ("--gpu-memory 48", 48, 48),
        ("--gpu-memory 48GiB --gpu-free 40.5", 48, 40.5),
        ("--gpu h100 --gpu-memory=79", 79, 79),
    ],
)
def test_a_device_may_be_described(words: str, total_gib: float, free_gib: float, model: str, capsys: Captured) -> None:
    device = plan_json(capsys, model, *words.split())["device"]
    assert (device["total_bytes"], device["free_bytes"]) == (total_gib * GIB, free_gib * GIB)
    assert "given with --gpu-memory" in device["source"]


def test_idle_devices_are_said(model: str, capsys: Captured) -> None:
    document = plan_json(capsys, model, "--gpu", "h100", "--gpu-count", "4")
    assert document["device"]["count"] == 1
    assert any("--tensor-parallel-size 4" in warning for warning in document["warnings"])


def test_a_policy_may_be_named(model: str, capsys: Captured) -> None:
    balanced, safe = (plan_json(capsys, model, "--gpu", "h100", "--policy", each) for each in ("balanced", "safe"))
    assert safe["budget"]["headroom"] > balanced["budget"]["headroom"]


def test_a_share_may_be_named_and_counts_more_than_the_variable(
    model: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT_SHARE", "0.25")
    quarter = plan_json(capsys, model, "--gpu", "h100")
    half = plan_json(capsys, model, "--gpu", "h100", "--share", "0.5")
    gained = half["budget"]["kv_cache"] - quarter["budget"]["kv_cache"]
    assert gained == pytest.approx(quarter["budget"]["total"] / 4, rel=0.05)  # more sequences take more


def test_the_version_decides_the_defaults(model: str, capsys: Captured) -> None:
    old = plan_json(capsys, model, "--gpu", "h100", "--vllm-version", "0.11.0")
    assert old["vllm_version"] == "0.11.0"
    assert old["settings"]["max_model_len"] is None  # it can't fit a context by itself


@pytest.mark.parametrize("name", RENDERERS)
def test_every_format_is_printed_alone(name: str, model: str, capsys: Captured) -> None:
    assert main(["plan", model, "--gpu", "h100", "--format", name]) == EXIT_OK
    assert model in capsys.readouterr().out


def test_a_script_is_planned_with_the_larger_batches_of_llm(model: str, capsys: Captured) -> None:
    # Without a context to give up, what the larger batches take must be there or it doesn't fit.
    words = ["plan", model, "--max-model-len", "64k"]
    fits = {
        name: [main([*words, "--gpu-memory", f"{gib}", "--format", name]) == EXIT_OK for gib in range(20, 32)]
        for name in ("cli", "python")
    }
    assert sum(fits["python"]) < sum(fits["cli"])


def test_warnings_of_formats_that_can_not_hold_them_go_to_stderr(model: str, capsys: Captured) -> None:
    assert main(["plan", model, "--gpu", "RTX 3060", "--format", "cli"]) == EXIT_DOES_NOT_FIT
    output = capsys.readouterr()
    assert output.out.startswith("vllm serve ")
    assert "GiB short" in output.err
    assert "would help: " in output.err


# Bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--gpu a100", "means several devices"),
        ("--gpu h1000", "no device 'h1000' is known"),
        ("--gpu h100 --tensor-paralel-size 2", "Did you mean --tensor-parallel-size?"),
        ("--gpu h100 --max-model-len huge", "'huge' is not a number of tokens"),
        ("--gpu h100 -tp 4 --gpu-count 2", "ask for 4"),
        ("--gpu h100 --gpu-count 0", "0 is not within 1 to 4096"),
        ("--gpu h100 --gpu-free 100", "is not within"),
        ("--gpu-memory 0.9", "--gpu-memory-utilization"),
        ("--gpu h100 --vllm-version new", "'new' is not a version"),
        ("--gpu-memory big", "--gpu-memory: 'big' is not a size such as"),
        ("--gpu-memory nan", "--gpu-memory: 'nan' is not a size such as"),
        ("--gpu-memory 2000T", "at most 1024TiB"),
        ("--gpu", "--gpu: expected one argument"),
        ("--gpu h100 --gpu-count two", "--gpu-count: invalid int value: 'two'"),
        ("--gpu h100 --gpu-count 3000000", "3000000 is not within 1 to 4096"),
        ("--gpu h100 --format xml", "--format: invalid choice: 'xml'"),
        ("--gpu h100 --share most", "--share: 'most' is not a fraction of the device such as 0.5, or a size"),
        ("--gpu h100 --policy fast", "--policy: invalid choice: 'fast'"),
        ("--gpu h100 --bogus", "--bogus: vLLM 0.32 has no such option. `vllm serve"),
        ("--gpu h100 --max-cudagraph-capture-size 99999999999", "99999999999 is not within 0 to 1048576"),
        ("--gpu h100 --cpu-offload-gb 1e308", "1e+308 is not within 0 to 1048576 GiB"),
        ("--gpu h100 -tp 1000000", "1000000 is not within 1 to 4096"),
        ("--gpu h100 --data-parallel-size 3000000", "3000000 is not within 1 to 4096"),
        ("--gpu h100 -tp 4096 -pp 2", "8192 ranks in all are not within 1 to 4096"),
        ("--gpu h100 -tp 64 -dp 128 -dpl 1", "8192 ranks in all are not within 1 to 4096"),
    ],
)
def test_bad_input_is_one_message_and_no_plan(words: str, message: str, model: str, capsys: Captured) -> None:
    assert main(["plan", model, *words.split()]) == EXIT_BAD_INPUT
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("vllm-autofit: ")
    assert output.err.count("\n") == 1
    assert message in output.err


def test_a_question_does_not_end_in_a_full_stop(model: str, capsys: Captured) -> None:
    assert main(["plan", model, "--gpu", "h100", "--tensor-paralel-size", "2"]) == EXIT_BAD_INPUT
    assert capsys.readouterr().err.endswith("Did you mean --tensor-parallel-size?\n")


def test_a_data_parallel_size_in_the_environment_is_checked_too(
    on_the_host: None, model: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("VLLM_DP_SIZE", "two")
    assert main(["plan", model]) == EXIT_BAD_INPUT
    assert "VLLM_DP_SIZE: 'two' is not a whole number" in capsys.readouterr().err


def test_a_folder_without_a_config_is_bad_input(tmp_path: Path, capsys: Captured) -> None:
    assert main(["plan", str(tmp_path), "--gpu", "h100"]) == EXIT_BAD_INPUT
    assert str(tmp_path) in capsys.readouterr().err


def test_vllm_s_image_is_not_for_the_host(on_the_host: None, model: str, capsys: Captured) -> None:
    assert main(["plan", model, "--format", "docker"]) == EXIT_BAD_INPUT
    assert "Name one with --gpu" in capsys.readouterr().err


@pytest.mark.parametrize("place", [0, 1])
def test_help_is_ours(place: int, model: str, capsys: Captured) -> None:
    words = [model]
    words.insert(place, "--help")
    with pytest.raises(SystemExit) as caught:
        main(["plan", *words])
    assert caught.value.code == EXIT_OK
    assert "--gpu-memory GIB" in capsys.readouterr().out


# This machine


def test_without_a_model_it_is_what_any_start_here_would_ask_for(on_the_host: None, capsys: Captured) -> None:
    assert main(["plan"]) == EXIT_OK
    output = capsys.readouterr().out
    assert "Any model on host memory" in output
    assert "No model was named" in output
    assert "vllm serve --gpu-memory-utilization 0." in output


def test_this_machine_s_memory_and_settings_count(
    on_the_host: None, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT_HEADROOM", "1.5GiB")
    document = plan_json(capsys)
    assert document["model"] is None
    assert document["device"]["name"] == "host memory"
    assert document["budget"]["headroom"] == 3 * GIB // 2
    assert any("CPU backend" in warning for warning in document["warnings"])


def test_a_machine_that_is_too_full(on_the_host: None, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT_HEADROOM", "1000TiB")
    assert main(["plan"]) == EXIT_DOES_NOT_FIT
    assert "warning: nothing fits: " in capsys.readouterr().out


# What it needs


def test_it_needs_no_vllm_torch_transformers_or_network(model: str) -> None:
    program = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "for name in ('torch', 'vllm', 'transformers', 'huggingface_hub', 'safetensors', 'numpy', 'yaml'):\n"
        "    sys.modules[name] = None\n"
        "from vllm_autofit.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, "plan", model, "--gpu", "L4", "--format", "yaml"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == EXIT_OK, process.stderr
    assert "gpu-memory-utilization" in process.stdout
