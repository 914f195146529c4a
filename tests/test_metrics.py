"""What a run records can be continued exactly, and what it shows cannot act on the terminal."""

import io
import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console as Terminal
from tensorboardX.proto.event_pb2 import Event, SessionLog

from grpojax.console import Console, spread
from grpojax.metrics import MetricsWriter, read_groups, read_metrics, recorded_steps


def group(texts, total=None, **fields):
    size = len(texts)
    total = [float(i) for i in range(size)] if total is None else total
    return {
        "example": 7,
        "prompt": "1 + 1 =",
        "answer": "2",
        "texts": texts,
        "rewards": {"accuracy": total},
        "total": total,
        "advantages": [value - 1.0 for value in total],
        "valid": [True] * size,
    } | fields


def terminal(width=100, interactive=True, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    colors = "truecolor" if interactive else None
    return Terminal(
        file=file, width=width, force_terminal=interactive, color_system=colors, _environ={}
    )


def shown(screen):
    screen.file.flush()
    return screen.file.buffer.getvalue().decode(screen.encoding)


def record(workdir, steps, first_step=0, tensorboard=False):
    with MetricsWriter(workdir, first_step, tensorboard) as writer:
        for step in steps:
            writer.write(step, {"reward": step / 3})
            writer.write_groups(step, [group(["a", "b"])])


def test_lines_read_back_equal(tmp_path):
    with MetricsWriter(tmp_path, 0, tensorboard=False) as writer:
        writer.write(0, {"eval/accuracy": 0.1})
        writer.write(1, {"kl": jnp.float32(0.1), "reward": np.float64(1 / 3), "loss": -2})
        writer.write(1, {"eval/accuracy": jnp.bfloat16(0.5)})
    assert read_metrics(tmp_path) == [
        {"step": 0, "eval/accuracy": 0.1},
        {"step": 1, "kl": float(np.float32(0.1)), "reward": 1 / 3, "loss": -2.0},
        {"step": 1, "eval/accuracy": 0.5},
    ]


def test_groups_read_back_equal_whatever_their_texts_hold(tmp_path):
    texts = ['"quoted"\n{"step": 3}', "\u2028\x85\x00\x1b[31m", "\ud800 alone", "é 中 🙂"]
    expected = group(texts)
    arrays = group(texts, advantages=np.array(expected["advantages"]), valid=jnp.ones(4, bool))
    with MetricsWriter(tmp_path, 0, tensorboard=False) as writer:
        writer.write_groups(10, [arrays, group(["x", "y"])])
    assert recorded_steps(tmp_path) == [10]
    assert read_groups(tmp_path, 10) == [{"step": 10} | expected, {"step": 10} | group(["x", "y"])]


def test_a_line_is_on_disk_when_write_returns(tmp_path):
    with MetricsWriter(tmp_path, 0, tensorboard=False) as writer:
        writer.write(1, {"reward": 1.0})
        assert read_metrics(tmp_path) == [{"step": 1, "reward": 1.0}]


def test_numbers_that_are_not_finite_are_strict_json_and_read_back_as_nan(tmp_path):
    with MetricsWriter(tmp_path, 0, tensorboard=True) as writer:
        writer.write(1, {"loss": math.nan, "grad_norm": jnp.float32(jnp.inf), "reward": 1.0})
        writer.write_groups(1, [group(["a", "b"], total=np.array([math.nan, 1.0]))])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    for path in (tmp_path / "metrics.jsonl", tmp_path / "completions" / "00000001.jsonl"):
        json.loads(path.read_text(), parse_constant=refuse)
    (line,) = read_metrics(tmp_path)
    assert math.isnan(line["loss"]) and math.isnan(line["grad_norm"]) and line["reward"] == 1.0
    assert math.isnan(read_groups(tmp_path, 1)[0]["rewards"]["accuracy"][0])


def test_a_resumed_run_leaves_the_files_of_a_run_never_killed(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    record(whole, range(1, 9))
    record(resumed, range(1, 7))
    with (resumed / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "rew')
    record(resumed, range(4, 9), first_step=4)
    names = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    assert names == [p.relative_to(resumed) for p in sorted(resumed.rglob("*")) if p.is_file()]
    for name in names:
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()


def test_a_new_run_drops_what_a_run_without_a_checkpoint_left(tmp_path):
    record(tmp_path, range(0, 3))
    MetricsWriter(tmp_path, 0, tensorboard=False).close()
    assert read_metrics(tmp_path) == [] and recorded_steps(tmp_path) == []


@pytest.mark.parametrize("torn", [b'{"step": 2, "re', b"\xe4\xb8", b"\x00\x00\x00"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "reward": 1.0}\n' + torn)
    assert read_metrics(tmp_path) == [{"step": 1, "reward": 1.0}]
    record(tmp_path, [2], first_step=2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_a_last_line_that_only_lacks_its_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}')
    record(tmp_path, [3], first_step=3)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
    "garbage", [b"garbage", b"[1]", b'{"reward": 1.0}', b'{"step": null}', b""]
)
def test_garbage_in_the_middle_is_refused_with_file_and_line(tmp_path, garbage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + garbage + b'\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 "):
        read_metrics(tmp_path)
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 "):
        MetricsWriter(tmp_path, 1, tensorboard=False)


def test_garbage_that_a_newline_ends_is_not_taken_for_a_torn_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\ngarbage\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 "):
        read_metrics(tmp_path)


def test_steps_that_recorded_nothing_are_refused_with_those_that_did(tmp_path):
    record(tmp_path, [2, 4])
    with pytest.raises(ValueError, match=r"step 3 .*\[2, 4\]"):
        read_groups(tmp_path, 3)


def events(folder):
    """The events of a TensorBoard folder: records of length, checksum, message, checksum."""
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            yield Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16


def test_tensorboard_gets_the_finite_numbers_and_is_purged_from_the_restored_step(tmp_path):
    record(tmp_path, [1, 2, 3], tensorboard=True)
    with MetricsWriter(tmp_path, 3, tensorboard=True) as writer:
        writer.write(3, {"reward": 7.0, "loss": math.nan})
    seen = list(events(tmp_path / "tb"))
    scalars = [(e.step, v.tag, round(v.simple_value, 3)) for e in seen for v in e.summary.value]
    assert scalars == [
        (1, "reward", 0.333),
        (2, "reward", 0.667),
        (3, "reward", 1.0),
        (3, "reward", 7.0),
    ]
    assert [e.step for e in seen if e.session_log.status == SessionLog.START] == [0, 3]


HOSTILE = "[red]R[/] [/] \x1b[31mE\x1b[0m \x07\r\n\t\x9b2J \u202eback :smile: [link=x]L[/link]"
LITERAL = r"[red]R[/] [/] \x1b[31mE\x1b[0m \x07\r\n\t\x9b2J \u202eback :smile: [link=x]L[/link]"


def test_markup_and_controls_in_a_completion_are_shown_and_do_not_act():
    screen = terminal(width=200)
    console = Console(10, 0, every=1, terminal=screen)
    hostile = group([HOSTILE, "b"], prompt=HOSTILE, answer=HOSTILE)
    console.show_group(1, hostile, 2)
    console.say(HOSTILE.replace("\n", " "))
    written = shown(screen)
    assert "\x1b[31mE" not in written
    assert not set(written) & set("\x07\r\t\x9b\u202e")
    plain = Terminal(file=io.StringIO(), width=200, record=True, _environ={})
    quiet = Console(10, 0, every=1, terminal=plain)
    assert quiet.literal(HOSTILE).plain == LITERAL


def test_what_the_terminal_cannot_write_is_shown_as_its_escape():
    screen = terminal(encoding="ascii", interactive=False)
    Console(10, 0, every=1, terminal=screen).say("é 中 \ud800 [b]ok[/b]\nsecond")
    assert shown(screen) == "\\xe9 \\u4e2d \\ud800 [b]ok[/b]\nsecond\n"


def test_a_long_completion_is_left_out_in_the_middle():
    text = Console(10, 0, every=1, terminal=terminal()).literal("a" * 500 + "b" * 5000).plain
    assert text == "a" * 160 + " …5,180 characters… " + "b" * 160


def test_the_table_shows_rewards_and_advantages_from_best_to_worst():
    screen = terminal(width=120)
    texts = ["worst", "best", "unjudged"]
    judged = group(texts, total=[-0.25, 1.5, math.nan], valid=[True, True, False])
    Console(10, 0, every=1, terminal=screen).show_group(3, judged, 3)
    written = shown(screen)
    assert written.index("best") < written.index("worst") < written.index("unjudged")
    for part in ("step 3", "1 + 1 =", "accuracy", "advantage", "1.50", "+0.50", "-1.25", "invalid"):
        assert part in written


def test_the_completions_shown_are_spread_over_the_rewards():
    seven = group(list("abcdefg"), total=[3.0, 0.0, 6.0, 1.0, 5.0, 2.0, 4.0])
    assert spread(seven, 3) == [2, 0, 1]
    assert spread(seven, 1) == [2]
    assert sorted(spread(seven, 99)) == list(range(7))


def test_without_a_terminal_there_is_one_plain_line_every_few_steps():
    screen = terminal(interactive=False)
    with Console(7, 0, every=3, terminal=screen) as console:
        for step in range(1, 8):
            numbers = {"reward": step / 2, "rewards/accuracy/mean": 0.25}
            console.step(step, numbers | {"num_tokens": 1200.0 * step, "step_time": 0.5})
            console.show_group(step, group(["a", "b"]), 2)
    lines = shown(screen).splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"step {n}/7" for n in (1, 3, 6, 7)]
    assert lines[0] == "step 1/7  reward 0.500  accuracy 0.250  2,400 tokens/s"
    assert lines[-1] == "step 7/7  reward 3.500  accuracy 0.250  2,400 tokens/s  0:00:00 left"


def test_a_restored_run_shows_tokens_a_second_only_once_it_knows_them():
    console = Console(9, 5, every=1, terminal=terminal(interactive=False))
    first, second = ({"num_tokens": n, "step_time": 2.0} for n in (5000.0, 5600.0))
    assert "tokens/s" not in console.describe(5, first)
    assert "300 tokens/s" in console.describe(6, second)


def test_the_live_line_stays_below_the_table():
    screen = terminal(width=120)
    with Console(2, 0, every=1, terminal=screen) as console:
        console.step(1, {"reward": 0.5})
        console.show_group(1, group(["alpha", "omega"]), 2)
        console.step(2, {"reward": 0.75})
    written = shown(screen)
    assert written.index("alpha") < written.rindex("step 2/2") < written.rindex("reward 0.750")
