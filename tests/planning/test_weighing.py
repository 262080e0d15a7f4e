"""A model on a device, weighed by the real estimator: what is given up, in which order, and what is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import GIB, cuda, host, llama, request
from vllm_autofit.architecture import Attention, Dense, Layer, ModelFacts, State, Tower
from vllm_autofit.planning.defaults import Version
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.settings import POLICIES
from vllm_autofit.values import AUTO_CONTEXT, DeviceFacts, FieldValue, Lessons, Model, Plan, Rules

ADA = (8, 9)
AMPERE = (8, 6)
LLAMA_8B = llama()


def plan_for(
    model: Model = LLAMA_8B,
    device: DeviceFacts | None = None,
    fields: dict[str, FieldValue] | None = None,
    policy: str = "balanced",
    version: Version = (0, 32),
    **knobs: object,
) -> Plan:
    return make_plan(
        request(fields, knobs=knobs), [device or cuda(80)], Lessons(), Rules(policy), model=model, version=version
    )


def ada(total_gib: float, free_gib: float | None = None) -> DeviceFacts:
    return cuda(total_gib, free_gib, compute_capability=ADA)


def changes(plan: Plan) -> list[str]:
    """The fields that were conceded, in the order in which the plan accounts for them."""
    words = {"context": "context", "sequence": "sequences", "KV cache": "fp8", "CUDA graphs": "eager"}
    return [next(name for word, name in words.items() if word in each.change) for each in plan.concessions]


# By example


def test_with_room_nothing_is_given_up() -> None:
    plan = plan_for()
    assert (plan.fits, plan.concessions, plan.remedies, plan.warnings) == (True, (), (), ())
    assert plan.filled.keys() == {"gpu_memory_utilization", "max_model_len"}
    assert plan.kv is not None
    assert plan.kv.bytes_per_token == 2 * 32 * 8 * 128 * 2


def test_a_context_that_does_not_fit_goes_first() -> None:
    plan = plan_for(device=ada(24))
    assert changes(plan) == ["context"]
    assert plan.decision("max_model_len").value == AUTO_CONTEXT
    assert "of the model's 131,072 tokens should fit" in plan.decision("max_model_len").why


def test_a_vllm_that_cannot_fit_the_context_is_given_a_number() -> None:
    decision = plan_for(device=ada(24), version=(0, 17)).decision("max_model_len")
    assert decision.source == "estimate"
    assert isinstance(decision.value, int)
    assert 4096 <= decision.value < 131072


TIGHT_GIB = [16 + step / 20 for step in range(60)]
"""Device sizes around what the model needs: from none that helps to a context alone."""


def test_then_sequences_then_precision_then_graphs() -> None:
    given_up = [changes(plan_for(device=ada(gib))) for gib in TIGHT_GIB]
    order = ["context", "sequences", "fp8", "eager"]
    for steps in given_up:
        assert steps == [step for step in order if step in steps]
    assert given_up[0] == [], "nothing is given up in vain"
    assert order in given_up
    assert given_up[-1] == ["context"]
    assert ["context", "sequences"] in given_up


def test_what_a_later_concession_made_needless_is_taken_back() -> None:
    """Fewer sequences are tried first, aren't enough, and are no longer needed once the cache is half the size."""
    model = llama(kv_heads=32)
    given_up = [changes(plan_for(model, ada(gib))) for gib in range(16, 28)]
    assert ["context", "fp8"] in given_up


def test_no_fp8_where_the_device_has_none() -> None:
    assert "fp8" not in changes(plan_for(device=cuda(17.9, compute_capability=AMPERE)))
    assert "fp8" not in changes(plan_for(device=cuda(17.9)))


def test_the_policy_safe_keeps_the_models_numbers() -> None:
    assert "fp8" not in changes(plan_for(device=ada(18.5), policy="safe"))


