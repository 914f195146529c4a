"""Peers: fresh random models, both ways between grpojax, transformers and peft.

`make test-peers` runs these; they need the extra `baselines`.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax.core.meta import unbox
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent.parent
sys.path += [str(ROOT / "tests"), str(ROOT / "tools")]

import make_goldens  # noqa: E402
from conftest import load_folder  # noqa: E402
from test_families import shared_logits  # noqa: E402

from grpojax.families import FAMILIES  # noqa: E402
from grpojax.lora import combine, split  # noqa: E402
from grpojax.model import Policy, init_params  # noqa: E402
from grpojax.peft import load_adapters, save_adapters  # noqa: E402
from grpojax.pretrained import read_model_config, save_params  # noqa: E402

every_family = pytest.mark.parametrize("family", FAMILIES)
logits_of = jax.jit(shared_logits, static_argnums=(0, 4))
SPLIT = 16
ENDS = {"eos_token_id": 2, "pad_token_id": 0}  # an export states the tokenizer's


def close(found, expected):
    """Logits after prompt token 15 and later ones, within the bound of the goldens."""
    expected = np.asarray(expected)[:, None, SPLIT - 1 :]
    bound = 2e-5 * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=0, atol=bound)


def rows(seed=0):
    """Left-padded rows of the goldens' lengths, and their mask."""
    random, width = np.random.default_rng(seed), max(make_goldens.LENGTHS)
    mask = np.arange(width) >= width - np.array(make_goldens.LENGTHS)[:, None]
    tokens = random.integers(3, make_goldens.SIZES["vocab_size"], mask.shape)
    return np.where(mask, tokens, 0).astype(np.int32), mask


def torch_logits(model, tokens, mask):
    seen = torch.tensor(mask)
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(
            torch.tensor(tokens, dtype=torch.long), attention_mask=seen.long(),
            position_ids=positions, use_cache=False,
        )  # fmt: skip
    return out.logits.numpy()


@st.composite
def shapes(draw):
    """What a family's random model may differ in from the goldens."""
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    heads = kv_heads * draw(st.sampled_from([1, 2]))
    return dict(
        num_key_value_heads=kv_heads,
        num_attention_heads=heads,
        hidden_size=heads * draw(st.sampled_from([8, 12])),
        intermediate_size=draw(st.sampled_from([20, 33])),
        num_hidden_layers=draw(st.sampled_from([2, 5])),
        tie_word_embeddings=draw(st.booleans()),
    ), draw(st.integers(3, 11))


@every_family
@settings(
    max_examples=4, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(shapes())
def test_fresh_random_models_give_the_logits_of_transformers(family, tmp_path_factory, drawn):
    sizes, window = drawn
    kind, chosen = make_goldens.MODELS[family]
    chosen = chosen | sizes
    if chosen.get("sliding_window"):
        chosen["sliding_window"] = window
    chosen.pop("layer_types", None)
    model = make_goldens.build(kind, chosen, seed=window)
    folder = tmp_path_factory.mktemp(family)
    model.save_pretrained(folder)
    config = read_model_config(folder)
    tokens, mask = rows(window)
    found = logits_of(Policy(config), load_folder(folder, config), tokens, mask, SPLIT)
    close(found, torch_logits(model, tokens, mask))


@every_family
def test_transformers_loads_an_export_and_gives_the_same_logits(family, tmp_path):
    source = ROOT / "tests/goldens" / family
    config, golden = read_model_config(source), np.load(source / "golden.npz")
    save_params(tmp_path, load_folder(source, config), config, jnp.dtype("float32"), ENDS)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    found = torch_logits(loaded.eval(), golden["tokens"], golden["mask"])
    seen = golden["mask"]
    np.testing.assert_allclose(found[seen], golden["logits"][seen], rtol=0, atol=1e-6)


@pytest.fixture
def adapted():
    """A Llama with adapters that do something, and its folder."""
    source = ROOT / "tests/goldens/llama"
    config = read_model_config(source)
    model = dataclasses.replace(config, lora_rank=3, lora_alpha=5.0, lora_targets=("query", "down"))
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(Policy(model), jax.random.key(0)))
    adapters, _ = split(unbox(shapes))
    adapters = jax.tree.map(
        lambda x: jnp.asarray(random.normal(0, 0.3, x.shape), jnp.float32), adapters
    )
    return source, model, adapters


def test_peft_loads_exported_adapters_and_gives_the_same_logits(adapted, tmp_path):
    source, model, adapters = adapted
    base = load_folder(source, dataclasses.replace(model, lora_rank=0))
    save_adapters(tmp_path, adapters, model, str(source))
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager"),
        tmp_path,
    ).eval()
    tokens, mask = rows()
    found = logits_of(Policy(model), combine(base, adapters), tokens, mask, SPLIT)
    expected = torch_logits(theirs, tokens, mask)
    close(found, expected)
    plain = logits_of(
        Policy(model), combine(base, jax.tree.map(jnp.zeros_like, adapters)), tokens, mask, SPLIT
    )
    assert np.abs(plain - found).max() > 0.1


def test_adapters_that_peft_saved_are_read(tmp_path):
    source = ROOT / "tests/goldens/qwen2"
    base = transformers.AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["v_proj", "gate_proj"])
    theirs = peft.get_peft_model(base, settings).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    config = read_model_config(source)
    adapters, model = load_adapters(tmp_path, config)
    assert (model.lora_rank, model.lora_alpha) == (4, 6.0)
    assert set(model.lora_targets) == {"value", "gate"}
    tokens, mask = rows()
    params = combine(load_folder(source, config), adapters)
    close(logits_of(Policy(model), params, tokens, mask, SPLIT), torch_logits(theirs, tokens, mask))
