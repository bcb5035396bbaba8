"""Does other weights mean another identity, and the same weights the same one, wherever they lie?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pegashm.connector.weights import weights_identity

BODY = bytes(range(256)) * 4096  # 1 MiB


def safetensors(path: Path, body: bytes = BODY, tensor: str = "layer.0.weight") -> Path:
    """The format's frame: header length, header, bytes."""
    header = json.dumps(
        {tensor: {"dtype": "I8", "shape": [len(body)], "data_offsets": [0, len(body)]}}
    )
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + body)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for part in (1, 2):
        safetensors(folder / f"model-{part}.safetensors", BODY + bytes([part]))
    (folder / "config.json").write_text("{}")
    return folder


def test_a_copy_elsewhere_is_the_same(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "another name"
    shutil.copytree(model, other)
    (other / "README.md").write_text("not weights")
    assert weights_identity(str(model), None) == weights_identity(str(other), "main")


def every_value_moved(folder: Path) -> None:
    safetensors(folder / "model-1.safetensors", BODY[1:] + BODY[:1] + b"\x01")


def first_byte(folder: Path) -> None:
    safetensors(folder / "model-1.safetensors", b"\xff" + BODY[1:] + b"\x01")


def last_byte(folder: Path) -> None:
    safetensors(folder / "model-2.safetensors", BODY + b"\xff")


def tensor_renamed(folder: Path) -> None:
    safetensors(folder / "model-1.safetensors", BODY + b"\x01", "layer.1.weight")


def longer(folder: Path) -> None:
    with (folder / "model-1.safetensors").open("ab") as file:
        file.write(b"\x00")


def file_renamed(folder: Path) -> None:
    (folder / "model-1.safetensors").rename(folder / "model-3.safetensors")


def file_gone(folder: Path) -> None:
    (folder / "model-2.safetensors").unlink()


def file_more(folder: Path) -> None:
    safetensors(folder / "adapter.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        every_value_moved,
        first_byte,
        last_byte,
        tensor_renamed,
        longer,
        file_renamed,
        file_gone,
        file_more,
    ],
)
def test_other_weights_are_another_identity(model: Path, change: object) -> None:
    before = weights_identity(str(model), None)
    assert callable(change)
    change(model)
    assert before != weights_identity(str(model), None)


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    """One changed byte anywhere in a file of a few KiB is met."""
    seen = set()
    for place in range(0, 9000, 1000):
        body = bytearray(9000)
        body[place] = 1
        seen.add(weights_identity(str(safetensors(tmp_path / "m.safetensors", bytes(body))), None))
    assert 9 == len(seen)


@pytest.mark.parametrize("nbytes", [0, 1, 7, 100])
def test_files_that_are_no_safetensors_at_all(tmp_path: Path, nbytes: int) -> None:
    """A file cut short, or with a header length that cannot be: an identity, no error."""
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"\xff" * nbytes)
    assert weights_identity(str(path), None).startswith("files:1:")


def test_a_hub_model_is_its_id_and_revision() -> None:
    assert "hub:org/name@default" == weights_identity("org/name", None)
    assert "hub:org/name@v2" == weights_identity("org/name", "v2")
