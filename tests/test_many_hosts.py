"""Many hosts: four processes, a lost first host, a bucket, and the other commands on two."""

import shutil

import numpy as np
import pytest
from bucket_server import running_bucket
from test_hosts import (
    CONFIG,
    HEARTBEAT,
    JUDGE,
    STEPS,
    assert_same_numbers,
    codes,
    own_lines,
    together,
    train,
)
from test_resume import state_of
from test_storage import copied

from grpojax.run import read_config

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many_hosts")
    (folder / "config.py").write_text(CONFIG)
    (folder / "judge.py").write_text(JUDGE)
    assert codes(together(folder, train("alone"), 1)) == [0]
    return folder


def assert_same_run(ours, theirs):
    assert_same_numbers(ours, theirs)
    config = read_config(theirs)
    states = state_of(ours, config), state_of(theirs, config)
    for name, leaf in states[1].items():
        np.testing.assert_allclose(states[0][name], leaf, rtol=1e-5, atol=1e-5, err_msg=name)


def test_four_hosts_make_the_run_of_one(folder):
    assert codes(together(folder, train("four"), 4)) == [0] * 4
    assert_same_run(folder / "four", folder / "alone")


def test_a_run_goes_on_from_one_host_to_two_to_four(folder):
    shutil.copytree(folder / "alone", folder / "grown")
    shutil.rmtree(folder / "grown" / "checkpoints" / str(STEPS))
    asked = together(folder, train("grown"), 2, SIGNAL="0 3 SIGTERM")
    assert codes(asked) == [75, 75]
    assert codes(together(folder, train("grown"), 4)) == [0] * 4
    assert_same_run(folder / "grown", folder / "alone")


@pytest.mark.parametrize("lost", [0, 2])
def test_when_one_of_four_is_killed_the_others_end_and_the_run_can_go_on(folder, lost):
    name = f"lost_{lost}"
    ended = together(folder, train(name), 4, SIGNAL=f"{lost} 22 SIGKILL")
    killed_at = ended[lost][3]
    for index, (code, _, errors, end) in enumerate(ended):
        if index != lost:
            assert end - killed_at < 2 * HEARTBEAT
            assert code not in (0, 2, 75)
            assert "lost touch with another host" in errors or "another task died" in errors
    assert codes(together(folder, train(name), 4)) == [0] * 4
    assert_same_run(folder / name, folder / "alone")


def test_two_hosts_train_on_demonstrations_and_evaluate_as_one_does(folder):
    said = {}
    for hosts in (1, 2):
        stage = ["sft", "config.py", "--workdir", f"sft_{hosts}", "--sft.max-steps", "3"]
        stage += ["--sft.until-accuracy", "0", "--sft.check-every", "2"]
        stage += ["--sampling.completion-length", "32"]
        assert codes(together(folder, stage, hosts)) == [0] * hosts
        asked = ["evaluate", f"sft_{hosts}", "--examples", "5", "--samples", "2"]
        ended = together(folder, asked, hosts)
        assert codes(ended) == [0] * hosts
        said[hosts] = [x.replace(f"sft_{hosts}", "") for x in own_lines(ended[0][1])]
    assert_same_numbers(folder / "sft_2", folder / "sft_1")
    assert said[1] == said[2] and len(said[1]) > 2


def test_two_hosts_with_a_bucket_make_the_run_of_one_on_disk(folder):
    with running_bucket() as bucket:
        there, about = train("gs://bucket/runs/there"), bucket.environment()
        asked = together(folder, there, 2, **about, SIGNAL="1 10 SIGTERM")
        assert codes(asked) == [75, 75]
        assert codes(together(folder, there, 2, **about)) == [0, 0]
        assert_same_run(copied(bucket, "runs/there", folder / "there"), folder / "alone")
