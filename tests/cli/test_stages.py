"""``vllm-autofit plan --stages``: which shares are filled, what is said about them, and where the file goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_autofit.cli.main import EXIT_BAD_INPUT, EXIT_DOES_NOT_FIT, EXIT_OK, main
from vllm_autofit.stages.package import PACKAGE

Captured = pytest.CaptureFixture[str]

TWO = """\
# Two on one device.
stages:
  - stage_id: 0
    devices: "0"
    gpu_memory_utilization: 0.6   # as measured
  - stage_id: 1
    devices: "0"
    enforce_eager: true
"""


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A file of the user's own."""
    return put(tmp_path / "two.yaml", TWO)


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_the_user_set_stays_and_the_rest_is_filled(two: Path, capsys: Captured) -> None:
    assert main(["plan", "--stages", str(two), "--gpu-memory", "80"]) == EXIT_OK
    output = capsys.readouterr()
    # 80 GiB less 1.3 headroom, two contexts of 0.635 and 1.003 of graphs of stage 0 leave 76.428; less 0.6 x 80, by 80.
    assert output.out == TWO.replace("- stage_id: 1\n", "- stage_id: 1\n    gpu_memory_utilization: 0.3553\n")
    assert f"stage 0 on 0: gpu_memory_utilization 0.6 (48.00 GiB) stays: set in {two}" in output.err
    assert "stage 1 on 0: gpu_memory_utilization 0.3553 (28.42 GiB); the file gives none." in output.err
    assert "device 0: 76.43 of 80.00 GiB to share between 2 processes" in output.err


def test_refill_gives_every_stage_a_new_share_in_the_old_proportion(two: Path, capsys: Captured) -> None:
    assert main(["plan", "--stages", str(two), "--gpu-memory", "80", "--refill"]) == EXIT_OK
    output = capsys.readouterr()
    assert "gpu_memory_utilization: 0.5732   # as measured" in output.out
    assert "gpu_memory_utilization: 0.3821\n" in output.out
    assert "the file says 0.6" in output.err


def test_shares_of_the_package_are_defaults_wherever_they_are_copied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    full = TWO.replace("    enforce_eager: true\n", "    gpu_memory_utilization: 0.2\n")
    shipped = put(tmp_path / "site" / PACKAGE / "deploy" / "two.yaml", full)
    put(shipped.parent.parent / "__init__.py", "raise RuntimeError('it is never imported')\n")
    copy = put(tmp_path / "two.yaml", full.replace("0.2", "0.25"))
    words = ["--gpu-memory", "80"]

    assert main(["plan", "--stages", str(shipped), *words]) == EXIT_OK
    assert "stays" not in capsys.readouterr().err

    assert main(["plan", "--stages", str(copy), *words]) == EXIT_OK
    assert capsys.readouterr().err.count("stays: set in") == 2  # nobody knows the package

    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert main(["plan", "--stages", str(copy), *words]) == EXIT_OK
    output = capsys.readouterr()
    assert "stage 1 on 0: gpu_memory_utilization 0.25 (20.00 GiB) stays" in output.err
    assert "gpu_memory_utilization: 0.25\n" in output.out
    assert "gpu_memory_utilization: 0.6 " not in output.out

    assert main(["plan", "--stages", str(copy), *words, "--keep", "0,1"]) == EXIT_OK
    assert capsys.readouterr().err.count("stays: --keep names it") == 2


def test_the_file_goes_where_it_is_told_and_the_old_one_is_as_before(two: Path, capsys: Captured) -> None:
    output = two.parent / "filled.yaml"
    assert main(["plan", "--stages", str(two), "--gpu", "H100", "--output", str(output)]) == EXIT_OK
    assert capsys.readouterr().out == ""
    assert output.read_text().count("gpu_memory_utilization") == 2
    assert two.read_text() == TWO


