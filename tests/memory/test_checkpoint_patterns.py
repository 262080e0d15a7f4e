"""Which modules a checkpoint's list of exceptions means. The lists are those of published checkpoints."""

from __future__ import annotations

import pytest

from vllm_autofit.memory.checkpoint_patterns import Patterns

QUERY = "model.layers.11.self_attn.q_proj"
EXPERT = "model.layers.11.mlp.experts.0.down_proj"
SHARED = "model.layers.11.mlp.shared_experts.down_proj"


@pytest.mark.parametrize(
    ("pattern", "module"),
    [
        ("lm_head", "lm_head"),
        ("model.layers.11.self_attn.q_proj", QUERY),
        ("model.language_model.layers.11.self_attn*", QUERY),
        ("language_model.model.layers.11*", EXPERT),
        ("model.layers.11.self_attn", QUERY),
        ("model.layers.*.self_attn", QUERY),
        ("self_attn", QUERY),
        ("mlp.shared_expert", SHARED),
        ("*.layers.11.mlp*", SHARED),
        ("*.mlp.shared_expert.*", SHARED),
        ("model.layers.11.self_attn.qkv_proj", QUERY),
        ("model.layers.11.feed_forward.experts.0.w2", EXPERT),
        ("model.layers.11.block_sparse_moe.experts", EXPERT),
        ("backbone.layers.11.mixer.q_proj", QUERY),
        ("re:.*self_attn.*", QUERY),
        ("re:.*mlp\\.(gate|up|gate_up|down)_proj.*", "model.layers.0.mlp.down_proj"),
        ("re:model\\.language_model\\.layers\\.1\\d\\..*", QUERY),
        ("re:^model.layers.11.*", QUERY),
        ("mtp*", "mtp.layers.0.mlp.down_proj"),
        ("model.layers.61*", "model.layers.61.eh_proj"),
    ],
)
def test_matches(pattern: str, module: str) -> None:
    assert Patterns(("visual", pattern)).match(module)


@pytest.mark.parametrize(
    ("pattern", "module"),
    [
        ("lm_head", QUERY),
        ("model.layers.1", QUERY),
        ("model.layers.1.self_attn*", QUERY),
        ("gate", "model.layers.11.mlp.gate_proj"),
        ("mlp.gate", "model.layers.11.mlp.gate_up_proj"),
        ("model.visual*", QUERY),
        ("vision_tower.encoder.layers.11.self_attn.q_proj", QUERY),
        ("layers.11.self_attn.q_proj", "mtp.layers.11.self_attn.q_proj"),
        ("mlp.shared_expert", EXPERT),
        ("re:.*mlp\\.(gate|up|gate_up|down)_proj.*", EXPERT),
        ("re:self_attn", QUERY),
        ("re:(unbalanced", QUERY),
    ],
)
def test_leaves_alone(pattern: str, module: str) -> None:
    assert not Patterns((pattern,)).match(module)


@pytest.mark.parametrize(
    "pattern", ["re:(.*.*)*!", r"re:(\w+\.?)+!", "re:" + ".*" * 30 + "!", ".".join(["mixer"] * 40), "*a" * 200 + "!"]
)
def test_a_pattern_that_could_take_forever_means_nothing(pattern: str) -> None:
    assert not Patterns((pattern,)).match("model.layers.11." + "a" * 60)


def test_an_empty_list_means_nothing() -> None:
    assert not Patterns(()).match(QUERY)