def test_the_policy_context_gives_up_the_context_last() -> None:
    plans = [
        (plan_for(device=ada(gib)), plan_for(device=ada(gib), policy="context")) for gib in (19, 24, 28, 30, 31, 32)
    ]
    kept = [(changes(ours), changes(longest)) for ours, longest in plans]
    assert (["context"], ["fp8"]) in kept


def test_the_policy_throughput_bounds_the_context_so_that_several_fit() -> None:
    plan = plan_for(device=ada(40), policy="throughput")
    context = plan.decision("max_model_len").value
    assert isinstance(context, int)
    assert 4096 <= context < 131072
    assert plan.kv is not None
    assert plan.kv.max_concurrency >= 4


def test_the_users_context_is_never_given_up() -> None:
    plan = plan_for(device=ada(24), fields={"max_model_len": 131072})
    assert plan.decision("max_model_len").value == 131072
    assert not plan.fits
    assert plan.shortfall_bytes > 0
    assert any(remedy.flag and remedy.flag.startswith("--max-model-len ") for remedy in plan.remedies)


def test_what_does_not_fit_is_said_with_gib_and_remedies() -> None:
    plan = plan_for(device=ada(15.5))
    assert not plan.fits
    assert f"{plan.shortfall_bytes / GIB:.2f} GiB short" in " ".join(plan.warnings)
    cured = [remedy for remedy in plan.remedies if "not enough" not in remedy.change]
    assert "--tensor-parallel-size 2" in {remedy.flag for remedy in cured}
    assert all(remedy.effect_bytes > 0 for remedy in plan.remedies)
    kept = [remedy.effect_bytes for remedy in plan.remedies if "not enough" in remedy.change]
    assert kept == sorted(kept, reverse=True)


def test_the_flag_of_a_remedy_cures() -> None:
    plan = plan_for(device=ada(15.5))
    assert "--tensor-parallel-size 2" in {remedy.flag for remedy in plan.remedies}
    two = make_plan(
        request(local_ranks=2, knobs={"tensor_parallel_size": 2}),
        [ada(15.5), ada(15.5)],
        Lessons(),
        Rules(),
        model=LLAMA_8B,
    )
    assert two.fits


def test_tensor_parallel_sizes_divide_the_heads() -> None:
    odd = llama(heads=30, kv_heads=5)
    flags = {remedy.flag for remedy in plan_for(odd, ada(8)).remedies}
    assert "--tensor-parallel-size 2" in flags
    assert "--tensor-parallel-size 4" not in flags


def test_what_others_hold_is_a_remedy() -> None:
    plan = plan_for(device=ada(24, free_gib=12))
    assert any("close what holds 12.00 GiB" in remedy.change for remedy in plan.remedies)


def test_a_headroom_of_the_users_that_leaves_too_little_is_told_so() -> None:
    plan = make_plan(request(), [ada(24)], Lessons(), Rules(headroom_bytes=12 * GIB), model=LLAMA_8B)
    assert not plan.fits
    assert plan.remedies[0].change == "keep less free than VLLM_AUTOFIT_HEADROOM asks for"


def test_a_share_that_the_user_fixed_too_low_is_told_so() -> None:
    plan = plan_for(fields={"gpu_memory_utilization": 0.15})
    assert not plan.fits
    assert plan.remedies[0].change.startswith("ask for all that is free")


def test_beside_a_share_of_the_users_the_plan_says_what_it_would_have_chosen() -> None:
    ours = plan_for().decision("gpu_memory_utilization").value
    plan = plan_for(fields={"gpu_memory_utilization": 0.5})
    assert plan.decision("gpu_memory_utilization").suggested == ours
    assert plan.budget is not None
    assert plan.budget.asked_bytes == 40 * GIB


def test_a_share_that_the_user_fixed_too_high_fails_vllms_check() -> None:
    plan = plan_for(fields={"gpu_memory_utilization": 0.995})
    assert not plan.fits
    assert "more than will be free when vLLM checks" in " ".join(plan.warnings)
    assert [remedy.change for remedy in plan.remedies] == [
        "ask for no more than is free: leave gpu_memory_utilization unset"
    ]


