"""The page of a run stands alone and shows what was recorded; no text becomes an element."""

import dataclasses
import json
import struct
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from grpojax.config import Config, GRPOConfig
from grpojax.curves import LIGHT, collect, draw, draw_reward, draw_time, recorded_panels
from grpojax.metrics import MetricsWriter
from grpojax.report import write_report

HOSTILE = "<script>alert(1)</script></pre><img src=x onerror=y> &amp; \x1b[31m \u202e\ud800"
QUOTES = """Say "it's" <b>: """


def group(size=2):
    return {
        "example": 7,
        "prompt": QUOTES,
        "answer": "<i>2</i>",
        "texts": [HOSTILE, *["plain"] * (size - 1)],
        "rewards": {'a"<script>': [1.0] * size},
        "total": [1.0] * size,
        "advantages": [0.5] * size,
        "valid": [True] * size,
    }


def make_run(workdir, steps, beta=0.01, groups=True):
    config = Config(steps=steps, task="<script>task</script>\ud800", grpo=GRPOConfig(beta=beta))
    described = {
        "config": dataclasses.asdict(config),
        "versions": {"jax": "1.2.3<script>"},
        "commit": "0123456789abcdef",
    }
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(described))
    with MetricsWriter(workdir, 0, tensorboard=False) as writer:
        writer.write(0, {"eval/accuracy": 0.25, "eval/accuracy_se": 0.05})
        for step in range(1, steps + 1):
            numbers = {"reward": step / steps, "reward_std": 0.1, "completions/mean_length": 9.0}
            numbers |= {"clip_ratio/low_mean": 0.0, "clip_ratio/high_mean": 0.0, "step_time": 1.0}
            numbers |= {"time/sample": 0.5, "time/update": 0.4}
            writer.write(step, numbers | ({"kl": 0.1} if beta else {}))
            if groups:
                writer.write_groups(step, [group()])
        writer.write(steps, {"eval/accuracy": 0.75, "eval/accuracy_se": 0.04})
    return workdir


class Page(HTMLParser):
    """A page as a browser reads it: elements with their attributes, and the text between them."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(path.read_text("utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "source", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of twelve steps with its report."""
    workdir = make_run(tmp_path_factory.mktemp("runs") / "<script>run", steps=12)
    assert write_report(workdir) == workdir / "report.html"
    return workdir


def test_what_a_run_says_stays_text(workdir):
    page = Page(workdir / "report.html")
    assert "script" not in page.tags and "b" in page.tags
    assert page.tags.count("img") == 6
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "<script>alert(1)</script></pre><img src=x onerror=y> &amp; \\x1b[31m" in page.text
    assert "\\u202e\\ud800" in page.text
    for said in (QUOTES, "<i>2</i>", 'a"<script>', "<script>task</script>", "1.2.3<script>"):
        assert said in page.text
    assert page.open == []


def test_the_page_needs_no_other_file_and_no_network(workdir):
    page = Page(workdir / "report.html")
    links = [value for name, value in page.attributes if name in ("src", "srcset", "href")]
    assert links and all(link.startswith("data:image/png;base64,") for link in links)
    assert "link" not in page.tags and "url(" not in page.text and "@import" not in page.text


def test_the_page_shows_config_versions_rewards_and_accuracies(workdir):
    page = Page(workdir / "report.html")
    for part in ("0.750", "± 0.040", "from 0.250", "group_size", "optimizer.learning_rate"):
        assert part in page.text
    for part in ("0123456789abcdef", "12 of 12 steps", "advantage +0.50", "Step 1 ", "Step 12 "):
        assert part in page.text
    assert page.tags.count("article") == 6


@pytest.mark.parametrize(("steps", "beta"), [(1, 0.01), (3, 0.0)])
def test_few_steps_and_no_reference_still_give_a_report(tmp_path, steps, beta):
    page = Page(write_report(make_run(tmp_path / "run", steps, beta, groups=False)))
    assert page.tags.count("figure") == (6 if beta else 5)
    assert ("Not recorded in this run: KL to the reference." in page.text) == (beta == 0)
    assert "No completions are recorded in this run." in page.text


def test_an_evaluation_before_the_first_step_is_enough_for_a_report(tmp_path):
    workdir = make_run(tmp_path / "run", steps=1)
    (workdir / "metrics.jsonl").write_text('{"step": 0, "eval/accuracy": 0.5}\n')
    assert Page(write_report(workdir)).tags.count("figure") == 1


def test_curves_are_a_png_of_sensible_size(workdir):
    content = (workdir / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and 20_000 < len(content) < 1_000_000
    width, height = struct.unpack(">II", content[16:24])
    assert 1500 <= width <= 2500 and 600 <= height <= 1200


def test_the_reward_band_is_the_spread_around_the_mean():
    lines = [{"step": s, "reward": 2.0 * s, "reward_std": 0.5} for s in (1, 2)]
    axes = Figure().add_subplot()
    draw_reward(axes, collect(lines))
    (band,) = axes.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices}
    assert corners == {(1, 1.5), (1, 2.5), (2, 3.5), (2, 4.5)}


def test_times_are_stacked_and_a_part_not_recorded_takes_none():
    lines = [{"step": 1, "time/sample": 2.0, "time/update": 1.0}]
    lines += [{"step": 2, "time/sample": 2.0, "time/update": 1.0, "time/checkpoint": 4.0}]
    axes = Figure().add_subplot()
    draw_time(axes, collect(lines))
    corners = [area.get_paths()[0].vertices for area in axes.collections]
    tops = [[c[c[:, 0] == step, 1].max() for c in corners] for step in (1, 2)]
    assert tops == [[2.0, 3.0, 3.0], [2.0, 3.0, 7.0]]


def test_values_that_are_not_finite_are_left_out_of_the_curves():
    lines = [{"step": 1, "kl": 0.5}, {"step": 2, "kl": float("nan")}, {"step": 3, "kl": 1.5}]
    series = collect([*lines, {"step": 4, "reward": float("nan")}])
    assert recorded_panels(series) == ["KL to the reference"]
    np.testing.assert_array_equal(series["kl"], [[1, 3], [0.5, 1.5]])
    assert draw(series, ["KL to the reference"], LIGHT, dpi=50).startswith(b"\x89PNG")


@pytest.mark.parametrize("damage", ["{", "[]", '{"config": {}}', None])
def test_a_directory_without_a_good_config_is_refused_by_name(tmp_path, damage):
    workdir = make_run(tmp_path / "run", steps=1)
    (workdir / "config.json").unlink()
    if damage is not None:
        (workdir / "config.json").write_text(damage)
    with pytest.raises(ValueError, match=r"config\.json must hold"):
        write_report(workdir)


def test_a_run_that_recorded_nothing_is_refused_by_name(tmp_path):
    workdir = make_run(tmp_path / "run", steps=1)
    (workdir / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl must hold at least one line"):
        write_report(workdir)
