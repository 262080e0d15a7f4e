"""vLLM's options as a table: what is in it, and which values are taken."""

from __future__ import annotations

import pytest

from dev.serve_options import serve_options
from tests.conftest import Forked
from vllm_autofit import FIELDS
from vllm_autofit.errors import FlagError
from vllm_autofit.facts.request import KNOBS
from vllm_autofit.facts.serve_options import TABLE, check_fields, did_you_mean, known_options


@pytest.mark.vllm
def test_the_table_is_that_of_the_installed_vllm(forked: Forked) -> None:
    assert forked(serve_options) == TABLE.read_text()


def test_all_that_memory_depends_on_is_in_it() -> None:
    options = known_options()
    assert [name for name in (*FIELDS, *KNOBS) if name not in options] == []
    assert all(options[name].of_engine for name in (*FIELDS, *KNOBS))


def test_what_only_a_server_has_is_known_to_be_so() -> None:
    assert not known_options()["port"].of_engine
    assert not known_options()["api_key"].of_engine


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_model_len", "8192", 8192),
        ("max_model_len", "8k", 8000),
        ("max_model_len", "8K", 8192),
        ("max_model_len", "25.6k", 25600),
        ("max_model_len", "auto", -1),
        ("max_model_len", "AUTO", -1),
        ("max_model_len", "-1", -1),
        ("kv_cache_memory_bytes", "64M", 64 * 2**20),
        ("gpu_memory_utilization", "0.5", 0.5),
        ("cpu_offload_gb", "0", 0.0),
        ("hf_overrides", '{"a": 1}', {"a": 1}),
        ("additional_config", "text", "text"),
        (
            "speculative_config",
            '{"method": "ngram", "num_speculative_tokens": 3}',
            {"method": "ngram", "num_speculative_tokens": 3},
        ),
        ("compilation_config", '{"cudagraph_capture_sizes": [1, 8]}', {"cudagraph_capture_sizes": [1, 8]}),
        ("limit_mm_per_prompt", '{"image": {"count": 2, "width": 64}}', {"image": {"count": 2, "width": 64}}),
        ("kv_cache_memory_bytes", "2T", 2**41),
        ("data_parallel_size_local", "0", 0),
        ("limit_mm_per_prompt", '{"image": 0}', {"image": 0}),
        ("quantization", "None", None),
        ("kv_cache_dtype", "fp8", "fp8"),
    ],
)
def test_values_as_the_command_line_writes_them(name: str, text: str, value: object) -> None:
    assert known_options()[name].read(text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_model_len", "8KiB"),
        ("max_model_len", "0"),
        ("max_model_len", "-2"),
        ("max_model_len", "1.5K"),
        ("max_num_seqs", "0"),
        ("max_num_seqs", "many"),
        ("tensor_parallel_size", "0"),
        ("gpu_memory_utilization", "0"),
        ("gpu_memory_utilization", "90"),
        ("gpu_memory_utilization", "nan"),
        ("cpu_offload_gb", "-1"),
        ("kv_cache_dtype", "fp9"),
        ("limit_mm_per_prompt", "image=2"),
        ("speculative_config", "[" * 100_000),
        ("speculative_config", "3"),
        ("speculative_config", '{"num_speculative_tokens": -3}'),
        ("speculative_config", '{"num_speculative_tokens": 1e9}'),
        ("speculative_config", '{"model": 5}'),
        ("compilation_config", '"3"'),
        ("compilation_config", '{"cudagraph_capture_sizes": ["a"]}'),
        ("compilation_config", '{"cudagraph_capture_sizes": 8}'),
        ("compilation_config", '{"cudagraph_capture_sizes": [1, -8]}'),
        ("compilation_config", '{"max_cudagraph_capture_size": 99999999999}'),
        ("limit_mm_per_prompt", '{"image": -1}'),
        ("limit_mm_per_prompt", '{"image": {"count": 1e400}}'),
        ("hf_overrides", "5"),
        ("hf_overrides", "package.function"),
        ("max_cudagraph_capture_size", "99999999999"),
        ("max_num_seqs", "99999999999"),
        ("max_model_len", "2T"),
        ("max_model_len", "9" * 400 + "k"),
        ("kv_cache_memory_bytes", "2000T"),
        ("tensor_parallel_size", "4097"),
        ("cpu_offload_gb", "1e308"),
        ("kv_offloading_size", "inf"),
        ("watermark", "nan"),
        ("seed", "9" * 400),
    ],
)
def test_a_value_that_is_not_taken_is_named_with_its_option(name: str, text: str) -> None:
    with pytest.raises(FlagError) as caught:
        known_options()[name].read(text)
    assert caught.value.flag == known_options()[name].flag


def test_a_choice_that_is_nearly_right_is_mended() -> None:
    with pytest.raises(FlagError, match=r"Did you mean fp8\?"):
        known_options()["kv_cache_dtype"].read("fp9")


@pytest.mark.parametrize("word", ["--bogus", "--x", "-z"])
def test_what_is_like_nothing_is_not_mended(word: str) -> None:
    assert did_you_mean(word, [spelling for option in known_options().values() for spelling in option.spellings]) == ""


def test_fields_that_are_objects_are_taken() -> None:
    fields = {"hf_overrides": dict, "compilation_config": 3, "max_model_len": -1}
    assert check_fields(fields) == fields


def test_fields_keep_their_values_and_text_is_read() -> None:
    assert check_fields({"max_model_len": "32k", "tensor_parallel_size": 2, "enforce_eager": True, "dtype": None}) == {
        "max_model_len": 32000,
        "tensor_parallel_size": 2,
        "enforce_eager": True,
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tensor_parallel": 2}, r"no such argument. Did you mean tensor_parallel_size\?"),
        ({"port": 8000}, "no such argument"),
        ({"enforce_eager": "yes"}, "is not True or False"),
        ({"max_num_seqs": True}, "is not a whole number"),
        ({"max_num_seqs": 2.5}, "is not a whole number"),
        ({"gpu_memory_utilization": 2}, "above 0 and at most 1"),
        ({"cudagraph_capture_sizes": [1, "two"]}, "is not a whole number"),
        ({"cudagraph_capture_sizes": [1, 2**21]}, "2097152 is not within 1 to 1048576"),
        ({"hf_overrides": 5}, "5 is not a JSON object"),
        ({"max_num_seqs": 10**400}, "is not within 1 to 1048576"),
    ],
)
def test_fields_that_are_not_taken(fields: dict[str, object], message: str) -> None:
    with pytest.raises(FlagError, match=message):
        check_fields(fields)
