"""The tests of the objective can fail: small wrong edits of its source, each caught by a named one.

The module is rebuilt from its edited text in this process, put in place of the real one wherever
its functions are used, and the named test must then fail.
"""

import contextlib
import importlib
import inspect
import sys
import types
from pathlib import Path

import jax
import pytest

import grpojax

PACKAGE = Path(grpojax.__file__).parent
EVERY = "test_surrogates::test_every_ratio_surrogate_and_reduction_is_its_formula"
GROUP = "test_batch_advantages::test_group_advantages_are_their_formulas"
MISMATCH = "test_surrogates::test_mismatch_weights"
E1 = ("truncated", "sequence", 0.5, 3.0), [2.075080607674] * 4


def of(ratio="token", surrogate="clip", reduction="sequence_mean"):
    return {"ratio": ratio, "surrogate": surrogate, "reduction": reduction}


# File, what stands in it exactly once, what is put there, the test and its parameters.
MUTATIONS = [
    ("surrogates", "jnp.clip(logps - old_logps,", "jnp.clip(old_logps - logps,", EVERY, of()),
    ("surrogates", "(advantages < 0) & (ratio < low)", "(advantages > 0) & (ratio < low)", EVERY,
     of()),
    ("surrogates", "(advantages > 0) & (ratio > high)", "(ratio > high)", EVERY, of()),
    ("surrogates", "(rho, advantages, 1 - clip_low, 1 + clip_high)",
     "(rho, advantages, 1 - clip_high, 1 + clip_low)", EVERY, of()),
    ("surrogates", "jnp.clip(rho, 1 - clip_low, 1 + clip_high)",
     "jnp.clip(rho, 1 - clip_high, 1 + clip_low)", EVERY, of("token", "cispo")),
    ("surrogates", "jax.lax.stop_gradient(bound)", "bound", EVERY, of("token", "cispo")),
    ("surrogates", "tau * (rho - 1)", "tau * rho", EVERY, of("token", "sapo")),
    ("surrogates", "4 / tau", "4", EVERY, of("token", "sapo")),
    ("surrogates", "advantages > 0, tau_positive", "advantages < 0, tau_positive", EVERY,
     of("token", "sapo")),
    ("surrogates", "return advantages * logps", "return -advantages * logps", EVERY,
     of("token", "policy_gradient")),
    ("surrogates", "jnp.maximum(mask.sum(-1, keepdims=True), 1)", "mask.shape[-1]", EVERY,
     of("sequence")),
    ("surrogates", "jax.lax.stop_gradient(mean) + logps", "mean + logps", EVERY,
     of("sequence_token")),
    ("surrogates", "jax.lax.stop_gradient(logps)", "logps", EVERY, of("sequence_token")),
    ("surrogates", "jnp.clip(each, -clip_low, clip_high)", "jnp.clip(each, -clip_high, clip_low)",
     EVERY, of("geometric")),
    ("surrogates", "rho > dual_clip", "rho < dual_clip",
     "test_surrogates::test_dual_clip_is_the_two_sided_cap_of_intellect_2", {}),
    ("surrogates", "old_logps - sampled_logps", "sampled_logps - old_logps", MISMATCH,
     {"given": E1[0], "expected": E1[1]}),
    ("surrogates", "difference.sum(-1,", "difference.mean(-1,", MISMATCH,
     {"given": E1[0], "expected": E1[1]}),
    ("surrogates", "jnp.minimum(weights, high)", "jnp.maximum(weights, high)", MISMATCH,
     {"given": E1[0], "expected": E1[1]}),
    ("kl", "jnp.expm1(difference)", "jnp.exp(difference)",
     "test_kl::test_values_of_three_tokens", {}),
    ("kl", "- difference", "+ difference", "test_kl::test_values_of_three_tokens", {}),
    ("kl", "0.5 * jnp.clip", "jnp.clip",
     "test_kl::test_k2_and_weighted_k3_have_the_exact_gradient_on_policy", {"kl": "k2"}),
    ("kl", "return ratio * k3", "return k3",
     "test_kl::test_off_policy_the_weighted_k3_is_still_exact_and_k2_is_not", {}),
    ("kl", "jnp.zeros_like(logps)", "logps - ref_logps",
     "test_kl::test_values_of_three_tokens", {}),
    ("grpo", "= -gained,", "= gained,", EVERY, of()),
    ("grpo", "losses + beta *", "losses - beta *",
     "test_kl::test_k3_in_the_loss_has_the_gradient_of_the_forward_kl", {}),
    ("grpo", "jax.lax.stop_gradient(logps if old_logps is None else kept(old_logps))",
     "(logps if old_logps is None else kept(old_logps))",
     "test_surrogates::test_on_policy_every_objective_has_the_gradient_of_reinforce",
     {"ratio": "token", "surrogate": "clip"}),
    ("grpo", "- entropy_weight *", "+ entropy_weight *",
     "test_surrogates::test_the_entropy_bonus_is_subtracted_and_carries_its_own_gradient", {}),
    ("grpo", "kept(logps), kept(jnp", "logps, kept(jnp",
     "test_surrogates::test_padding_never_matters_to_any_objective",
     {"ratio": "sequence", "surrogate": "clip", "poison": float("nan")}),
    ("grpo", "advantages = advantages * mismatch_weights(", "advantages = mismatch_weights(",
     "test_surrogates::test_mismatch_weighs_the_surrogate_and_not_the_kl_and_passes_no_gradient",
     {}),
    ("grpo", '"sequence_mean": completions * lengths', '"sequence_mean": lengths', EVERY, of()),
    ("grpo", '"token_mean": lengths.sum()', '"token_mean": completions * lengths.max()', EVERY,
     of(reduction="token_mean")),
    ("grpo", "completions * completion_length", "completions * mask.shape[-1]",
     "test_grpo::test_wider_padding_and_the_order_of_rows_change_nothing",
     {"reduction": "constant"}),
    ("grpo", "(of_prompt > 0).sum()", "completions", EVERY, of(reduction="prompt_mean")),
    ("grpo", '"sequence_sum": completions', '"sequence_sum": 1', EVERY,
     of(reduction="sequence_sum")),
    ("grpo", "counted = mask & valid[..., None]", "counted = mask",
     "test_grpo::test_invalid_completions_leave_the_loss_of_the_rest",
     {"reduction": "token_mean"}),
    ("advantages", "jnp.maximum(count - ddof, 1))\n        centred", "count)\n        centred",
     GROUP, {"advantage": "group", "ddof": 1}),
    ("advantages", "jnp.where(valid, rewards - mean, 0.0)", "jnp.where(valid, mean - rewards, 0.0)",
     GROUP, {"advantage": "mean", "ddof": 1}),
    ("advantages", "centred * count / jnp.maximum(count - 1, 1)", "centred * (count - 1) / count",
     GROUP, {"advantage": "rloo", "ddof": 1}),
    ("advantages", 'advantage != "opo"', 'advantage == "opo"', GROUP,
     {"advantage": "opo", "ddof": 1}),
    ("advantages", "return highest <= jnp", "return highest < jnp",
     "test_batch_advantages::test_steps_of_equal_rewards_and_of_invalid_completions_give_zero", {}),
    ("advantages", "(values - mean) / jnp.sqrt", "values / jnp.sqrt",
     "test_batch_advantages::test_whitening_is_over_the_tokens_of_the_batch", {}),
    ("advantages", "penalty[..., ::-1].cumsum(-1)[..., ::-1]", "penalty.cumsum(-1)",
     "test_batch_advantages::"
     "test_reinforce_pp_whitens_what_is_left_of_reward_and_penalty_from_each_token_on", {}),
    ("advantages", "rewards - penalty.sum(-1)", "rewards + penalty.sum(-1)",
     "test_batch_advantages::test_elsewhere_the_penalty_is_summed_over_the_completion", {}),
    ("advantages", "jnp.asarray(reward_weights, each.dtype)", "jnp.ones(len(reward_weights))",
     "test_batch_advantages::test_gdpo_normalises_each_reward_by_itself", {}),
    ("advantages", "scaled[:, ::-1].cumsum(-1)[:, ::-1]", "scaled.cumsum(-1)",
     "test_batch_advantages::test_process_supervision_sums_the_steps_to_come",
     {"ddof": 1, "first": [1.2477005878, 1.8715508817, 1.4556506857],
      "second": [-1.2477005878, -1.1437255388]}),
    ("advantages", "entropy >= ordered", "entropy > ordered",
     "test_batch_advantages::test_the_top_fifth_of_tokens_by_entropy_are_kept", {}),
    ("weigher", "evidence.sampled_logps - evidence.ref_logps",
     "evidence.ref_logps - evidence.sampled_logps",
     "test_rollout::test_the_kl_of_a_completion_is_taken_from_its_reward", {}),
    ("weigher", "counted &= ~evidence.cut_off\n        if config.zero",
     "counted &= evidence.cut_off\n        if config.zero",
     "test_rollout::test_masked_completions_leave_loss_and_divisor_but_not_their_groups_mean", {}),
    ("weigher", "counted &= jax.vmap(has_spread)", "counted |= jax.vmap(has_spread)",
     "test_rollout::test_dropped_groups_of_equal_rewards_leave_loss_and_divisor", {}),
    ("weigher", "jnp.where(kept, advantages, 0.0)", "jnp.where(kept, 0.0, advantages)",
     "test_rollout::test_tokens_below_the_top_entropies_have_no_advantage_and_keep_their_weight",
     {}),
    ("rollout", "(most - buffer - lengths) / buffer", "(most - lengths) / buffer",
     "test_rollout::test_soft_punishment_counts_tokens", {"length": 18432, "punishment": -0.5}),
    ("scoring", "return -jnp.vecdot(", "return jnp.vecdot(",
     "test_surrogates::test_the_entropy_bonus_is_subtracted_and_carries_its_own_gradient", {}),
    ("scoring", 'method="logits") / temperature', 'method="logits")',
     "test_scoring::test_temperature_divides_the_logits_and_forgetting_it_gives_these_ratios", {}),
    ("scoring", "jnp.concatenate([first, hidden[:, :, :-1]], axis=2)", "hidden",
     "test_scoring::test_every_token_of_a_known_sequence_has_its_log_probability", {}),
]  # fmt: skip


