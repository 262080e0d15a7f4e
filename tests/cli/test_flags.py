"""``vllm serve`` command lines: read as vLLM reads them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Forked
from vllm_autofit.cli.flags import Flags, parse_flags
from vllm_autofit.errors import FlagError

COMMAND_LINES = [
    "M",
    "M -tp 2 -pp=2 -dp 2",
    "--enforce-eager M",
    "M --tensor_parallel_size 4 --max_model_len=8k",
    "M --max-model-len auto --gpu-mem 0.5 --enforce",
    "M --max-model-len -1 --max-num-batched-tokens 8K",
    "M --no-enable-prefix-caching --no_enforce_eager",
    "M -O3",
    "M -O 1",
    "M -O=2",
    "M --optimization-level 0",
    "M --compilation-config '{\"mode\": 3}'",
    "M -cc.mode 3 -cc.cudagraph_capture_sizes '[1,2,4]'",
    "M --compilation-config.pass_config.fuse_allreduce_rms true",
    'M --speculative-config \'{"method": "ngram", "num_speculative_tokens": 4}\'',
    "M --speculative-config.method ngram --speculative-config.num_speculative_tokens 4",
    'M --limit-mm-per-prompt \'{"image": 2, "video": 0}\'',
    "M --limit-mm-per-prompt.image 2",
    "M --hf-overrides '{\"max_position_embeddings\": 1000}'",
    "M --cudagraph-capture-sizes 1 2 4",
    "M --kv-cache-memory-bytes 10G --num-gpu-blocks-override 100 --block-size 32",
    "M --kv-cache-dtype fp8 -q fp8 --dtype half --enable-lora --max-loras 2 --max-lora-rank 64 -ep",
    "M --cpu-offload-gb 4 --kv-offloading-size 8.5 --enable-sleep-mode --language-model-only --device-ids 0,1",
    "M --host 0.0.0.0 --port 8000 --api-key one two --served-model-name a b --trust-remote-code",
    "M --enable-auto-tool-choice --tool-call-parser hermes --chat-template ./t.jinja --allowed-origins '[\"*\"]'",
    "M --max-num-seqs 8 --max-num-seqs 16",
    "M --revision main --quantization None",
]


@pytest.mark.vllm
def test_vllm_itself_reads_the_same(forked: Forked) -> None:
    ours = [parse_flags(shlex.split(line)) for line in COMMAND_LINES]
    asked = [(shlex.split(line), tuple(flags.values)) for line, flags in zip(COMMAND_LINES, ours, strict=True)]
    theirs = forked(lambda: _read_by_vllm(asked))
    for line, flags, read in zip(COMMAND_LINES, ours, theirs, strict=True):
        values = {name: _comparable(name, value) for name, value in flags.values.items()}
        assert {**values, "model_tag": flags.model} == read, line


def _read_by_vllm(asked: list[tuple[list[str], tuple[str, ...]]]) -> list[dict[str, Any]]:
    """What vLLM's own parser makes of the options that we say were given; no other may have been."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    plain = parser.parse_args(["serve"])
    read = []
    for words, names in asked:
        given = parser.parse_args(["serve", *words])
        changed = {name for name, value in vars(given).items() if value != getattr(plain, name)}
        assert changed <= {*names, "model_tag"}, (words, changed)
        read.append({name: _comparable(name, getattr(given, name)) for name in (*names, "model_tag")})
    return read


def _comparable(name: str, value: Any) -> Any:
    """Several values come as a list from vLLM; configs as objects, of which the parts that were given count."""
    if name == "compilation_config":
        parts = value if isinstance(value, dict) else vars(value)
        passes = parts.get("pass_config") or {}
        fused = (passes if isinstance(passes, dict) else vars(passes)).get("fuse_allreduce_rms")
        return parts.get("mode") and int(parts["mode"]), parts.get("cudagraph_capture_sizes"), bool(fused)
    if name == "device_ids" and isinstance(value, str):
        return [int(each) for each in value.split(",")]
    if name == "limit_mm_per_prompt":
        return {key: getattr(limit, "count", limit) for key, limit in value.items()}
    return list(value) if isinstance(value, tuple) else value


