"""Which weights does this engine run? A digest that differs when the weights do, cheap enough for every start.

For a local model folder: name and size of every weight file, each safetensors header in full (names, shapes,
offsets of all tensors), and 64 samples of 4 KiB spread over each file. Reading all weights would take minutes;
fine-tuning or re-quantising changes values everywhere, so samples meet it. A change of a few values only could be
missed: whoever patches single tensors in place should set `weights_version`, which replaces all of this.
For a model named by hub id: the id and its commit, where that is known, or the revision asked for.
"""

import hashlib
from pathlib import Path
from typing import Final

__all__ = ["weights_identity"]

_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_HEADER_BYTES_MAX: Final = 64 << 20
_SAMPLE_BYTES: Final = 4096
_SAMPLES: Final = 64


def weights_identity(model: str, revision: str | None) -> str:
    """Text that stands for the weights of `model` (a folder, a file or a hub id)."""
    path = Path(model)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.is_file())
        # A format that we do not know: then every file counts.
        files = [file for file in inside if file.suffix in _SUFFIXES] or inside
    else:
        return f"hub:{model}@{revision or 'default'}"
    digest = hashlib.sha256()
    for file in files:
        _add_file(digest, file)
    return f"files:{len(files)}:{digest.hexdigest()}"


def _add_file(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name}\0{size}\0".encode())
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            length = min(int.from_bytes(file.read(8), "little"), _HEADER_BYTES_MAX, size)
            digest.update(file.read(length))
        for sample in range(_SAMPLES):
            file.seek(sample * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
