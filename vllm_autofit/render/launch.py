"""A plan as something that starts vLLM: a config file, a shell command, a script, a container."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from vllm_autofit.answer import Answer
from vllm_autofit.render.options import option_words, shown

DEFAULT_PORT = 8000
IMAGE = "vllm/vllm-openai"


def config_file(answer: Answer) -> str:
    """YAML for ``vllm serve --config FILE``."""
    lines = [f"# {_title(answer)}", f"# vllm serve --config FILE  (vLLM {answer.vllm_version})"]
    if answer.model_name:
        lines.append(f"model: {_yaml(answer.model_name)}")
    for name, value in answer.launch.items():
        key = name.replace("_", "-")
        if value is False:
            # vLLM drops `option: false` where it knows no --no- form by that name; this is one by itself.
            lines.append(f"no-{key}: true")
        elif isinstance(value, list):
            lines.append(f"{key}: {_yaml(json.dumps(value, ensure_ascii=False))}")  # one argument of JSON, not several
        else:
            lines.append(f"{key}: {_yaml('auto' if shown(name, value) == 'auto' else value)}")
    return "\n".join(lines)


def shell_command(answer: Answer) -> str:
    """One ``vllm serve`` command, quoted for a shell."""
    words = ["vllm", "serve", *([answer.model_name] if answer.model_name else []), *_options(answer)]
    return shlex.join(words)


def container_command(answer: Answer) -> str:
    """One ``docker run`` command with vLLM's own image, quoted for a shell. For NVIDIA devices only."""
    port = answer.given.get("port", DEFAULT_PORT)
    tag = answer.vllm_version if answer.vllm_version.count(".") > 1 else f"{answer.vllm_version}.0"
    words = ["docker", "run", "--gpus", str(len(answer.devices)), "--ipc=host", "-p", f"{port}:{port}"]
    words += ["--env", "HF_TOKEN", "--volume", "$HOME/.cache/huggingface:/root/.cache/huggingface"]
    folder = Path(answer.model_name).expanduser()
    model = answer.model_name
    if model and folder.exists():
        model = str(folder.resolve())
        words += ["--volume", f"{model}:{model}:ro"]
    # Not in first place: images that start the older API server would serve their default model without a word.
    words += [f"{IMAGE}:v{tag}", *(["--model", model] if model else []), *_options(answer)]
    # The one word that the shell is to expand.
    return shlex.join(words).replace("'$HOME/.cache/huggingface:/root/.cache/huggingface'", _CACHE_VOLUME)


_CACHE_VOLUME = '"$HOME/.cache/huggingface:/root/.cache/huggingface"'


def script(answer: Answer) -> str:
    """A Python script that builds ``LLM(...)``, guarded because vLLM may start its processes by spawning."""
    arguments: dict[str, object] = {"model": answer.model_name} if answer.model_name else {}
    engine = {name: value for name, value in answer.launch.items() if name not in answer.server_only}
    arguments.update({name: _argument(name, value) for name, value in engine.items()})
    lines = [
        f'"""{_title(answer)}"""',
        "",
        "from vllm import LLM",
        "",
        "",
        "def main() -> None:",
        "    llm = LLM(",
        *(f"        {name}={value!r}," for name, value in arguments.items()),
        "    )",
        *_use(answer),
        "",
        "",
        'if __name__ == "__main__":',
        "    main()",
    ]
    return "\n".join(lines)


def _argument(name: str, value: object) -> object:
    """As ``LLM(...)`` takes it: only the command line writes several devices as one word."""
    if name == "device_ids" and isinstance(value, str):
        return [int(each) if each.strip().isdecimal() else each.strip() for each in value.split(",")]
    return list(value) if isinstance(value, tuple) else value


def _use(answer: Answer) -> list[str]:
    facts = None if answer.model is None else answer.model.facts
    if facts is not None and facts.runner == "pooling":
        return ["    print(llm.llm_engine.vllm_config.model_config.model)"]
    return ['    for output in llm.generate(["The capital of France is"]):', "        print(output.outputs[0].text)"]


def _title(answer: Answer) -> str:
    budget = answer.plan.budget
    device = "" if budget is None else f" for {len(answer.devices)} x {budget.device}"
    verdict = {True: "fits", False: "DOES NOT FIT", None: "not known whether it fits"}[answer.fits]
    return f"{_one_line(answer.model_name) or 'any model'}{device}: {verdict}"


def _one_line(text: str) -> str:
    return " ".join(text.replace("\\", "/").replace('"', "'").split())


def _options(answer: Answer) -> list[str]:
    return [word for name, value in answer.launch.items() for word in option_words(name, value)]


def _yaml(value: object) -> str:
    """JSON is YAML, as long as it isn't escaped to ASCII."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
