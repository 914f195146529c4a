"""Eight fake devices, shapes checked at every call, and a tiny policy that compiles in a second."""

import math
import os
import pathlib
import pkgutil

# Tests compile far longer than they run: less effort on code halves it. Read when JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # of a TPU's compiler that is installed, nothing

import jax
from jaxtyping import install_import_hook

ROOT = pathlib.Path(__file__).parent.parent

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# The structs are also built of shapes, shardings and axes, so only functions are checked.
modules = [m.name for m in pkgutil.walk_packages([str(ROOT / "grpojax")], "grpojax.")]
install_import_hook([m for m in modules if m != "grpojax.types"], "beartype.beartype")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from flax.core import meta  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

from grpojax.config import MeshConfig, ModelConfig  # noqa: E402
from grpojax.mesh import make_mesh, mesh_of  # noqa: E402
from grpojax.model import Policy, abstract_params, init_params  # noqa: E402
from grpojax.pretrained import load_params  # noqa: E402
from grpojax.types import Params, Prompts  # noqa: E402

TINY = ModelConfig(
    vocab_size=50, embed_dim=32, ffw_dim=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
)


@pytest.fixture(scope="session")
def policy() -> Policy:
    """A policy of two layers and 50 tokens."""
    return Policy(TINY)


@pytest.fixture(scope="session")
def params(policy) -> Params:
    """Its parameters, all but the norms three times as large as at initialisation: distributions
    far from uniform."""
    params = meta.unbox(init_params(policy, jax.random.key(0)))
    return jax.tree.map_with_path(lambda path, x: x if "scale" in str(path) else 3 * x, params)


@pytest.fixture(scope="session")
def prompts() -> Prompts:
    """Four left-padded prompts of 1, 3, 6 and 7 tokens in 7 columns."""
    tokens = np.random.default_rng(0).integers(4, 50, (4, 7)).astype(np.int32)
    mask = np.arange(7) >= 7 - np.array([1, 3, 6, 7])[:, None]
    return Prompts(tokens, mask, np.array([11, 5, 29, 8], np.int32))


def first_devices(data: int = 1, fsdp: int = 1, tensor: int = 1, expert: int = 1) -> Mesh:
    """A mesh over as many of the devices as its axes want."""
    sizes = {"data": data, "fsdp": fsdp, "expert": expert, "tensor": tensor}
    return mesh_of(jax.devices()[: math.prod(sizes.values())], **sizes)


def load_folder(folder, model: ModelConfig) -> Params:
    """The float32 parameters in `folder`, on all devices."""
    return load_params(folder, model, abstract_params(Policy(model), make_mesh(MeshConfig())))