def test_a_kv_cache_of_the_users_size_is_taken_as_it_is() -> None:
    plan = plan_for(kv_cache_memory_bytes=2 * GIB)
    assert plan.kv is not None
    assert plan.kv.blocks == 2 * GIB // (16 * plan.kv.bytes_per_token)


def test_uncounted_graphs_come_out_of_what_is_asked() -> None:
    old, new = plan_for(version=(0, 17)), plan_for(version=(0, 32))
    assert old.budget is not None
    assert new.budget is not None
    assert old.budget.asked_bytes == new.budget.asked_bytes - old.budget.cuda_graphs_bytes


def test_sequences_are_capped_at_what_the_states_can_hold() -> None:
    state = State("mamba2", heads=128, head_size=64, state_size=128, groups=8, inner_size=8192, conv_kernel=4)
    layers = (Layer(state, Dense(11008)),) * 48 + (Layer(Attention(32, 8, 128, 128), Dense(11008)),) * 8
    model = Model("some/hybrid", ModelFacts("BambaForCausalLM", "bamba", 4096, 128256, layers, context_tokens=262144))
    plan = plan_for(model, cuda(80, free_gib=40))
    sequences = plan.decision("max_num_seqs")
    assert sequences.source == "estimate"
    assert plan.kv is not None
    assert isinstance(sequences.value, int)
    assert sequences.value <= plan.kv.blocks
    assert "at once" in sequences.why
    fixed = plan_for(model, cuda(80, free_gib=40), fields={"max_num_seqs": 1024})
    assert fixed.decision("max_num_seqs").value == 1024
    assert "more than the KV cache can hold at once" in " ".join(fixed.warnings)


def test_an_encoder_needs_no_kv_cache() -> None:
    layer = Layer(Attention(16, 16, 64, 64, role="encoder"), Dense(4096, gated=False))
    facts = ModelFacts(
        "BertModel", "bert", 1024, 30522, (layer,) * 24, context_tokens=512, runner="pooling", dtype="float32"
    )
    plan = plan_for(Model("some/bert", facts), ada(8))
    assert plan.fits
    assert plan.kv is None
    assert plan.budget is not None
    assert plan.budget.kv_cache_bytes == 0


def test_a_model_that_is_not_understood_is_left_to_vllm() -> None:
    plan = plan_for(Model("some/novelty", notes=("not understood",)))
    assert not plan.estimated
    assert plan.kv is None
    assert plan.filled.keys() == {"gpu_memory_utilization", "max_model_len"}


def test_a_context_floor_of_the_users() -> None:
    tight = ada(18.0)
    low = make_plan(request(), [tight], Lessons(), Rules(min_context_tokens=1024), model=LLAMA_8B)
    high = make_plan(request(), [tight], Lessons(), Rules(min_context_tokens=16384), model=LLAMA_8B)
    assert len(high.concessions) > len(low.concessions) or high.shortfall_bytes > low.shortfall_bytes


def test_nothing_is_given_up_in_vain() -> None:
    plan = plan_for(device=ada(15.5))
    assert not plan.fits
    assert plan.concessions == ()
    assert plan.filled.keys() == {"gpu_memory_utilization", "max_model_len"}
    assert "even with 8 sequences at a time" in " ".join(plan.warnings)


def test_what_may_yet_fit_is_given_its_best_chance() -> None:
    """Short by less than the estimate may be off: it isn't said to fit, and the settings come closest."""
    uncertain = [
        plan
        for plan in (plan_for(device=ada(gib)) for gib in TIGHT_GIB)
        if not plan.fits and plan.shortfall_bytes < plan.confidence.error_bars["kv_cache"]
    ]
    assert uncertain
    assert all("max_num_seqs" in plan.filled for plan in uncertain)


