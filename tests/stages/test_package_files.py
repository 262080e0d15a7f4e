"""vLLM-Omni's own files: `python -m dev.omni_stages` keeps those of four versions; without them nothing is tested.

The sums are checked with arithmetic of their own, the text by comparing it line by line: see ``dev/omni_stages.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.omni_stages import DEVICES_GIB, KEPT, files, fill

FILES = files()


@pytest.mark.skipif(not FILES, reason="python -m dev.omni_stages fetches the files")
def test_there_are_files_of_both_schemas() -> None:
    texts = [path.read_text(encoding="utf-8") for path in FILES]
    assert len(FILES) > 50
    assert any("stage_args:" in text for text in texts)
    assert any("base_config:" in text for text in texts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.relative_to(KEPT).parts[::3]))
def test_shares_sum_to_what_is_free_and_nothing_else_changes(path: Path) -> None:
    filled = [each for device_gib in DEVICES_GIB for each in fill(path, device_gib)]
    assert [failure for each in filled for failure in each.failures] == []
    # One file asks for a KV cache of 32 GiB; every other fits from 24 GiB on.
    refused = {each.device_gib for each in filled if not each.shares}
    assert refused == ({24} if path.name == "moss_tts_local_h200.yaml" else set())
