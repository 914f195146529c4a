"""Sample: completions from a run and from a pretrained folder, with their log-probabilities."""

import dataclasses

import jax
import numpy as np
import pytest
import test_pretrained
from test_train import CONFIG

from grpojax.__main__ import main
from grpojax.checkpoint import restore_params
from grpojax.data import make_prompts
from grpojax.learner import abstract_params
from grpojax.pretrained import import_gguf, load_params
from grpojax.run import open_run
from grpojax.sample import sample_text
from grpojax.scoring import make_scorer
from grpojax.task import Example
from grpojax.tokenizer import load_tokenizer
from grpojax.train import train

DRAW = dict(
    samples=3, greedy=False, temperature=1.3, top_k=0, top_p=1.0, completion_length=10, seed=0
)
RUN = dataclasses.replace(
    CONFIG, steps=1, sampling=dataclasses.replace(CONFIG.sampling, stop=("e", "a"))
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of one step, whose completions end at EOS, at an e or at an a."""
    path = tmp_path_factory.mktemp("sample") / "run"
    assert train(RUN, path) == 0
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A Hugging Face style folder with random weights."""
    path = tmp_path_factory.mktemp("sample")
    weights = test_pretrained.random_weights()
    import_gguf(test_pretrained.write_gguf(path / "tiny.gguf", weights), path / "model")
    return path / "model"