def test_a_file_based_on_another_has_to_stay_beside_it(two: Path, capsys: Captured) -> None:
    based = put(two.parent / "based.yaml", "base_config: two.yaml\n")
    elsewhere = put(two.parent / "elsewhere" / "x.yaml", "")
    words = ["plan", "--stages", str(based), "--gpu", "H100", "--output"]
    assert main([*words, str(elsewhere)]) == EXIT_OK
    assert "copy that file there, too" in capsys.readouterr().err
    assert main([*words, str(two.parent / "beside.yaml")]) == EXIT_OK
    assert "copy that file" not in capsys.readouterr().err


def test_headroom_and_what_is_free_count(two: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["plan", "--stages", str(two), "--gpu-memory", "80", "--refill"]

    def to_share(*more: str) -> float:
        assert main([*words, *more]) == EXIT_OK
        return float(capsys.readouterr().err.partition("device 0: ")[2].partition(" of")[0])

    usual = to_share()
    assert to_share("--gpu-free", "60") == pytest.approx(usual - 20, abs=0.011)
    assert to_share("--policy", "safe") == pytest.approx(usual - 1.3, abs=0.011)
    monkeypatch.setenv("VLLM_AUTOFIT_HEADROOM", "5GiB")
    assert to_share() == pytest.approx(usual - 3.7, abs=0.011)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--gpu-memory 1", ("device 0", "short", "lower the shares that stay", "--refill")),
        ("--gpu-memory 80 --gpu-free 40", ("stage 0 asks for 0.6 (48.00 GiB), which stays", "move a stage")),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_written(
    words: str, said: tuple[str, ...], two: Path, capsys: Captured
) -> None:
    output = two.parent / "filled.yaml"
    command = ["plan", "--stages", str(two), *words.split(), "--output", str(output)]
    assert main(command) == EXIT_DOES_NOT_FIT
    printed = capsys.readouterr()
    assert printed.out == ""
    assert not output.exists()
    for each in said:
        assert each in printed.err


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (None, "", ("it can't be read (No such file or directory)", "Name a YAML file")),
        ("stages: [", "", ("it isn't YAML",)),
        ("other: 1\n", "", ("it names no stages",)),
        (TWO.replace('"0"', "none"), "", ("stage 0", "'none' is not the number of a device", '"0,1"')),
        (TWO.replace('"0"', '"3"'), "--gpu-count 2", ("it names device 3, and there are 2", "--gpu-count")),
        (TWO, "--keep 1", ("--keep 1", "has no share for such a stage", "0")),
        (TWO, "--keep one", ("--keep", "'one' are not numbers of stages")),
        (TWO, "--output /dev/null/x", ("/dev/null/x", "it can't be written", "--output")),
        (TWO, "--tensor-parallel-size 2", ("--tensor-parallel-size", "in the file")),
    ],
)
def test_bad_input_is_named_with_what_would_be_right(
    text: str | None, words: str, said: tuple[str, ...], tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "two.yaml" if text is None else put(tmp_path / "two.yaml", text)
    assert main(["plan", "--stages", str(path), "--gpu-memory", "80", *words.split()]) == EXIT_BAD_INPUT
    printed = capsys.readouterr()
    assert printed.out == ""
    for each in said:
        assert each in printed.err


@pytest.mark.parametrize("words", ["--refill", "--keep 0", "--output x"])
def test_options_about_stages_need_a_file_of_them(words: str, capsys: Captured) -> None:
    assert main(["plan", "some/model", *words.split()]) == EXIT_BAD_INPUT
    assert "Name it with --stages FILE" in capsys.readouterr().err


def test_without_a_gpu_one_has_to_be_named(two: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert main(["plan", "--stages", str(two)]) == EXIT_BAD_INPUT
    assert "--gpu or --gpu-memory" in capsys.readouterr().err


def test_it_needs_neither_vllm_nor_torch(two: Path) -> None:
    probe = (
        "import sys; from vllm_autofit.cli.main import main; "
        f"main(['plan', '--stages', {str(two)!r}, '--gpu', 'L4', '--refill']); "
        "print(sorted({'vllm', 'torch', 'transformers', 'vllm_omni'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
