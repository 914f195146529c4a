"""Report: a finished or running run as one picture and one page that can be mailed.

`report.html` needs nothing but itself: the curves are embedded, in light and in dark, and there is
no script. Every text of the run is escaped, since completions are what a policy made up.
"""

import base64
import json
from datetime import timedelta
from html import escape
from typing import Any

from grpojax.console import spread
from grpojax.curves import DARK, LIGHT, PANELS, Series, collect, draw, recorded_panels
from grpojax.metrics import Group, read_groups, read_metrics, recorded_steps
from grpojax.storage import Place, in_bucket, place

STEPS_SHOWN = 6  # steps with a group on the page, evenly from the first recorded to the last
COMPLETIONS_SHOWN = 16  # of a group, evenly from the highest reward to the lowest


def write_report(workdir: str | Place) -> Place:
    """Writes curves.png and report.html into a run directory and returns the path of the page.

    Raises:
      ValueError: config.json or metrics.jsonl is missing, damaged or empty; names the file.
    """
    workdir = place(workdir)
    described = read_config(workdir / "config.json")
    series = collect(read_metrics(workdir))
    if not recorded_panels(series):
        raise ValueError(
            f"{workdir / 'metrics.jsonl'} must hold at least one line with a metric to draw; "
            "let the run make a step first"
        )
    picture = draw(series, recorded_panels(series), LIGHT, dpi=130)
    (workdir / "curves.png").write_bytes(picture)
    page = workdir / "report.html"
    # Names may hold a lone surrogate, which has no UTF-8: a browser shows a replacement for it.
    page.write_bytes(render(workdir, described, series).encode("utf-8", "xmlcharrefreplace"))
    return page


def read_config(path: Place) -> dict[str, Any]:
    """A run's config.json: {"config": nested, "versions": {name: version}, "commit": text}."""
    try:
        described = json.loads(path.read_bytes())
        return {name: described[name] for name in ("config", "versions", "commit")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must hold a run's config, versions and commit, got {error!r}; "
            "give a directory that a run was started in"
        ) from error


def render(workdir: Place, described: dict[str, Any], series: Series) -> str:
    """The whole page."""
    config, title = (
        described["config"],
        workdir.name if in_bucket(workdir) else workdir.resolve().name,
    )
    versions = table("", {"commit": described["commit"], **described["versions"]})
    last = max(int(steps[-1]) for steps, _ in series.values())
    about = (
        f"{config['task']} · {last} of {config['steps']} steps · commit {described['commit'][:12]}"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} · grpojax</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p>{escape(about)}</p></header>
