"""Cost: chip-hours times a price that the user states; none is built in, since prices change."""

from tools.tpu.slices import slice_of
from tools.tpu.state import State


def cost_lines(state: State, now: float, price: float | None) -> list[str]:
    """What a slice has taken so far, a line for each time that it was there."""
    chips = slice_of(state.slice).chips
    lines = []
    for start, end in state.spans:
        hours = ((now if end is None else end) - start) / 3600
        lines.append(f"{hours:8.2f} h of {chips} chips{'' if end else ', and going on'}")
    total = state.chip_hours(now)
    money = "; --price-per-chip-hour PRICE says what they cost" if price is None else ""
    if price is not None:
        money = f" at {price:g} = {total * price:.2f}"
    return [*lines, f"{state.name}: {total:.2f} chip-hours{money}"]