def test_the_policy_context_gets_at_least_the_context_that_balanced_gets() -> None:
    def context(policy: str, gib: float) -> int:
        plan = plan_for(device=ada(gib), policy=policy, version=(0, 17))
        value = plan.decision("max_model_len").value
        return value if isinstance(value, int) else 131072

    found = [(context("context", gib), context("balanced", gib)) for gib in (18, 20, 24, 28)]
    assert all(longest >= usual for longest, usual in found)
    assert any(longest > usual for longest, usual in found)


def test_a_kv_cache_of_the_users_size_is_certain() -> None:
    plan = plan_for(fields={"max_model_len": 131072}, kv_cache_memory_bytes=17 * GIB)
    assert plan.fits
    assert plan.concessions == ()


def test_a_kv_cache_of_the_users_size_that_the_device_has_no_room_for() -> None:
    plan = plan_for(kv_cache_memory_bytes=200 * GIB)
    assert not plan.fits
    assert plan.shortfall_bytes > 100 * GIB


def test_only_the_cpu_backend_leaves_its_check_out_for_a_kv_cache_of_the_users_size() -> None:
    fields: dict[str, FieldValue] = {"gpu_memory_utilization": 0.999}
    assert not plan_for(fields=fields, kv_cache_memory_bytes=GIB).fits
    assert plan_for(llama(layers=2), host(32, 20), fields=fields, kv_cache_memory_bytes=GIB).fits


def test_a_number_of_blocks_of_the_users_counts() -> None:
    few = plan_for(fields={"max_model_len": 131072}, num_gpu_blocks_override=100)
    assert not few.fits
    assert few.kv is not None
    assert few.kv.blocks == 100
    assert not plan_for(num_gpu_blocks_override=1_000_000).fits


def test_as_many_sequences_as_hold_not_fewer() -> None:
    state = State("mamba2", heads=128, head_size=64, state_size=128, groups=8, inner_size=8192, conv_kernel=4)
    layers = (Layer(state, Dense(11008)),) * 48 + (Layer(Attention(32, 8, 128, 128), Dense(11008)),) * 8
    model = Model("some/hybrid", ModelFacts("BambaForCausalLM", "bamba", 4096, 128256, layers, context_tokens=262144))
    device = cuda(80, free_gib=40)
    chosen = plan_for(model, device).decision("max_num_seqs").value
    assert isinstance(chosen, int)
    more = plan_for(model, device, fields={"max_num_seqs": chosen + 8})
    assert "more than the KV cache can hold at once" in " ".join(more.warnings)


def test_a_share_of_the_users_that_leaves_little_beside_it_is_warned_of() -> None:
    plan = plan_for(fields={"gpu_memory_utilization": 0.99})
    assert "may be taken after it has sized the KV cache" in " ".join(plan.warnings)
    assert plan_for(fields={"gpu_memory_utilization": 0.9}).warnings == ()


def test_weights_that_an_old_vllm_loads_before_it_quantises_them_must_fit_whole() -> None:
    large = llama(layers=120, hidden=5120, heads=40, width=25600)
    assert plan_for(large, cuda(80), version=(0, 16), quantization="fp8").fits
    assert not plan_for(large, cuda(80), version=(0, 11), quantization="fp8").fits


def test_a_device_that_shares_the_hosts_memory_leaves_the_host_some() -> None:
    alone, shared = plan_for(device=cuda(120)).budget, plan_for(device=cuda(120, shares_host=True)).budget
    assert alone is not None
    assert shared is not None
    assert shared.asked_bytes < alone.asked_bytes - 3 * GIB


def test_where_vllm_keeps_the_utilisation_the_model_may_still_fit() -> None:
    asked = replace(request(), utilization_left_to_vllm="because")
    for free_gib in (80, 60):  # the second: 20 GiB of weights in another process
        plan = make_plan(asked, [cuda(80, free_gib)], Lessons(), Rules(), model=LLAMA_8B)
        assert plan.fits
        assert plan.warnings == ()
        assert plan.decision("gpu_memory_utilization").source == "vllm"


