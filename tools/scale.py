"""How step time and cost grow with the chips of a slice, by the forecast: docs/scale.png.

    pip install '.[plan]'
    python tools/scale.py configs/math_qwen2p5_7b_lora.py --kind v5p --anchor v5p-16 \\
        --mesh.data 1 --mesh.fsdp 8 --model.lora-rank 0

For each number of chips the quickest mesh that is forecast to fit is taken (`grpojax.search`), once
with a batch that grows with the chips and once with a fixed one. What a device receives is the
forecast's times what the config's own programs, compiled for the anchor, receive over what is
forecast of them, for each phase. Nothing is measured: rates of chips and links are published ones.
"""

import argparse
import dataclasses
import functools
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

from grpojax.arguments import PlanArguments, parse_with_config
from grpojax.config import Config
from grpojax.plan import device_of, make_plan
from grpojax.search import search
from grpojax.topology import CHIPS, Topology, parse_topology

HEADER = ("chips", "data, fsdp, expert, tensor", "microbatches", "sample", "reference", "update")
HEADER += ("s a step", "of it links", "tokens/s a chip", "chip-seconds a prompt")
CHIP_COUNTS = tuple(2**n for n in range(3, 13))  # 8 to 4,096


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config")
    parser.add_argument("--kind", default="v5p", help="of chip")
    parser.add_argument("--anchor", help="slice that programs are compiled for; default: none")
    parser.add_argument("--prompts-a-chip", type=int, default=8, help="of the growing batch")
    parser.add_argument("--out", type=Path, default=Path("docs/scale.png"))
    given, flags = parser.parse_known_args(argv)
    config = parse_with_config(PlanArguments, "plan", [given.config, *flags]).config
    ratios = anchored(config, parse_topology(given.anchor)) if given.anchor else {}
    fixed = config.grpo.prompts_per_step
    curves = {
        f"{given.prompts_a_chip} prompts a chip": [
            point(config, given.kind, chips, chips * given.prompts_a_chip, ratios)
            for chips in CHIP_COUNTS
        ],
        f"{fixed} prompts": [
            point(config, given.kind, chips, fixed, ratios) for chips in CHIP_COUNTS
        ],
    }
    for name, points in curves.items():
        print(f"\n{name}, G {config.grpo.group_size}\n")
        print("| " + " | ".join(HEADER) + " |")
        print("|---" * len(HEADER) + "|")
        for each in filter(None, points):
            print(row(each, config))
    plot(curves, config, given.kind, given.out)
    print(f"\n{given.out}")


def anchored(config: Config, topology: Topology) -> dict[str, float]:
    """By phase, what compiled programs receive over what is forecast of them."""
    plan = make_plan(config, topology, functools.partial(print, file=sys.stderr))
    ratios = {}
    for name, phase in plan.forecast.phases.items():
        moved, _ = plan.received(name)
        if phase.received and moved:
            ratios[name] = moved / phase.received
    said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    print(f"{topology}, mesh {plan.mesh}: compiled over forecast bytes received: {said}")
    return ratios


def point(
    config: Config, kind: str, chips: int, prompts: int, ratios: dict[str, float]
) -> dict | None:
    """The quickest step on so many chips; None: no mesh fits."""
    chip = CHIPS[kind]
    if chips > chip.most:
        return None
    size = chips * (chip.cores if chip.counts_cores else 1)
    topology = parse_topology(f"{kind}-{size}")
    device = device_of(topology)
    grpo = dataclasses.replace(config.grpo, prompts_per_step=prompts, microbatches=1)
    tried = dataclasses.replace(config, grpo=grpo)
    found = [each for each in search(tried, topology.devices, device) if each.fits]
    if not found:
        return None

    def phases(each) -> dict[str, tuple[float, float]]:
        told = {}
        for name, phase in each.forecast.phases.items():
            phase = phase._replace(received=int(phase.received * ratios.get(name, 1.0)))
            alone = phase._replace(received=0, collectives=0).seconds(device)
            told[name] = phase.seconds(device), phase.seconds(device) - alone
        return told

    best = min(found, key=lambda each: sum(seconds for seconds, _ in phases(each).values()))
    told = phases(best)
    step = sum(seconds for seconds, _ in told.values())
    tokens = prompts * grpo.group_size * config.sampling.completion_length
    return {
        "chips": chips,
        "sizes": best.sizes,
        "microbatches": best.config.grpo.microbatches,
        "phases": {name: seconds for name, (seconds, _) in told.items()},
        "step": step,
        "links": sum(links for _, links in told.values()) / step,
        "tokens": tokens / step / chips,
        "cost": chips * step / prompts,
    }


def row(each: dict, config: Config) -> str:
    """A line of the table."""
    mesh = ", ".join(str(size) for size in each["sizes"].values())
    names = ("sample", "reference", "update")
    seconds = [f"{each['phases'][name]:.3g}" if name in each["phases"] else "" for name in names]
    cells = [f"{each['chips']:,}", mesh, str(each["microbatches"]), *seconds]
    cells += [f"{each['step']:.3g}", f"{each['links']:.0%}", f"{each['tokens']:,.0f}"]
    return f"| {' | '.join([*cells, format(each['cost'], '.3g')])} |"


def plot(curves: dict[str, list], config: Config, kind: str, out: Path) -> None:
    """Step time, and what a prompt costs, over chips."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, points in curves.items():
        points = [each for each in points if each]
        chips = [each["chips"] for each in points]
        left.plot(chips, [each["step"] for each in points], marker="o", label=name)
        right.plot(chips, [each["cost"] for each in points], marker="o", label=name)
    for axes, label in ((left, "seconds a step"), (right, "chip-seconds a prompt")):
        axes.set(xscale="log", yscale="log", xlabel=f"{kind} chips", ylabel=label)
        axes.set_xticks(CHIP_COUNTS, [f"{count:,}" for count in CHIP_COUNTS], rotation=45)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle("calculated, not measured: rooflines and links at their published rates")
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main(sys.argv[1:])
