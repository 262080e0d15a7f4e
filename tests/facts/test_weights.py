"""Headers of real and of hostile checkpoints, and which files of a folder count."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from vllm_autofit.architecture import Tensor
from vllm_autofit.errors import WeightsError
from vllm_autofit.facts.weights import read_tensors

OFFLINE = {"HF_HUB_OFFLINE": "1"}
TWO = {
    "a.weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b.scale": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
}


def write(file: Path, header: Mapping[str, Any] | bytes, data_bytes: int = 16, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data_bytes))


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [0, 16], **changes}}


def index(folder: Path, files: Mapping[str, str], total: int | None = None) -> None:
    content = {"metadata": {} if total is None else {"total_size": total}, "weight_map": dict(files)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def test_a_header_is_read_without_the_weights(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"__metadata__": {"format": "pt"}, **TWO})
    found = read_tensors(str(tmp_path))
    assert found.tensors == (Tensor("a.weight", (2, 3), "BF16", 12), Tensor("b.scale", (), "F32", 4))
    assert (found.source, found.exact, found.notes, found.bytes) == ("folder", True, (), 16)


def test_four_bit_elements_take_half_a_byte(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", entry(dtype="F4", shape=[4, 8]))
    assert read_tensors(str(tmp_path)).bytes == 16


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (entry(shape=[2**63, 1]), "impossible shape"),
        (entry(shape=[2**40, 2**40]), "impossible shape"),
        (entry(shape=[-2, -4]), "impossible shape"),
        (entry(shape=[2.0, 4]), "impossible shape"),
        (entry(shape=[True, 8]), "impossible shape"),
        (entry(shape={"2": 4}), "not a list"),
        (entry(shape=[2, 3]), "don't match"),
        (entry(data_offsets=[0, 8]), "don't match"),
        (entry(data_offsets=[16, 0]), "don't match"),
        (entry(data_offsets=[-16, 0]), "don't match"),
        (entry(data_offsets=[0]), "no known dtype"),
        (entry(data_offsets=None), "no known dtype"),
        (entry(dtype="F17"), "no known dtype"),
        (entry(dtype=["BF16"]), "no known dtype"),
        ({"a": 7}, "no known dtype"),
        ({"a": {}}, "no known dtype"),
        ({**entry(), "b": {"dtype": "U8", "shape": [8], "data_offsets": [8, 16]}}, "overlap"),
        ({"b": {"dtype": "U8", "shape": [8], "data_offsets": [8, 16]}}, "gap"),
        ({"b": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}, "the file holds 16"),
        (b"[1, 2]", "not a JSON object"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 1_000_000, "not JSON"),
        (b'{"a": ' + b"9" * 1_000_000 + b"}", "not JSON"),
    ],
)
def test_a_hostile_header_is_an_error(tmp_path: Path, header: Mapping[str, Any] | bytes, says: str) -> None:
    write(tmp_path / "model.safetensors", header)
    with pytest.raises(WeightsError, match=says):
        read_tensors(str(tmp_path))


@pytest.mark.parametrize("length", [17, 2**31, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file_is_an_error(tmp_path: Path, length: int) -> None:
    write(tmp_path / "model.safetensors", b"{}", length=length, data_bytes=10)
    with pytest.raises(WeightsError, match="should have"):
        read_tensors(str(tmp_path))


def test_a_header_of_100_mb_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((100_000_000).to_bytes(8, "little"))
    os.truncate(file, 200_000_000)  # a hole: takes no room on the disk
    with pytest.raises(WeightsError, match="more than 25000000"):
        read_tensors(str(tmp_path))


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_too_short_for_a_header_is_an_error(tmp_path: Path, size: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(size))
    with pytest.raises(WeightsError, match="too few"):
        read_tensors(str(tmp_path))


def test_only_files_of_the_index_count(tmp_path: Path) -> None:
    write(tmp_path / "model-1.safetensors", entry())
    write(tmp_path / "stray.safetensors", {"c": entry()["a"]})
    index(tmp_path, {"a": "model-1.safetensors"})
    assert [tensor.name for tensor in read_tensors(str(tmp_path)).tensors] == ["a"]


def test_the_consolidated_copy_of_the_same_weights_does_not_count(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", entry())
    write(tmp_path / "consolidated.safetensors", {"wq": entry()["a"]})
    assert [tensor.name for tensor in read_tensors(str(tmp_path)).tensors] == ["a"]


def test_a_consolidated_checkpoint_alone_counts(tmp_path: Path) -> None:
    write(tmp_path / "consolidated.safetensors", {"wq": entry()["a"]})
    assert [tensor.name for tensor in read_tensors(str(tmp_path)).tensors] == ["wq"]


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..\\m.safetensors"]
)
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    index(tmp_path, {"a": name})
    with pytest.raises(WeightsError, match="not in the same folder"):
        read_tensors(str(tmp_path))


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_an_index_without_a_map_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError):
        read_tensors(str(tmp_path))


def test_a_missing_file_is_counted_by_the_index(tmp_path: Path) -> None:
    write(tmp_path / "model-1.safetensors", entry())
    index(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"}, total=1016)
    found = read_tensors(str(tmp_path))
    assert (found.bytes, found.exact) == (1016, False)
    assert "model-2.safetensors" in found.notes[0]


@pytest.mark.parametrize("total", [None, -5, 10, 2**63, 1.5])
def test_a_missing_file_of_unknown_size_is_said(tmp_path: Path, total: Any) -> None:
    write(tmp_path / "model-1.safetensors", entry())
    index(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"}, total=total)
    found = read_tensors(str(tmp_path))
    assert (found.bytes, found.exact) == (16, False)
    assert "size is not known" in found.notes[1]


def test_an_index_without_any_of_its_files_is_an_error(tmp_path: Path) -> None:
    index(tmp_path, {"a": "model-1.safetensors"})
    with pytest.raises(WeightsError, match="missing"):
        read_tensors(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "source"), [("pytorch_model.bin", "folder"), ("model.pt", "folder"), ("m.gguf", "gguf")]
)
def test_other_formats_count_by_their_size(tmp_path: Path, name: str, source: str) -> None:
    (tmp_path / name).write_bytes(bytes(1000))
    (tmp_path / "training_args.bin").write_bytes(bytes(50))
    found = read_tensors(str(tmp_path))
    assert (found.bytes, found.source, found.exact, len(found.notes)) == (1000, source, False, 1)


def test_a_gguf_file_counts_by_its_size(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(1000))
    found = read_tensors(str(file))
    assert (found.bytes, found.source, found.exact) == (1000, "gguf", False)


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="no weights"):
        read_tensors(str(tmp_path))


def _loop(file: Path) -> None:
    file.symlink_to(file)


def _pipe(file: Path) -> None:
    os.mkfifo(file)


def _device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def _folder(file: Path) -> None:
    file.mkdir()


@pytest.mark.parametrize("make", [_loop, _pipe, _device, _folder])
def test_what_is_no_file_is_never_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError):
        read_tensors(str(tmp_path))
    index(tmp_path, {"a": "model.safetensors"})
    with pytest.raises(WeightsError):
        read_tensors(str(tmp_path))


def _cached(home: Path, commit: str = "0123abc") -> Path:
    repository = home / "hub" / "models--some--model"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    blob = repository / "blob"
    write(blob, entry())
    (snapshot / "model.safetensors").symlink_to(blob)
    return snapshot


@pytest.mark.parametrize("revision", [None, "main", "0123abc"])
def test_the_local_hub_cache_is_read(tmp_path: Path, revision: str | None) -> None:
    _cached(tmp_path)
    found = read_tensors("some/model", revision, environ={"HF_HOME": str(tmp_path), **OFFLINE})
    assert (found.bytes, found.source, found.exact) == (16, "hub cache", True)


@pytest.mark.parametrize("revision", ["other", "../snapshots/0123abc", "/etc"])
def test_another_revision_is_not_the_cached_one(tmp_path: Path, revision: str) -> None:
    _cached(tmp_path)
    with pytest.raises(WeightsError):
        read_tensors("some/model", revision, environ={"HF_HOME": str(tmp_path), **OFFLINE})


def test_offline_without_a_copy_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        read_tensors("some/model", environ={"HF_HOME": str(tmp_path), **OFFLINE})


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks a hub for: the list of files, the index, and ranges of weight files."""

    folder: Path
    served: ClassVar[list[tuple[str, int]]] = []

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        file = self.folder / Path(self.path.partition("?")[0]).name
        if self.path.startswith("/api/models/some/model"):
            files = [{"rfilename": each.name, "size": each.stat().st_size} for each in self.folder.iterdir()]
            content, status = json.dumps({"id": "some/model", "sha": "f" * 40, "siblings": files}).encode(), 200
        elif self.path.startswith("/some/model/resolve/") and file.is_file():
            content, status = file.read_bytes(), 200
            if span := self.headers.get("Range"):
                first, _, last = span.removeprefix("bytes=").partition("-")
                content, status = content[int(first) : int(last) + 1], 206
        else:
            content, status = b"", 404
        self.send_response(status)
        for name, value in (("X-Repo-Commit", "f" * 40), ("ETag", '"1"'), ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.served.append((file.name, len(content)))
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder of a hub's only model, and an environment that leads there."""
    folder = tmp_path / "served"
    folder.mkdir()
    served: list[tuple[str, int]] = []
    handler = type("Handler", (Hub,), {"folder": folder, "served": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield folder, {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
        assert not [size for name, size in served if name.endswith(".safetensors") and size > 100_001]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_headers_come_from_the_hub_by_range(hub: tuple[Path, dict[str, str]]) -> None:
    folder, environ = hub
    for number in (1, 2):
        large = {f"w{number}": {"dtype": "U8", "shape": [400_000], "data_offsets": [0, 400_000]}}
        write(folder / f"model-{number}.safetensors", large, data_bytes=400_000)
    write(folder / "stray.safetensors", entry())
    index(folder, {"w1": "model-1.safetensors", "w2": "model-2.safetensors"})
    found = read_tensors("some/model", environ=environ)
    assert [tensor.name for tensor in found.tensors] == ["w1", "w2"]
    assert (found.bytes, found.source, found.exact) == (800_000, "hub", True)


def test_a_hostile_header_on_the_hub_is_an_error(hub: tuple[Path, dict[str, str]]) -> None:
    folder, environ = hub
    write(folder / "model.safetensors", entry(shape=[2**63]))
    with pytest.raises(WeightsError, match="impossible shape"):
        read_tensors("some/model", environ=environ)


def test_a_model_that_the_hub_does_not_have_is_an_error(hub: tuple[Path, dict[str, str]]) -> None:
    with pytest.raises(WeightsError, match="did not answer"):
        read_tensors("no/model", environ=hub[1])


@pytest.mark.parametrize("model", ["/no/such/folder", "./none", "a/b/c", "a\0b"])
def test_a_path_that_is_not_there_is_no_hub_name(model: str) -> None:
    with pytest.raises(WeightsError):
        read_tensors(model, environ=OFFLINE)
