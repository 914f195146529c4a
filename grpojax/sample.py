"""Sample: completions of one prompt, from a run or from a Hugging Face folder."""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from grpojax.checks import require
from grpojax.config import ModelConfig
from grpojax.data import make_prompts
from grpojax.kernels import choose_attention
from grpojax.mesh import mesh_of
from grpojax.model import Policy, abstract_params
from grpojax.pretrained import load_params, read_model_config
from grpojax.run import is_run, read_config, trained_params
from grpojax.sampling import make_sampler, stream_key
from grpojax.sharding import use_mesh
from grpojax.storage import Place
from grpojax.task import Example
from grpojax.tokenizer import decode_groups, load_tokenizer, stop_ids


def sample_text(
    source: Place,
    prompt: str,
    *,
    samples: int,
    greedy: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    completion_length: int,
    seed: int,
    say: Callable[[str], None] = print,
) -> list[tuple[str, float]]:
    """`samples` completions of `prompt` with the log-probability of each, its stop token's
    included.

    A run's newest checkpoint and stop texts are used; of a Hugging Face folder, the weights and
    EOS.

    Raises:
      ValueError: `source` is neither, or prompt and completion exceed the model's length.
    """
    run = is_run(source)
    config = read_config(source) if run else None
    model = config.model if config else read_model_config(source)
    tokenizer = load_tokenizer(str(source))
    stops = stop_ids(tokenizer, config.sampling.stop if config else ())
    length = max(len(tokenizer.encode(prompt)), 1)
    require(
        length + completion_length <= model.max_length,
        f"the prompt's {length} tokens + completion_length={completion_length} must be at most the "
        f"model's max_length={model.max_length}",
    )
    prompts = make_prompts([Example(id=0, prompt=prompt, answer="")], tokenizer, length)
    mesh = model_mesh(model)
    policy = Policy(choose_attention(model, mesh.devices.flat[0]))
    with use_mesh(mesh):
        if run:
            params, _ = trained_params(source, mesh, say)
        else:
            params = load_params(source, model, abstract_params(policy, mesh))
        sampler = make_sampler(
            policy,
            group_size=samples,
            completion_length=completion_length,
            stop_ids=stops,
            pad_id=tokenizer.pad_id,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            greedy=greedy,
        )
        drawn = jax.device_get(sampler(params, prompts, stream_key(seed, "sample", 0)))
    texts = decode_groups(tokenizer, drawn.tokens, drawn.mask, stops)[0]
    return list(zip(texts, np.sum(drawn.logps, -1)[0].tolist()))


def model_mesh(model: ModelConfig) -> Mesh:
    """As many of the devices as the model's heads, feed-forward and vocabulary divide over."""
    split = model.num_experts or model.ffw_dim
    parts = math.gcd(jax.device_count(), model.vocab_size, model.num_kv_heads, split)
    return mesh_of(jax.devices()[:parts], tensor=parts)
