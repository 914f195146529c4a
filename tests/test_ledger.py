"""How fast the work of a step was done: rates, passes, shares of the roofline."""

import numpy as np
from test_work import LENGTHS, SMALL

from grpojax.config import Config, GRPOConfig
from grpojax.ledger import describe_ledger, make_ledger, shares
from grpojax.roofline import Roofline
from grpojax.work import Lengths, Work, decode_work, forward_work, prefill_work, update_work


def test_rates_are_work_over_the_seconds_in_which_it_was_done():
    config = Config(
        model=SMALL, grpo=GRPOConfig(prompts_per_step=2, group_size=2, beta=0.1, max_draws=2)
    )
    times = {"time/sample": 2.0, "time/reward": 3.0, "time/reference": 1.0, "time/update": 0.5}
    again = Lengths(LENGTHS.prompts[1:], LENGTHS.completions[1:])
    draws = [(np.array([0, 1]), LENGTHS.completions), (np.array([1]), again.completions)]
    metrics = make_ledger(config)(LENGTHS, draws, times)
    sampled = sum(
        (work(SMALL, each) for each in (LENGTHS, again) for work in (prefill_work, decode_work)),
        Work(),
    )
    referred, updated = forward_work(SMALL, LENGTHS), update_work(SMALL, LENGTHS)
    assert metrics == {
        "flops_per_second/sample": sampled.flops / 2,
        "bytes_per_second/sample": sampled.bytes / 2,
        "flops_per_second/reference": referred.flops / 4,
        "bytes_per_second/reference": referred.bytes / 4,
        "flops_per_second/update": updated.flops / 0.5,
        "bytes_per_second/update": updated.bytes / 0.5,
    }


def test_passes_are_those_of_the_objective():
    times = {"time/sample": 1.0, "time/reward": 0.5, "time/reference": 0.5, "time/update": 1.0}
    once, trunk = (forward_work(SMALL, LENGTHS, head=head).flops for head in (True, False))

    def referred(scored=False, algorithm="grpo", **fields):
        grpo = GRPOConfig(prompts_per_step=2, group_size=2, **fields)
        ledger = make_ledger(Config(model=SMALL, grpo=grpo, algorithm=algorithm))
        return ledger(LENGTHS, [], times, scored).get("flops_per_second/reference", 0)

    assert referred(beta=0.0) == 0
    assert referred(beta=0.0, minibatches=2) == 0  # the old policy is the sampler's word
    assert referred(beta=0.1, minibatches=2, old_logps="rescored", top_entropy=0.5) == 3 * once
    assert referred(beta=0.1, old_logps="rescored") == once  # on-policy there is no old one
    assert referred(beta=0.1, scored=True) == once + trunk
    assert referred(beta=0.0, algorithm="ppo") == trunk


def test_the_share_of_the_roofline_is_that_of_the_nearer_bound():
    roofline = Roofline(flops=200e9, bytes=40e9, measured=True)
    line = {"flops_per_second/sample": 20e9, "bytes_per_second/sample": 30e9}
    line |= {"flops_per_second/update": 100e9, "bytes_per_second/update": 10e9}
    found = shares(line, roofline, roofline)
    assert found == {"roofline/sample": 0.75, "roofline/update": 0.5}
    fewer = Roofline(flops=100e9, bytes=32e9, measured=True)  # devices of its own sample
    assert shares(line, roofline, fewer) == found | {"roofline/sample": 0.9375}
    line |= found | {"time/sample": 0.25, "time/update": 1.5, "step_time": 2.0}
    assert describe_ledger([], roofline) == "the roofline is 200 GFLOP/s, 40 GB/s, measured"
    compiling = {name: 50.0 for name in line}
    said = describe_ledger([compiling, {"eval/accuracy": 0.5}, line], roofline)
    assert said == (
        "step 2 s; sample 0.25 s at 20 GFLOP/s, 30 GB/s, 75% of the roofline; "
        "update 1.5 s at 100 GFLOP/s, 10 GB/s, 50% of the roofline; "
        "the roofline is 200 GFLOP/s, 40 GB/s, measured"
    )
