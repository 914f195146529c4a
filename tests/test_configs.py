"""The shipped configs: each is opened and checked as `--dry-run` does, without weights or data."""

import json
import re
from pathlib import Path

import pytest

from grpojax.__main__ import main

CONFIGS = Path(__file__).parent.parent / "configs"
PROBLEM = {"answer": "It is 2. #### 2", "solution": "It is $\\boxed{2}$."}


@pytest.fixture
def data(tmp_path):
    """Published files of GSM8K and MATH in one: each task reads its own fields."""
    for split in ("train", "test"):
        asked = [f"What is 1 + 1 in {split}, for the {i}th time?" for i in range(512)]
        rows = [json.dumps({**PROBLEM, "question": q, "problem": q}) for q in asked]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_a_config_is_valid_without_its_weights(path, data, capsys, monkeypatch):
    """Nothing but the weights, their tokenizer and the accelerator is left out."""
    monkeypatch.chdir(data)
    here = ["--init", "", "--tokenizer", "bytes", "--no-chat", "--system", ""]
    here += ["--sampling.stop", "--model.compute-dtype", "float32"]
    here += ["--data.dir", str(data), "--data.cache", str(data / "cache")]
    here += {  # bytes need more tokens, and eight devices as many prompts
        "quickstart": ["--model.vocab-size", "264"],
        "gsm8k_smollm2_135m": ["--grpo.prompts-per-step", "8"],
        "math_qwen2p5_7b_lora": ["--model.lora-rank", "0"],  # adapters need their base
    }.get(path.stem, [])
    code = main(["train", str(path), "--dry-run", *here])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "parameters" in said.out


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gsm8k_qwen2p5_0p5b", 0.494), ("gsm8k_qwen3_0p6b", 0.596), ("gsm8k_gemma3_1b", 1.000),
        ("gsm8k_llama3p2_1b", 1.236), ("math_qwen2p5_32b", 32.76), ("math_qwen3_30b_a3b", 30.53),
        ("addition_smollm2_135m", 0.1345),
    ],
)  # fmt: skip
def test_a_model_has_as_many_parameters_as_its_authors_say(name, billions, data, capsys):
    here = ["--init", "", "--tokenizer", "bytes", "--no-chat", "--system", "", "--sampling.stop"]
    here += ["--model.compute-dtype", "float32", "--data.dir", str(data)]
    here += ["--data.cache", str(data / "cache"), "--mesh.data", "1", "--mesh.fsdp", "-1"]
    assert main(["train", str(CONFIGS / f"{name}.py"), "--dry-run", *here]) == 0
    count = int(re.search(r"parameters +([\d,]+)", capsys.readouterr().out)[1].replace(",", ""))
    assert count / 1e9 == pytest.approx(billions, rel=2e-3)