def test_the_first_two_words_of_a_pasted_command_say_nothing() -> None:
    assert parse_flags(["vllm", "serve", "M", "-tp", "2"]) == parse_flags(["M", "-tp", "2"])


def test_nothing_given_is_nothing_known() -> None:
    assert parse_flags([]) == Flags(None, {})


def test_a_model_may_be_named_by_option_but_its_place_counts() -> None:
    assert parse_flags(["--model", "A"]).model == "A"
    assert parse_flags(["--model", "A", "B"]).model == "B"


def test_the_last_word_on_an_option_counts() -> None:
    assert parse_flags(["M", "--max-num-seqs", "8", "--max_num_seqs=16"]).values == {"max_num_seqs": 16}


def test_lists_grow_and_keys_nest() -> None:
    words = shlex.split("M -sc.a+ 1,2 -sc.a+ 3 -sc.b.c 8k -sc.b.d word")
    assert parse_flags(words).values["speculative_config"] == {"a": ["1", "2", "3"], "b": {"c": 8000, "d": "word"}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("M --tensor-paralel-size 2", r"--tensor-paralel-size: .*Did you mean --tensor-parallel-size\?"),
        ("M --nonsense", "--nonsense: vLLM 0.32 has no such option"),
        ("M --nonsense=3", "--nonsense: "),
        ("M N", "N: a second model beside M"),
        ("M -tp", "expected one argument"),
        ("M --max-num 3", "ambiguous option: --max-num could match"),
        ("M --max-model-len long", "'long' is not a number of tokens"),
        ("M --compilation-config.mode", "its value is missing"),
        ("M --speculative-config {", "'{' is not JSON"),
        ("M --enforce-eager=yes", "ignored explicit argument"),
    ],
)
def test_what_vllm_would_not_take(line: str, message: str) -> None:
    with pytest.raises(FlagError, match=message):
        parse_flags(line.split())


# --config FILE


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A file as vLLM's documentation has them."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "model: from/file\nport: 9000\ntensor-parallel-size: 2\nenforce-eager: false\nenable_lora: true\n"
        "headless: false\nmax-num-seqs: 8\napi-key: [one, two]\nmiddleware: []\n"
        "speculative-config:\n  method: ngram\n  num_speculative_tokens: 3\n"
    )
    return path


FROM_FILE: dict[str, object] = {
    "port": 9000,
    "tensor_parallel_size": 2,
    "enforce_eager": False,
    "enable_lora": True,
    "max_num_seqs": 8,
    "api_key": ("one", "two"),
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
}


def test_a_file_is_read_and_the_command_line_overrules_it(config_file: Path) -> None:
    assert parse_flags(["--config", str(config_file)]) == Flags("from/file", FROM_FILE)
    overruled = parse_flags(["M", "-tp", "4", "--config", str(config_file)])
    assert (overruled.model, overruled.values["tensor_parallel_size"]) == ("M", 4)


@pytest.mark.vllm
def test_vllm_itself_reads_the_file_so(config_file: Path, forked: Forked) -> None:
    words = ["--config", str(config_file)]
    (theirs,) = forked(lambda: _read_by_vllm([(words, (*FROM_FILE, "model"))]))
    expected = {**FROM_FILE, "model": "from/file", "model_tag": None}
    assert theirs == {name: _comparable(name, value) for name, value in expected.items()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config"], "the name of the file is missing"),
        (["--config=x.yaml"], "Write --config FILE"),
        (["--config", "x.json"], "only"),
        (["--config", "missing.yaml"], "can't be read"),
        (["--config", "a.yaml", "--config", "b.yaml"], "more than once"),
    ],
)
def test_a_file_that_vllm_would_not_read(words: list[str], message: str) -> None:
    with pytest.raises(FlagError, match=message):
        parse_flags(["M", *words])


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "a: [", "\x00", "just text"])
def test_a_file_without_options(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(FlagError, match=r"c\.yaml"):
        parse_flags(["M", "--config", str(tmp_path / "c.yaml")])
