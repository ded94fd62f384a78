"""Settings of each stage under which nearly every field matters, and the files that they name."""

import jax
from stage_runs import written

from instructjax import models
from instructjax.models import heads
from instructjax.runs import origin

SCORE = """
def f(prompts, responses):
  return [len(text) + 0.1 * sum(map(ord, text)) for text in responses]
"""
SMALL_MODEL = {"model.dtype": "float32", "model.remat": "none"}
TRAINING = {
  **SMALL_MODEL,
  "seed": 1,
  "steps": 3,
  "batch": 4,
  "checkpoint_every": 2,
  "keep": 2,
  "evaluate_every": 1,
  "model.dropout": 0.1,
  "optimizer.lr": 0.01,
  "optimizer.warmup": 1,
  "optimizer.start": 0.5,
  "optimizer.final": 0.5,
  "optimizer.decay": 5,
  "optimizer.weight_decay": 0.1,
}
LENGTHS = {"data.prompt": 12, "data.response": 12}
DRAWS = {
  "model.dtype": "float32",
  "model.source": "policy",
  "data.prompts": "prompts.jsonl",
  "data.prompt": 12,
  "seed": 1,
  "prompts": 3,
  "batch": 2,
  "n": 2,
  "rewards": "python:mine.py:f",
  "sampling.response": 4,
  "sampling.top_k": 5,
}
# The settings of each stage under which every field matters, in a folder that holds these files.
RICH = {
  "pretrain": {
    **TRAINING,
    "model.source": "policy",
    "lora.rank": 2,
    "data.text": "text.jsonl",
    "data.valid": "text.jsonl",
    "data.length": 24,
  },
  "sft": {
    **TRAINING,
    **LENGTHS,
    "data.demonstrations": "demonstrations.jsonl",
    "data.valid": "demonstrations.jsonl",
    "select.reward": "python:mine.py:f",
    "select.prompts": "prompts.jsonl",
    "select.count": 2,
    "select.batch": 4,
    "select.response": 4,
  },
  "rl_init": {
    **TRAINING,
    **LENGTHS,
    "data.demonstrations": "demonstrations.jsonl",
    "data.text": "text.jsonl",
    "data.valid": "demonstrations.jsonl",
  },
  "reward": {
    **TRAINING,
    **LENGTHS,
    "data.comparisons": "comparisons.jsonl",
    "data.demonstrations": "demonstrations.jsonl",
    "data.valid": "comparisons.jsonl",
  },
  "dpo": {
    **TRAINING,
    **LENGTHS,
    "data.comparisons": "comparisons.jsonl",
    "data.valid": "comparisons.jsonl",
    "frozen_dtype": "float32",
  },
  "ppo": {
    **SMALL_MODEL,
    "rl_init": "policy",
    "reward_model": "reward",
    "rewards": "python:mine.py:f",
    "data.prompts": "prompts.jsonl",
    "data.text": "text.jsonl",
    "data.prompt": 12,
    "data.length": 24,
    "sampling.response": 4,
    "seed": 1,
    "iterations": 2,
    "batch": 4,
    "ptx_ratio": 1,
    "ppo.minibatches": 2,
    "missing_eos.kind": "subtract",
    "kl.control": "adaptive",
    "data.valid": "prompts.jsonl",
    "gold": "python:mine.py:f",
    "evaluate_every": 1,
    "sample_every": 1,
    "samples": 2,
    "policy_optimizer.lr": 0.01,
    "policy_optimizer.warmup": 0,
    "policy_optimizer.start": None,
    "checkpoint_every": 1,
    "keep": 2,
  },
  "grpo": {
    **SMALL_MODEL,
    "rl_init": "policy",
    "rewards": "python:mine.py:f",
    "data.prompts": "prompts.jsonl",
    "data.prompt": 12,
    "sampling.response": 4,
    "seed": 1,
    "iterations": 2,
    "batch": 2,
    "n": 2,
    "grpo.minibatches": 2,
    "missing_eos.kind": "subtract",
    "kl.control": "adaptive",
    "data.valid": "prompts.jsonl",
    "gold": "python:mine.py:f",
    "evaluate_every": 1,
    "sample_every": 1,
    "samples": 2,
    "optimizer.lr": 0.01,
    "optimizer.warmup": 1,
    "optimizer.start": 0.5,
    "checkpoint_every": 1,
    "keep": 2,
  },
  "bestofn": {**DRAWS, "gold": "python:mine.py:f"},
  "sample": {**DRAWS, "k": 2},
}


def prepare(place):
  """Fills a working directory with data, a policy, a reward model and a reward of one's own."""
  written(place)
  (place / "mine.py").write_text(SCORE)
  config = origin.SHAPES["tiny"]
  params = models.build(config).init(jax.random.key(0))
  about = origin.describe(config, "bytes")
  origin.finish(place / "policy", 1, params, about, "policy")
  head = heads.init_head(jax.random.key(1), config.width)
  origin.finish(place / "reward", 1, {"lm": params, "head": head}, about, "reward")
  return place
