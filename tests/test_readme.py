"""The README and the docs are true: their examples run, and what they name exists."""

import ast
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from grpojax import models, presets
from grpojax.__main__ import COMMANDS, main
from grpojax.families import FAMILIES
from grpojax.metrics import read_metrics
from grpojax.tasks import TASKS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [
    "README.md",
    "CHANGELOG.md",
    *(f"docs/{n}.md" for n in ("design", "algorithms", "benchmarks", "pods")),
]
# What makes the example's run a matter of seconds.
TINY = (
    "--steps 1 --model.num-layers 1 --model.embed-dim 16 --model.ffw-dim 16 "
    "--grpo.prompts-per-step 8 --grpo.group-size 2 --sft.max-steps 1 --sft.examples-per-step 8 "
    "--evaluation.examples 8 --evaluation.samples 2"
)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def files():
    """The Python blocks by the file name in their first line."""
    named = [re.fullmatch(r"# (\w+\.py)\n(.*)", block, re.DOTALL) for block in blocks("python")]
    assert all(named), "a Python block begins with `# FILE.py`"
    return {match[1]: match[2] for match in named}


def column(heading):
    """The names in the first column of the table whose head begins with `heading`."""
    table = README.partition(f"| {heading} |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `(\w+)", table, re.MULTILINE)


def commands():
    """The `grpojax` command lines of the shell blocks."""
    lines = "".join(blocks("sh")).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("grpojax ")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the README's files in it, and nothing of it imported afterwards."""
    written = files()
    for name, content in written.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in written:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_library_example_learns(capsys):
    exec(compile(files()["library.py"], "library.py", "exec"), {})
    rewards = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(rewards) == 12
    assert rewards[0] < 0.5 < 0.9 < rewards[-1]


def test_task_reward_and_config_of_the_readme_run_without_an_edit_of_the_package(folder, capsys):
    codes = []
    for command in commands():
        if command[1:2] == ["my_config.py"]:
            codes.append((command[0], main([*command, *TINY.split()])))
    # One step is not enough for the accuracy that the supervised stage is asked for.
    assert codes == [("train", 0), ("sft", 1), ("train", 0), ("train", 0)], capsys.readouterr()
    run = folder / "runs/letters/grpo"
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["task"], config["init"]) == ("my_task:make", "runs/letters/cold_start")
    assert config["rewards"] == {"accuracy": 1.0, "my_rewards:short": 0.2}
    (line,) = (line for line in read_metrics(run) if "loss" in line)
    accuracy, short = line["rewards/accuracy/mean"], line["rewards/short/mean"]
    assert line["reward"] == pytest.approx(accuracy + 0.2 * short)
    assert 0 <= short <= 1 and line["completions/invalid"] == 0
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == sorted(
        [*files(), "runs"]
    )


def test_the_command_table_is_the_command_line():
    assert column("command") == list(COMMANDS)


def test_every_command_and_flag_of_the_readme_exists(capsys):
    assert {command[0] for command in commands()} <= set(COMMANDS)
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
    known = re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out)
    assert set(re.findall(r"(?<=[\s`])--[a-z][\w.-]*", README)) <= set(known)


def test_every_preset_and_model_is_in_the_readme():
    assert column("preset") == [preset.__name__ for preset in presets.PRESETS]
    ours = {f for f, x in vars(models).items() if getattr(x, "__module__", "") == models.__name__}
    sentence = README.partition("functions of [`models.py`]")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == ours


def test_every_task_is_in_the_readme():
    assert column("task") == list(TASKS)


def test_every_family_is_in_the_readme():
    assert column("family") == list(FAMILIES)


def test_every_config_and_target_of_the_readme_exists():
    named = set(re.findall(r"configs/\w+\.py", README))
    assert named == {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
        if not link.startswith("https://"):
            assert (ROOT / page).parent.joinpath(link.partition("#")[0]).exists(), link


def test_the_tree_in_the_design_is_the_package():
    tree = (ROOT / "docs/design.md").read_text().partition("\ngrpojax/\n")[2].partition("\n```")[0]
    named = re.findall(r"^ +(\w+\.py|\w+/)", tree, re.MULTILINE)
    found = {path.name for path in (ROOT / "grpojax").glob("*.py")} | {
        "rewards/",
        "tasks/",
        "families/",
    }
    assert sorted(named) == sorted(found)


def test_functions_and_tests_named_in_the_algorithms_exist():
    text = (ROOT / "docs/algorithms.md").read_text()
    for module, name in re.findall(r"`(\w+)\.py::(?!test_)(\w+)`", text):
        assert hasattr(importlib.import_module(f"grpojax.{module}"), name), name
    tests = {
        node.name: path.stem
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", text)
    assert len(named) > 20
    for file, name in named:
        assert tests.get(name) == file, name