@pytest.mark.parametrize("fixed", [None, 20 * GIB])
def test_what_api_servers_decode_with_comes_off_the_kv_cache(fixed: int | None) -> None:
    seeing = llama(towers=(Tower("image", 2, 64, 128, 4, 64),))
    without, with_reserve = (
        plan_for(seeing, cuda(80), mm_ipc_gpu_memory_gb=size, kv_cache_memory_bytes=fixed).budget for size in (0, 2)
    )
    assert without is not None
    assert with_reserve is not None
    assert without.kv_cache_bytes - with_reserve.kv_cache_bytes == 2 * GIB


def test_what_ranks_lack_is_told_for_the_device() -> None:
    model = llama(layers=16, hidden=2048, width=8192)
    plan = make_plan(
        request({"gpu_memory_utilization": 0.6}, local_ranks=2, knobs={"tensor_parallel_size": 2}),
        [host(24, ranks=2)],
        Lessons(),
        Rules(),
        model=model,
    )
    text = " ".join(plan.warnings)
    assert f"{plan.shortfall_bytes / GIB:.2f} GiB more than will be free" in text


# For every device and model

sizes = st.floats(4, 300)
shares = st.floats(0.05, 1)
models = st.builds(
    llama,
    layers=st.integers(1, 100),
    hidden=st.sampled_from([512, 2048, 4096, 8192]),
    heads=st.sampled_from([8, 24, 32, 64]),
    kv_heads=st.sampled_from([1, 2, 8]),
    width=st.sampled_from([1024, 14336, 28672]),
    vocabulary=st.integers(1000, 300000),
    context=st.integers(1, 2_000_000),
    tied_embeddings=st.booleans(),
)
chosen = st.fixed_dictionaries(
    {},
    optional={
        "gpu_memory_utilization": st.floats(0.01, 1),
        "max_model_len": st.one_of(st.just(AUTO_CONTEXT), st.integers(1, 4_000_000)),
        "enforce_eager": st.booleans(),
        "kv_cache_dtype": st.sampled_from(["auto", "fp8"]),
        "max_num_seqs": st.integers(1, 4096),
    },
)
versions = st.sampled_from([(0, 11), (0, 17), (0, 20), (0, 26), (0, 32), (0, 33)])


@given(models, sizes, shares, chosen, st.sampled_from(POLICIES), versions)
def test_what_holds_for_every_plan(
    model: Model, total: float, share: float, fields: dict[str, FieldValue], policy: str, version: Version
) -> None:
    plan = plan_for(model, ada(total, total * share), fields, policy, version)
    budget = plan.budget
    assert budget is not None
    parts = (
        budget.unavailable_bytes,
        budget.startup_overhead_bytes,
        budget.weights_bytes,
        budget.activations_bytes,
        budget.cuda_graphs_bytes,
        budget.non_torch_bytes,
        budget.kv_cache_bytes,
        budget.left_bytes,
    )
    assert all(part >= 0 for part in parts)
    if plan.fits:
        assert sum(parts) == budget.total_bytes
    assert plan.shortfall_bytes >= 0
    for name, value in fields.items():
        assert (plan.decision(name).value, plan.decision(name).source) == (value, "user")
    utilization = plan.filled.get("gpu_memory_utilization")
    if isinstance(utilization, float):
        assert utilization * budget.total_bytes <= budget.free_bytes - budget.startup_overhead_bytes
    sequences = plan.filled.get("max_num_seqs")
    if isinstance(sequences, int) and plan.kv is not None and plan.fits and not plan.remedies:
        assert 1 <= sequences <= plan.kv.blocks


