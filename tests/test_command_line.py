"""The command line: what it refuses, in one line each, and what its help page says."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys

import jax
import pytest

from grpojax import doctor
from grpojax.__main__ import is_wrong_input, main
from grpojax.config import Config, ModelConfig

FILES = {
    "tiny.py": """
from grpojax.config import Config, GRPOConfig, ModelConfig

def get_config():
    model = ModelConfig(vocab_size=64, embed_dim=8, ffw_dim=8, num_layers=1, max_length=40)
    sizes = GRPOConfig(group_size=6, prompts_per_step=4)
    return Config(steps=7, model=model, grpo=sizes, sampling=SAMPLING, rewards={"accuracy": 0.75})

from grpojax.config import SamplingConfig
SAMPLING = SamplingConfig(prompt_length=16, completion_length=8)
""",
    "empty.py": "steps = 3\n",
    "number.py": "def get_config():\n    return 3\n",
    "refused.py": (
        "from grpojax.config import Config\n\ndef get_config():\n    return Config(steps=-4)\n"
    ),
    "misspelt.py": (
        "from grpojax.config import Config\n\ndef get_config():\n    return Config(stepz=4)\n"
    ),
    "syntax.py": "def get_config(:\n",
    "neighbour.py": (
        "import beside_the_config, in_current_folder\nfrom grpojax.config import Config\n\n"
        "def get_config():\n    return Config(steps=beside_the_config.STEPS)\n"
    ),
    "interrupted.py": "def get_config():\n    raise KeyboardInterrupt\n",
}

# A case a line: what it is, the arguments, a part of the error that names the thing and the value.
TINY = ["train", "tiny.py"]
PLAN = ["plan", "tiny.py", "--topology"]
WRONG = [
    ("no command", [], "a command is needed; there are train, sft,"),
    ("unknown command", ["trian"], "unknown command trian (did you mean train?)"),
    ("no config", ["train"], "train needs a config file before its flags, got none"),
    ("flags first", ["sft", "--workdir", "x"], "before its flags, got --workdir"),
    ("missing config file", ["train", "absent.py"], "config file absent.py does not exist"),
    ("no get_config", ["train", "empty.py"], "empty.py must define get_config()"),
    ("wrong type", ["train", "number.py"], "number.py must return a grpojax Config, got int"),
    ("config refused", ["train", "refused.py"], "line 4: steps must be above 0, got -4"),
    ("unknown field", ["train", "misspelt.py"], "misspelt.py, line 4: TypeError: Config.__init__"),
    ("not Python", ["sft", "syntax.py"], "syntax.py: SyntaxError: invalid syntax"),
    ("plan without a slice", ["plan", "tiny.py"], "topology must be KIND:SHAPE in chips, as v5p"),
    ("unknown slice", [*PLAN, "v5p-24"], "topology v5p-24: 24 TensorCores are no slice"),
    ("plan of PPO", [*PLAN, "v5e-8", "--algorithm", "ppo"], "a plan is of the policy alone"),
    ("plan of samplers", [*PLAN, "v5e-8", "--mesh.sampling", "2"], "set mesh.sampling=0, got 2"),
    ("nothing to search", [*PLAN, "v5e-64", "--search"], "no mesh of 64 devices fits"),
    ("fewer than none", [*PLAN, "v5e-8", "--compiled", "-1"], "compiled must be 0 or more, got -1"),
    ("workdir is a file", [*TINY, "--workdir", "empty.py"], "got the file empty.py"),
    ("unknown flag", [*TINY, "--stps", "5"], "--stps (did you mean --steps?)"),
    ("flag without its group", ["sft", "tiny.py", "--beta=1"], "(did you mean --grpo.beta?)"),
    ("unknown flag of train", [*TINY, "--dry-rn"], "(did you mean --dry-run?)"),
    ("flag of train only", ["sft", "tiny.py", "--allow-config-change"], "--allow-config-change"),
    ("no range", [*TINY, "--profile-steps", "3"], "with 1 <= a <= b <= steps=7, as in 3:5, got 3"),
    ("turned range", [*TINY, "--profile-steps", "5:3"], "profile_steps must be a:b with 1 <= a"),
    ("step 0", [*TINY, "--profile-steps", "0:3"], "steps=7, as in 3:5, got 0:3"),
    ("past the end", [*TINY, "--profile-steps", "7:8", "--steps", "7"], "got 7:8"),
    ("stray word", [*TINY, "5"], "unexpected argument 5"),
    ("not a number", [*TINY, "--grpo.beta", "b"], "--grpo.beta must be a number, got 'b'"),
    ("not whole", [*TINY, "--steps", "2.5"], "--steps must be a whole number, got '2.5'"),
    ("no value", [*TINY, "--steps"], "--steps must be followed by a value, got none"),
    ("steps", [*TINY, "--steps", "0"], "steps must be above 0, got 0"),
    ("G", [*TINY, "--grpo.group-size", "1"], "no relative advantage), got 1"),
    ("B", [*TINY, "--grpo.minibatches", "3"], "prompts_per_step=4 must divide by"),
    ("B in parts", [*TINY, "--grpo.microbatches", "8"], "microbatches = 8; try 8"),
    ("beta", [*TINY, "--grpo.beta", "-0.1"], "beta must be 0 or more (it is a weight), got -0.1"),
    ("beta nan", [*TINY, "--grpo.beta", "nan"], "got nan"),
    ("clip_low", [*TINY, "--grpo.clip-low", "0"], "and at most 1 (it never binds), got 0"),
    ("choice", [*TINY, "--grpo.reduction", "mean"], "must be one of 'sequence_mean', 'tok"),
    ("schedule", [*TINY, "--optimizer.schedule", "step"], "got 'step'"),
    ("temperature", [*TINY, "--sampling.temperature", "0"], "temperature must be above 0, got 0"),
    ("length", [*TINY, "--sampling.prompt-length", "33"], "33 + 8 must be at most"),
    (
        "learning rate",
        [*TINY, "--sft.optimizer.learning-rate", "0"],
        "learning_rate must be above 0, got 0",
    ),
    ("head_dim", [*TINY, "--model.head-dim", "7"], "head_dim must be even (rotary pairs), got 7"),
    ("heads", [*TINY, "--model.num-heads", "3"], "num_heads=3 must be a multiple of"),
    (
        "axis 0",
        [*TINY, "--mesh.tensor", "0"],
        "must be above 0, or -1 for the rest, got (-1, 1, 1, 0)",
    ),
    (
        "two axes -1",
        [*TINY, "--mesh.fsdp", "-1"],
        "at most one mesh axis may be -1, got (-1, -1, 1, 1)",
    ),
    ("half a reward", [*TINY, "--rewards", "format"], "of a name and a weight, got format"),
    ("weight", [*TINY, "--rewards", "format", "x"], "--rewards must be a number, got 'x'"),
    (
        "weights 0",
        [*TINY, "--rewards", "format", "0"],
        "a weight other than 0, got {'format': 0.0}",
    ),
    ("no reward", [*TINY, "--rewards"], "rewards must name at least one reward, got none"),
    ("no run", ["evaluate"], "evaluate needs at least one run directory, got none"),
    ("absent run", ["evaluate", "absent"], "folder absent does not exist; name a run directory"),
    ("absent source", ["sample", "absent", "--prompt", "1+1"], "folder absent does not exist"),
    ("report of nothing", ["report", "absent"], "folder absent does not exist"),
    (
        "split",
        ["evaluate", ".", "--split", "dev"],
        "one of 'train', 'validation', 'test', got 'dev'",
    ),
    ("pass@k", ["evaluate", ".", "--samples", "8", "--k", "4", "9"], "from 1 to samples=8, got 9"),
    ("step", ["evaluate", ".", "--steps", "last"], "--steps must be whole numbers, got 'last'"),
    ("step below 0", ["evaluate", ".", "--steps", "5", "-1"], "steps must be 0 or more, got -1"),
    ("no folder", ["evaluate", ".", "--out", "x/y"], "a file in a folder that exists, got x/y"),
    ("no prompt", ["sample", "."], "grpojax sample needs --prompt STR text to complete"),
    (
        "top_p",
        ["sample", ".", "--prompt", "1", "--top-p", "0"],
        "top_p must be above 0 and at most 1 (off), got 0",
    ),
    ("no model", ["import"], "grpojax import needs NAME of the model"),
    ("adapters of nothing", [*TINY, "--model.lora-rank", "2"], "lora_rank=2 needs a base to adapt"),
    ("unknown reward", [*TINY, "--rewards", "acc", "1"], "module:function, got 'acc'"),
    ("unknown task", [*TINY, "--task", "additions"], "module:function, got 'additions'"),
    ("task's module", [*TINY, "--task", "nope:make"], "'nope:make' must name a module that can be"),
    ("missing model", [*TINY, "--init", "absent"], "init=absent does not exist"),
    ("missing tokenizer", [*TINY, "--tokenizer", "absent"], "no tokenizer at absent"),
    ("bf16 on CPU", [*TINY, "--model.compute-dtype", "bfloat16"], "needs an accelerator"),
    (
        "mesh",
        [*TINY, "--mesh.data", "3"],
        "mesh data=3, fsdp=1, expert=1, tensor=1 must multiply to the 8",
    ),
    ("not a run", ["evaluate", "."], "config.json"),
    ("unknown model", ["import", "smollm9"], "smollm9"),
    ("doctor's flag", ["doctor", "--fix"], "unknown flag --fix"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.mark.parametrize("args, part", [pytest.param(a, p, id=name) for name, a, p in WRONG])
def test_wrong_input_ends_in_one_line_and_exit_2(args, part, capsys):
    assert main(args) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and said.err.endswith("\n")
    assert part in said.err


def test_one_line_stays_whole_however_narrow_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    name = "a_rather_long_name_" * 8
    assert main([*TINY, "--model.head-dim", name]) == 2
    assert capsys.readouterr().err.endswith(f"got '{name}'\n")
    assert os.environ["COLUMNS"] == "40"


def flags_of(kind: type, prefix: str = "--") -> list[str]:
    names = []
    for part in dataclasses.fields(kind):
        flag = prefix + part.name.replace("_", "-")
        nested = dataclasses.is_dataclass(part.type)
        names += flags_of(part.type, f"{flag}.") if nested else [flag]
    return names


def help_entries(capsys, *args: str) -> dict[str, tuple[str, str]]:
    """The help page as {flag: (its type, its meaning and default)}."""
    assert main([*args, "--help"]) == 0
    entries, flag = {}, ""
    for row in capsys.readouterr().out.splitlines():
        assert len(row) <= 100
        if found := re.match(r"[│ ] (--[\w.-]+)([^│]*)", row):
            flag = found[1]
            entries[flag] = (found[2].strip(), "")
        elif flag and row[1:].startswith("       "):
            kind, meaning = entries[flag]
            entries[flag] = (kind, f"{meaning} {row.strip('│ ')}".strip())
    return entries


def test_help_shows_type_meaning_and_the_config_files_own_default(capsys):
    entries = help_entries(capsys, "train", "tiny.py")
    assert entries["--grpo.group-size"] == ("INT", "G, completions per prompt (default: 6)")
    assert entries["--steps"] == ("INT", "batches of prompts sampled (default: 7)")
    assert entries["--model.embed-dim"] == ("INT", "D, width (default: 8)")
    assert entries["--grpo.beta"][0] == "FLOAT"
    assert entries["--grpo.reduction"][0].startswith("{sequence_mean,token_mean,constant,")
    assert entries["--workdir"][1].endswith("(default: runs/tiny)")
    kind, meaning = entries["--rewards"]
    assert kind == "NAME WEIGHT ..." and meaning.endswith("(default: accuracy 0.75)")


def test_help_explains_every_field(capsys):
    entries = help_entries(capsys, "sft", "tiny.py")
    for flag in flags_of(Config):
        meaning = entries[flag][1].partition("(default:")[0]
        assert len(meaning) > 5, f"{flag} has no meaning in --help; put its comment above the field"


def test_help_without_a_config_file_shows_the_defaults(capsys):
    entries = help_entries(capsys, "train")
    assert entries["--steps"][1].endswith(f"(default: {Config.steps})")


def test_config_file_imports_from_its_own_and_the_current_folder(folder, monkeypatch, capsys):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "in_current_folder.py").write_text("")
    (folder / "beside_the_config.py").write_text("STEPS = 31\n")
    monkeypatch.chdir(folder / "elsewhere")
    entries = help_entries(capsys, "train", "../neighbour.py")
    assert entries["--steps"][1].endswith("(default: 31)")


def test_interrupt_outside_training_is_quiet(capsys):
    assert main(["train", "interrupted.py"]) == 130
    assert capsys.readouterr() == ("", "")


def caught(function, *args, **kwargs) -> ValueError:
    with pytest.raises(ValueError) as info:
        function(*args, **kwargs)
    return info.value


def test_value_error_from_the_depth_of_a_library_is_a_crash():
    assert is_wrong_input(caught(ModelConfig, head_dim=3))
    assert not is_wrong_input(caught(json.loads, "not json"))
    shortened = caught(ModelConfig, head_dim=3)
    shortened.add_note("JAX has removed its internal frames")
    assert not is_wrong_input(shortened)


def test_help_and_wrong_input_do_not_wait_for_jax():
    code = """if True:
        import sys
        from grpojax.__main__ import main
        codes = main(["--help"]), main(["train", "tiny.py", "--steps", "0"])
        sys.exit(codes != (0, 2) or "jax" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "  evaluate  " in done.stdout


def test_doctor_prints_versions_and_devices(capsys):
    assert main(["doctor"]) == 0
    page = capsys.readouterr().out
    rows = dict(re.split(r"  +", row, maxsplit=1) for row in page.splitlines())
    assert rows["Python"].startswith(platform.python_version())
    assert rows["jax"] == importlib.metadata.version("jax")
    assert "GiB" in rows["free disk"]
    assert any(re.fullmatch(r"(cpu|cuda|gpu|tpu):0", name) for name in rows)
    assert "missing" in rows
    assert rows["compiled"] == f"kept in {jax.config.jax_compilation_cache_dir}"
    assert re.fullmatch(r"[\d.]+ .FLOP/s, [\d.]+ .B/s, (measured|published)", rows["roofline"])


def test_doctor_names_packages_that_are_too_old(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    _, missing = doctor.installed_packages()
    assert any(line.startswith("jax is 0.0.1: pip install 'jax>=") for line in missing)
    assert not any("pytest" in line for line in missing)


def test_doctor_knows_an_accelerator_by_its_driver_files(tmp_path):
    assert doctor.accelerators(tmp_path) == []
    (tmp_path / "nvidiactl").touch()
    assert doctor.accelerators(tmp_path) == []
    (tmp_path / "nvidia0").touch()
    assert doctor.accelerators(tmp_path) == [("an NVIDIA GPU", "cuda")]


def test_versions_are_compared_as_numbers():
    assert doctor.release("0.9.1") < doctor.release("0.10") < doctor.release("0.10.2rc1")
