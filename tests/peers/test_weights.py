"""Real weights: SmolLM2-135M-Instruct answers as it does in transformers.

`make test-weights` runs this; it needs the extra `baselines` and `grpojax import smollm2-135m`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import load_folder

from grpojax.chat import Chat, render_chat
from grpojax.data import make_prompts
from grpojax.model import Policy
from grpojax.pretrained import read_model_config
from grpojax.sampling import make_sampler, stream_key
from grpojax.task import Example
from grpojax.tokenizer import load_tokenizer

FOLDER = Path(__file__).parent.parent.parent / "models/smollm2-135m"
QUESTIONS = ["What is the capital of France?", "Name three colours.", "What is 12 + 34?"]
CHATML = Chat(
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\\n' }}"
)
LENGTH = 32


@pytest.fixture(scope="module")
def theirs():
    return transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_greedy_answers_equal_those_of_transformers(theirs):
    config, tokenizer = read_model_config(FOLDER), load_tokenizer(str(FOLDER))
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    texts = render_chat(CHATML, asked)
    examples = [Example(id=i, prompt=text, answer="") for i, text in enumerate(texts)]
    prompts = make_prompts(examples, tokenizer, 48)
    sampler = make_sampler(
        Policy(config), group_size=1, completion_length=LENGTH, stop_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id, greedy=True,
    )  # fmt: skip
    ours = sampler(load_folder(FOLDER, config), prompts, stream_key(0, "evaluate", 0))
    for row, mask, text in zip(np.asarray(ours.tokens), np.asarray(ours.mask), texts):
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            out = theirs.generate(ids, max_new_tokens=LENGTH, do_sample=False)
        expected = out[0, ids.shape[1] :].tolist()
        print(repr(tokenizer.decode(expected)))
        assert row[0][mask[0]].tolist() == expected
