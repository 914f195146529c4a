"""Every family against transformers: the tiny checkpoints of goldens/, by tools/make_goldens.py."""

from pathlib import Path
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_folder

from grpojax.config import ModelConfig
from grpojax.families import FAMILIES, describe_model, read_model
from grpojax.model import Policy
from grpojax.pretrained import read_model_config
from grpojax.sampling import make_sampler, stream_key
from grpojax.types import Prompts

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(params=FAMILIES)
def golden(request):
    """Policy, parameters and what transformers makes of them."""
    folder = GOLDENS / request.param
    model = read_model_config(folder)
    return Policy(model), load_folder(folder, model), dict(np.load(folder / "golden.npz"))


def shared_logits(policy, params, tokens, mask, split, group=2):
    """Logits [B, G, S + 1, V] after the last of `split` prompt tokens and each later one."""
    variables = {"params": params}
    last, prefix = policy.apply(variables, tokens[:, :split], mask[:, :split], method="prefill")
    rest = jnp.repeat(tokens[:, None, split:], group, axis=1)
    hidden, _ = policy.apply(variables, rest, prefix, method="extend")
    first = jnp.broadcast_to(last[:, None, None], (*rest.shape[:2], 1, last.shape[-1]))
    return policy.apply(variables, jnp.concatenate([first, hidden], 2), method="logits")


@pytest.mark.parametrize("split", [1, 16, 23])
def test_logits_equal_those_of_transformers_wherever_the_prompt_ends(
    golden, split, record_property
):
    """Prompts of mixed lengths, most longer than the sliding window, which crosses their end."""
    policy, params, wanted = golden
    rows = wanted["mask"][:, :split].any(1)
    tokens, mask, expected = (wanted[name][rows] for name in ("tokens", "mask", "logits"))
    found = jax.jit(shared_logits, static_argnums=(0, 4))(policy, params, tokens, mask, split)
    expected = expected[:, None, split - 1 :]
    largest = max(1.0, np.abs(expected).max())
    record_property("family", policy.config.family)
    record_property("error", float(np.abs(found - expected).max() / largest))
    bound = 2e-5 * largest
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=0, atol=bound)


def test_greedy_continuations_equal_those_of_transformers_but_for_near_ties(
    golden, record_property
):
    policy, params, wanted = golden
    continued, gaps = wanted["continued"], wanted["gaps"]
    sampler = make_sampler(
        policy,
        group_size=1,
        completion_length=continued.shape[1],
        stop_ids=(policy.config.vocab_size,),
        pad_id=0,
        greedy=True,
    )
    prompts = Prompts(wanted["tokens"].astype(np.int32), wanted["mask"], np.arange(3))
    found = np.asarray(sampler(params, prompts, stream_key(0, "evaluate", 0)).tokens)[:, 0]
    ties = 0
    for ours, theirs, gap in zip(found, continued, gaps):
        apart = np.flatnonzero(ours != theirs)
        if apart.size:  # after the first difference the rows go separate ways
            assert gap[apart[0]] < 1e-4
            ties += 1
    record_property("family", policy.config.family)
    record_property("greedy", f"{(found == continued).sum()} of {continued.size}")
    assert ties <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_describes_what_it_reads(family):
    """So an export can be read back; old and new ways to write the rotary fields are one."""
    model = read_model_config(GOLDENS / family)
    described = describe_model(model)
    assert read_model(described) == model
    assert described["architectures"] == [FAMILIES[family].ARCHITECTURE]


def test_a_shape_that_the_family_cannot_say_is_refused():
    with pytest.raises(ValueError, match="norm_offset=True cannot be said in the"):
        describe_model(ModelConfig(norm_offset=True))


def test_the_families_are_those_of_the_config():
    assert set(get_args(get_type_hints(ModelConfig)["family"])) == set(FAMILIES)