<dl class="figures">{key_figures(series)}</dl>
<section><h2>Curves</h2>{curves(series)}</section>
<section><h2>Completions</h2>{completions(workdir)}</section>
<section><h2>Config</h2><div class="tables">{tables(config)}</div></section>
<section><h2>Versions</h2><div class="tables">{versions}</div></section>
</body>
</html>
"""


def key_figures(series: Series) -> str:
    """What a reader asks first: where the metrics that matter ended and began, tokens, time."""
    figures = []
    for label, name in (
        ("Accuracy, greedy", "eval/accuracy"),
        ("Accuracy, sampled", "eval/sampled_accuracy"),
        ("Reward", "reward"),
        ("Completion length", "completions/mean_length"),
    ):
        if name in series:
            values = series[name][1]
            digits = 1 if "length" in name else 3
            text = f"{values[-1]:.{digits}f}"
            if f"{name}_se" in series:
                text += f"<small> ± {series[f'{name}_se'][1][-1]:.{digits}f}</small>"
            if len(values) > 1:
                text += f"<br><small>from {values[0]:.{digits}f}</small>"
            figures.append((label, text))
    if "num_tokens" in series:
        figures.append(("Tokens", f"{series['num_tokens'][1][-1]:,.0f}"))
    if "step_time" in series:
        seconds = timedelta(seconds=round(series["step_time"][1].sum()))
        figures.append(("Time of all steps", str(seconds)))
    return "".join(f"<div><dt>{label}</dt><dd>{text}</dd></div>" for label, text in figures)


def curves(series: Series) -> str:
    """The panels, each a picture for light and one for dark; a line names what was not recorded."""
    titles, parts = recorded_panels(series), []
    for title in titles:
        light, dark = (
            "data:image/png;base64,"
            + base64.b64encode(draw(series, [title], theme, dpi=200)).decode("ascii")
            for theme in (LIGHT, DARK)
        )
        parts.append(
            f"<figure><figcaption>{escape(title)}</figcaption><picture>"
            f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">'
            f'<img src="{light}" alt="{escape(title)}, over steps" width="940" height="600">'
            "</picture></figure>"
        )
    missing = ", ".join(title for title in PANELS if title not in titles)
    note = f"<p>Not recorded in this run: {escape(missing)}.</p>" if missing else ""
    return f'<div class="curves">{"".join(parts)}</div>{note}'


def completions(workdir: Place) -> str:
    """The first recorded group of a few steps, from the first recorded step to the last."""
    steps = recorded_steps(workdir)
    if not steps:
        return "<p>No completions are recorded in this run.</p>"
    count = min(STEPS_SHOWN, len(steps))
    shown = sorted({steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)})
    return "".join(
        group(step, recorded[0]) for step in shown if (recorded := read_groups(workdir, step))
    )


def group(step: int, group: Group) -> str:
    """A prompt, and its completions side by side."""
    order = spread(group, COMPLETIONS_SHOWN)
    size = len(group["texts"])
    count = f"{size} completions" if len(order) == size else f"{len(order)} of {size} completions"
    cards = "".join(card(group, i) for i in order)
    return (
        f"<article><h3>Step {step}<small> · {count}, highest reward first · "
        f"answer {visible(group['answer'])}</small></h3>"
        f'<pre class="prompt">{visible(group["prompt"])}</pre>'
        f'<div class="group" tabindex="0">{cards}</div></article>'
    )


def card(group: Group, i: int) -> str:
    """One completion with its rewards and its advantage."""
    advantage = group["advantages"][i]
    kind = "up" if advantage > 0 else "down" if advantage < 0 else "even"
    total = f"{group['total'][i]:.2f}" if group["valid"][i] else "invalid"
    rewards = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{values[i]:.2f}</dd></div>"
        for name, values in group["rewards"].items()
    )
    return (
        f'<div class="card"><p class="{kind}"><b>{total}</b>'
        f"<span>advantage {advantage:+.2f}</span></p>"
        f"<dl>{rewards}</dl><pre>{visible(group['texts'][i])}</pre></div>"
    )


def visible(text: str) -> str:
    """`text` as HTML, with characters that are not seen, or turn text around, as their escapes."""
    return "".join(
        escape(c)
        if c.isprintable() or c in "\n\t"
        else f"<i>{c.encode('unicode_escape').decode()}</i>"
        for c in text
    )


def tables(config: dict[str, Any]) -> str:
    """The config as a table for its plain fields and one for each of its parts."""
    parts = {name: value for name, value in config.items() if isinstance(value, dict)}
    plain = {name: value for name, value in config.items() if name not in parts}
    return table("run", plain) + "".join(table(name, part) for name, part in parts.items())


def table(caption: str, fields: dict[str, Any]) -> str:
    """Fields and values; a part inside a part is written with dots."""
    rows = []
    for name, value in fields.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for key, item in inner:
            label = f"{name}.{key}" if key else name
            text = item if isinstance(item, str) and item else json.dumps(item)
            rows.append(f"<tr><th>{escape(label)}</th><td>{visible(text)}</td></tr>")
    head = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


STYLE = """
:root { --back: #f6f7f9; --panel: #fff; --text: #22262e; --soft: #68707d; --line: #e3e6ea;
  --up: #1d7f4a; --down: #b5402f; }
@media (prefers-color-scheme: dark) { :root { --back: #14171d; --panel: #1c2028; --text: #e3e6eb;
  --soft: #98a1ae; --line: #2f353f; --up: #62c48d; --down: #ee8a78; } }
* { box-sizing: border-box; margin: 0; }
body { background: var(--back); color: var(--text); max-width: 1240px; margin: 0 auto;
  padding: 40px 24px 80px; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 28px; letter-spacing: -.02em; }
h2 { font-size: 19px; margin: 44px 0 14px; }
h3 { font-size: 15px; margin-bottom: 8px; }
header p, dt, small, figcaption, caption, section > p { color: var(--soft); font-weight: 400; }
small { font-size: .75em; } h3 small { font-size: 13px; }
pre, td { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
pre i { color: var(--soft); font-style: normal; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 1px;
  margin-top: 24px; background: var(--line); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; }
.figures div { background: var(--panel); padding: 12px 16px; }
.figures dt { font-size: 12.5px; } .figures dd { font-size: 22px; line-height: 1.3; }
.figures small { font-size: 13.5px; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(350px, 100%), 1fr));
  gap: 16px; }
figure, table, .card, .prompt { background: var(--panel); border: 1px solid var(--line);
  border-radius: 10px; }
figure { padding: 12px 12px 6px; } figcaption { font-size: 13px; margin: 0 4px 6px; }
img { display: block; width: 100%; height: auto; }
article { margin-bottom: 32px; }
.prompt { padding: 10px 14px; margin-bottom: 10px; max-height: 180px; overflow: auto; }
.group { display: flex; gap: 10px; overflow-x: auto; padding-bottom: 10px; }
section > p { margin-top: 12px; }
.card { flex: 0 0 250px; padding: 12px 14px; }
.card p { display: flex; justify-content: space-between; align-items: baseline; }
.card b { font-size: 17px; } .card span { font-size: 13px; }
.up span { color: var(--up); } .down span { color: var(--down); }
.card dl { margin: 4px 0 8px; padding-bottom: 8px; border-bottom: 1px solid var(--line); }
.card dl div { display: flex; justify-content: space-between; font-size: 12.5px; }
.card pre { max-height: 190px; overflow: auto; }
.tables { columns: 3 300px; column-gap: 16px; }
table { width: 100%; break-inside: avoid; margin-bottom: 16px; padding: 8px 14px; font-size: 13px; }
caption { text-align: left; padding: 0 2px 4px; } th { text-align: left; font-weight: 400; }
td { text-align: right; overflow-wrap: anywhere; }
"""
