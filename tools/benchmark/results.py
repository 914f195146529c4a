"""Results: medians and spread of what workers reported, ratios, and the table."""

import json
import statistics
from pathlib import Path
from typing import Any

from tools.benchmark.rows import Row

PARTS = ("whole", "generation", "reference", "update")


def read_run(row: Row, folder: Path) -> dict[str, Any]:
    """A run: seconds of its timed steps by part, of its first step, and its peak in bytes.

    Raises:
      ValueError: some step trained on another number of tokens than planned.
    """
    *steps, last = map(json.loads, (folder / "steps.jsonl").read_text().splitlines())
    planned, found = int(row.lengths().sum()), {step["tokens"] for step in steps}
    if found != {planned}:
        raise ValueError(
            f"{folder.name}: every step must make {planned} tokens, got {sorted(found)}: it did "
            "other work, so its times count for nothing"
        )
    timed = steps[row.warmup :]
    seconds = {part: [step.get(part, 0.0) for step in timed] for part in PARTS}
    return {"seconds": seconds, "first": steps[0]["whole"], "peak": last["peak"]}


def summarise(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the timed steps of all rounds; the spread is the lowest and the highest median
    of a round."""
    summary = {"rounds": rounds, "median": {}, "spread": {}}
    for part in PARTS:
        by_round = [each["seconds"][part] for each in rounds]
        summary["median"][part] = statistics.median([x for seconds in by_round for x in seconds])
        medians = [statistics.median(seconds) for seconds in by_round]
        summary["spread"][part] = [min(medians), max(medians)]
    summary["first"] = statistics.median(each["first"] for each in rounds)
    summary["peak"] = max(each["peak"] for each in rounds)
    return summary


def ratios(row: Row, systems: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every bar of the row with the ratio that was measured; None where one side is missing."""
    found = []
    for bar in row.bars:
        sides = [systems.get(name, {}) for name in ("grpojax", bar.peer)]
        ratio = held = None
        if all("median" in side for side in sides):
            ours, theirs = (
                side["peak"] if bar.part == "peak" else side["median"][bar.part] for side in sides
            )
            ratio = bar.ratio(ours, theirs)
            held = bar.held(ratio)
        bound = {"peer": bar.peer, "part": bar.part, "bound": bar.bound}
        found.append(bound | {"ratio": ratio, "held": held})
    return found


def as_table(title: str, systems: dict[str, dict[str, Any]], held: list[dict[str, Any]]) -> str:
    """One row in Markdown: a line for every system, then the bars."""
    lines = [f"### {title}", ""]
    lines += [
        "| system | whole step, s | generation | reference | update | peak, GB | first step |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, system in systems.items():
        if "failed" in system:
            lines.append(f"| {name} | {system['failed']} | | | | | |")
            continue
        cells = [cell(system, part) for part in PARTS]
        cells += [f"{system['peak'] / 1e9:.2f}", f"{system['first']:.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [""] if held else []
    for bar in held:
        sign, ends = ("<=", "of its peak") if bar["part"] == "peak" else (">=", "as fast")
        if bar["ratio"] is None:
            lines.append(f"- {bar['part']} against {bar['peer']}: not measured")
            continue
        verdict = "held" if bar["held"] else "MISSED"
        lines.append(
            f"- {bar['part']} against {bar['peer']}: {bar['ratio']:.2f}x {ends} "
            f"({sign} {bar['bound']:g}x: {verdict})"
        )
    return "\n".join(lines)


def cell(system: dict[str, Any], part: str) -> str:
    """Median with the spread over rounds, at three digits."""
    low, high = system["spread"][part]
    if not high:
        return "-"
    return f"{system['median'][part]:.3g} ({low:.3g}-{high:.3g})"


def as_line(rates: dict[str, float], floor: dict[str, float]) -> str:
    """The floor of a row at the rates that the machine had."""
    parts = ", ".join(f"{part} {seconds:.3g}" for part, seconds in floor.items())
    return (
        f"- floor {sum(floor.values()):.3g} s ({parts}) at {rates['flops'] / 1e9:.0f} GFLOP/s and "
        f"{rates['bytes'] / 1e9:.1f} GB/s, measured after the runs"
    )