@given(models, sizes, st.floats(1, 1.5), st.sampled_from(POLICIES))
def test_more_free_memory_never_gives_less_kv_cache_with_the_same_settings(
    model: Model, total: float, more: float, policy: str
) -> None:
    fields: dict[str, FieldValue] = {"max_num_seqs": 64, "kv_cache_dtype": "auto", "enforce_eager": False}
    large = total * 1.5
    less = plan_for(model, ada(large, total), fields, policy)
    other = plan_for(model, ada(large, min(large, total * more)), fields, policy)
    assert less.kv is not None
    assert other.kv is not None
    assert other.kv.blocks >= less.kv.blocks


@given(models, st.integers(1, 20), sizes)
def test_a_larger_model_never_takes_less(model: Model, extra: int, total: float) -> None:
    assert model.facts is not None
    larger = replace(model, facts=replace(model.facts, layers=(*model.facts.layers, *(model.facts.layers[0],) * extra)))
    fields: dict[str, FieldValue] = {"max_num_seqs": 64, "kv_cache_dtype": "auto", "enforce_eager": False}
    small, large = plan_for(model, ada(total), fields).budget, plan_for(larger, ada(total), fields).budget
    assert small is not None
    assert large is not None
    assert large.weights_bytes > small.weights_bytes
    assert large.kv_cache_bytes <= small.kv_cache_bytes


@pytest.mark.parametrize("device", [host(32), cuda(80)])
def test_a_plan_for_either_backend(device: DeviceFacts) -> None:
    plan = plan_for(llama(layers=4), device)
    assert plan.fits
    assert plan.estimated


FLAGS = {
    "--tensor-parallel-size": "tensor_parallel_size",
    "--quantization": "quantization",
    "--cpu-offload-gb": "cpu_offload_gb",
    "--max-num-batched-tokens": "max_num_batched_tokens",
    "--max-model-len": "max_model_len",
    "--max-num-seqs": "max_num_seqs",
    "--kv-cache-dtype": "kv_cache_dtype",
}


@settings(max_examples=40)
@given(models, st.floats(4, 60), chosen, versions)
def test_a_remedy_that_is_said_to_cure_does(
    model: Model, total: float, fields: dict[str, FieldValue], version: Version
) -> None:
    plan = plan_for(model, ada(total), fields, version=version)
    for remedy in plan.remedies:
        if "not enough" in remedy.change or remedy.flag is None:
            continue
        flag, _, text = remedy.flag.partition(" ")
        value: FieldValue = True if not text else int(text) if text.isdecimal() else text
        name = FLAGS.get(flag, "enforce_eager")
        ranks = value if name == "tensor_parallel_size" and isinstance(value, int) else 1
        in_fields = name in ("max_model_len", "max_num_seqs", "kv_cache_dtype", "enforce_eager")
        asked = request(
            {**fields, name: value} if in_fields else fields,
            local_ranks=ranks,
            knobs={} if in_fields else {name: value},
        )
        devices = [replace(ada(total), index=index) for index in range(ranks)]
        cured = make_plan(asked, devices, Lessons(), Rules(), model=model, version=version)
        assert cured.fits, (remedy, cured.warnings)


def test_what_vllm_refuses_does_not_fit() -> None:
    plan = make_plan(
        request(local_ranks=3, knobs={"tensor_parallel_size": 3}),
        [replace(cuda(80), index=index) for index in range(3)],
        Lessons(),
        Rules(),
        model=LLAMA_8B,
    )
    assert not plan.fits
    assert plan.shortfall_bytes == 0
    assert plan.filled.keys() == {"gpu_memory_utilization", "max_model_len"}
    assert "expected to refuse this: 32 attention heads" in " ".join(plan.warnings)


def test_a_context_beyond_the_models_own_is_refused_unless_vllm_is_told_to_allow_it() -> None:
    fields: dict[str, FieldValue] = {"max_model_len": 1_000_000}
    assert not plan_for(device=cuda(400), fields=fields).fits
    assert plan_for(device=cuda(400), fields=fields, VLLM_ALLOW_LONG_MAX_MODEL_LEN="1").fits
