"""Objectives by paper: what each sets, what a config equals, and what cannot go together."""

import dataclasses

import pytest

from grpojax import presets
from grpojax.config import Config, GRPOConfig
from grpojax.presets import describe_objective


@pytest.mark.parametrize("preset", presets.PRESETS, ids=lambda preset: preset.__name__)
def test_every_preset_is_described_as_itself(preset):
    assert describe_objective(preset()) == f"objective: {preset.__name__}"
    assert preset().grpo.cautions == []
    # Sizes of the work are not the paper's objective.
    more = dataclasses.replace(preset().grpo, prompts_per_step=1024, microbatches=2)
    assert describe_objective(Config(grpo=more)) == f"objective: {preset.__name__}"


def test_presets_differ_in_their_objectives():
    assert len({preset().grpo for preset in presets.PRESETS}) == len(presets.PRESETS)


def test_a_departure_is_named_with_both_values():
    grpo = dataclasses.replace(presets.dapo().grpo, clip_high=0.25, group_size=8)
    assert describe_objective(Config(grpo=grpo)) == (
        "objective: dapo, but group_size 8 (16), clip_high 0.25 (0.28)"
    )


def test_fields_that_the_objective_does_not_read_are_no_departure():
    grpo = dataclasses.replace(presets.dr_grpo().grpo, kl="k2", std_epsilon=1e-4, tau_positive=2.0)
    assert describe_objective(Config(grpo=grpo)) == "objective: dr_grpo"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kl": "k1"}, "kl=k1 in the loss has a gradient of 0 in expectation .* k3_weighted"),
        ({"kl": "k4"}, "kl must be one of k3, k3_weighted, k2, k1_reward, k1, got 'k4'"),
        ({"ratio": "geometric", "surrogate": "sapo"}, "ratio=geometric clips by itself"),
        ({"dual_clip": 1.1}, r"more than 1 \+ clip_high = 1.2, got 1.1"),
        ({"dual_clip": 3.0, "surrogate": "cispo"}, "dual_clip needs surrogate=clip"),
        ({"mismatch": "truncated", "minibatches": 2}, "set old_logps=rescored"),
        ({"lag": 2}, r"lag must be 0 or 1 \(steps\), got 2"),
        ({"lag": 1}, "set mismatch=truncated or masked, got none"),
        ({"lag": 1, "mismatch": "masked", "minibatches": 2}, "set old_logps=rescored"),
        ({"kl": "k1_reward", "advantage": "gdpo"}, "advantage=gdpo normalises each"),
        ({"supervision": "process", "advantage": "rloo"}, "it needs advantage=group"),
        ({"supervision": "process", "max_draws": 2}, "set max_draws=1"),
        ({"deviation_ddof": 2}, "deviation_ddof must be 0 or 1, got 2"),
        ({"top_entropy": 0.0}, "top_entropy must be above 0"),
        ({"mismatch_low": 3.0}, "below mismatch_high=2.0, got 3.0"),
        ({"clip_low": 10.0}, r"at most 1 \(it never binds\), got 10.0"),
        ({"entropy_weight": -0.1}, r"entropy_weight must be 0 or more .*, got -0.1"),
    ],
)
def test_known_wrong_combinations_are_refused_with_the_reason(fields, message):
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "caution"),
    [
        ({"ratio": "sequence", "reduction": "token_mean"}, "weigh it by length"),
        ({"kl": "k2", "minibatches": 2}, "exact on-policy alone"),
        ({"surrogate": "policy_gradient", "epochs_per_batch": 2}, "nothing corrects"),
        ({"reduction": "constant"}, "advantage=mean is its other half"),
    ],
)
def test_misleading_combinations_are_allowed_with_the_reason(fields, caution):
    (found,) = GRPOConfig(**fields).cautions
    assert caution in found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grpo": GRPOConfig(supervision="process")}, "step_reward and grpo.supervision=process"),
        ({"step_reward": "a:b"}, "step_reward and grpo.supervision=process need each other"),
        ({"step_boundary": ""}, "step_boundary must be a text"),
        (
            {"grpo": GRPOConfig(overlong="soft", overlong_buffer=64)},
            "overlong_buffer=64 must be below completion_length=64",
        ),
    ],
)
def test_what_the_objective_needs_of_the_rest_of_the_config(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)