@contextlib.contextmanager
def edited(name, fragment, replacement):
    """The package with one edit: everything that refers to the module's functions is repointed."""
    source = (PACKAGE / f"{name}.py").read_text()
    assert source.count(fragment) == 1, f"{fragment!r} stands {source.count(fragment)} times"
    real = importlib.import_module(f"grpojax.{name}")
    rebuilt = types.ModuleType(real.__name__)
    exec(compile(source.replace(fragment, replacement), f"{name}, edited", "exec"), vars(rebuilt))
    functions = {
        id(old): vars(rebuilt)[key]
        for key, old in vars(real).items()
        if inspect.isfunction(old) and old.__module__ == real.__name__
    }
    users = [
        module
        for key, module in list(sys.modules.items())
        if key.startswith(("grpojax.", "test_")) and module is not None
    ]
    pointers = [
        (module, key, value)
        for module in users
        for key, value in vars(module).items()
        if id(value) in functions
    ]
    cached = [x for module in users for x in vars(module).values() if hasattr(x, "cache_clear")]
    try:
        for module, key, value in pointers:
            setattr(module, key, functions[id(value)])
        for function in cached:
            function.cache_clear()
        yield
    finally:
        for module, key, value in pointers:
            setattr(module, key, value)
        for function in cached:
            function.cache_clear()


@pytest.mark.parametrize(
    ("name", "fragment", "replacement", "test", "arguments"),
    MUTATIONS,
    ids=[f"{name}: {new}" for name, _, new, *_ in MUTATIONS],
)
def test_a_wrong_edit_is_caught(name, fragment, replacement, test, arguments, request):
    file, function = test.split("::")
    module = importlib.import_module(file)
    check = getattr(module, function)
    fixtures = [name for name in inspect.signature(check).parameters if name not in arguments]
    given = arguments | {name: request.getfixturevalue(name) for name in fixtures}
    precise = jax.enable_x64(True) if hasattr(module, "float64") else contextlib.nullcontext()
    with precise, edited(name, fragment, replacement), pytest.raises(AssertionError):
        check(**given)
