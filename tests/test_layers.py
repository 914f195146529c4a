"""The house's walls: who may import whom, which library stands behind which file, how long a file
is."""

import ast
import dataclasses
from pathlib import Path

import pytest

from grpojax import config

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "grpojax"

LEVELS = [
    {
        "types",
        "architecture",
        "objective",
        "optimization",
        "sources",
        "config",
        "checks",
        "names",
        "task",
        "signals",
        "storage",
        "manifest",
        "hosts",
    },
    {"attention", "cudnn", "splash", "kernels"}
    | {"rotary", "layers", "experts", "lora", "families", "sharding", "mesh"}
    | {"grpo", "advantages", "surrogates", "kl", "ppo", "coefficients"}
    | {"optimizer", "gradients", "roofline", "profiler", "work", "topology", "collectives"}
    | {"chat", "tokenizer", "rewards", "metrics", "console", "checkpoint", "presets", "models"}
    | {"comparison", "estimates", "coleg", "drawing", "slices"},
    {"model", "layout", "verdicts", "tasks", "summary", "vocabulary", "steps", "weigher", "pairs"}
    | {"ledger"},
    {"sampling", "scoring", "pretrained", "peft", "gguf", "hub", "data", "contamination"}
    | {"scalar", "critic", "reward_model", "forecast", "search"},
    {"learner", "run"},
    {
        "answers",
        "measures",
        "evaluate",
        "arithmetic",
        "sample",
        "export",
        "rollout",
        "pipeline",
        "actor_critic",
        "iteration",
        "programs",
    },
    {"train", "sft", "scoreboard", "plan", "blueprint"},
    {"experiment", "report", "curves"},
    {"__main__", "arguments", "parsing", "doctor", "compilation"},
]
# Files of one noun, split for length, see each other; so do the files of a folder.
FAMILIES = [
    {"checks", "storage", "manifest", "hosts"},
    {"sharding", "mesh", "layers", "experts"},
    {"model", "layout"},
    {"kernels", "cudnn", "splash"},
    {"roofline", "topology"},
    {"forecast", "search"},
    {"plan", "blueprint"},
    {"tokenizer", "chat"},
    {"grpo", "advantages", "surrogates", "kl", "ppo", "coefficients"},
    {"config", "architecture", "objective", "optimization", "sources", "checks"},
    {"metrics", "console"},
    {"scalar", "critic", "reward_model"},
    {"pretrained", "peft", "gguf", "hub"},
    {"report", "curves"},
    {"estimates", "coleg"},
    {"answers", "measures", "evaluate"},
    {"rollout", "pipeline"},
    LEVELS[8],
]
WALLS = {
    "flax.linen": {"model", "layers", "experts", "scalar", "sharding"},
    "flax.struct": {"types", "model", "experts"},
    "jax._src": {"cudnn"},
    "jax.experimental.pallas": {"splash"},
    "optax": {"gradients", "optimizer"},
    "qwix": {"layers", "layout", "lora"},
    "orbax": {"checkpoint"},
    "etils": {"storage"},
    "fsspec": {"storage"},
    "tokenizers": {"tokenizer", "vocabulary"},
    "jinja2": {"chat"},
    "sentencepiece": {"tokenizer", "vocabulary"},
    "safetensors": {"pretrained", "peft"},
    "gguf": {"gguf"},
    "huggingface_hub": {"hub"},
    "tensorflow_datasets": {"data", "tasks"},
    "grain": {"data", "tasks"},
    "rich": {"metrics", "console", "scoreboard"},
    "tensorboardX": {"metrics", "console"},
    "matplotlib": {"report", "curves"},
    "tyro": {"arguments", "parsing"},
    "math_verify": {"rewards"},
    "py3langid": {"rewards"},
}
WITHOUT_JAX = {"tasks", "rewards"}


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path):
    """Dotted names that a file imports, at its top or inside a function; `from a import b` is a.b.

    A relative import would hide its target here and is refused.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} imports relatively in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def noun(path):
    """The name in the tables: a file's, or its folder's."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(name):
    found = [i for i, names in enumerate(LEVELS) if name in names]
    assert found, f"{name} is in no row of LEVELS"
    return found[0]


# `__init__` names the public functions as strings and imports each when it is asked for.
FILES = [path for path in sources("grpojax") if path != PACKAGE / "__init__.py"]
every_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


@every_file
def test_imports_go_down_only(path):
    name = noun(path)
    for target in imports(path):
        if target.startswith("grpojax."):
            other = target.split(".")[1]
            family = other == name or any({name, other} <= family for family in FAMILIES)
            assert family or level(other) < level(name), f"{name} imports {other}"


@every_file
def test_third_party_libraries_stay_behind_their_walls(path):
    for target in imports(path):
        for library, files in WALLS.items():
            if f"{target}.".startswith(f"{library}."):
                assert noun(path) in files, f"{noun(path)} imports {library}"
        if noun(path) in WITHOUT_JAX:
            assert target.split(".")[0] not in {"jax", "jaxlib", "flax"}, f"{path} imports jax"


@pytest.mark.parametrize("folder", ["grpojax", "configs", "experiments", "tools", "tests"])
def test_no_file_is_longer_than_300_lines(folder):
    lengths = {path.name: len(path.read_text().splitlines()) for path in sources(folder)}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_every_config_field_is_read_outside_config():
    """An option that nothing reads is a lie."""
    trees = [
        ast.parse(path.read_text())
        for path in FILES
        if noun(path) not in ("config", "architecture", "objective", "optimization", "sources")
    ]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    read = {node.attr for node in nodes if isinstance(node.ctx, ast.Load)}
    kinds = [kind for kind in vars(config).values() if dataclasses.is_dataclass(kind)]
    fields = {f"{kind.__name__}.{f.name}" for kind in kinds for f in dataclasses.fields(kind)}
    assert sorted(field for field in fields if field.split(".")[1] not in read) == []
