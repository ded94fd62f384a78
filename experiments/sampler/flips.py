"""How often other slots sample another token, by the rounding of matrix products of another shape.

  python experiments/sampler/flips.py                      # bfloat16, 64 slots, 256 rows
  python experiments/sampler/flips.py --dtype=float32
  python experiments/sampler/flips.py --temperature=0.25   # a sharper distribution

The same prompts are continued with the same noise twice: in --slots slots, and with a slot for each
row.  A token is compared where all tokens before it are the same; after the first that differs, a
row has another history.  The weights are random.  The interval resamples rows, at 95 %.
"""

import argparse
import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import intervals, models, rollout
from instructjax.plan import lengths
from instructjax.plan.bench import SHAPES
from instructjax.rollout import Sampling
from instructjax.types import Prompts


def first_difference(a, b, mask):
  """Returns (whether a row's tokens differ, tokens with the same history) for every row."""
  differs = (a != b) & mask
  flipped = differs.any(1)
  length = mask.sum(1)
  return flipped, np.where(flipped, differs.argmax(1) + 1, length)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--shape", default="gpt-5m", choices=SHAPES)
  parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
  parser.add_argument("--rows", type=int, default=256)
  parser.add_argument("--slots", type=int, default=64)
  parser.add_argument("--prompt", type=int, default=128)
  parser.add_argument("--response", type=int, default=128)
  parser.add_argument("--temperature", type=float, default=1.0)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()

  lm = models.build(dataclasses.replace(SHAPES[args.shape], dtype=args.dtype))
  params = jax.jit(lm.init)(jax.random.key(args.seed))
  prompt, response = lengths.draws("paper", args.prompt, args.response)(args.seed, args.rows)
  rng = np.random.default_rng(args.seed)
  valid = np.arange(args.prompt) >= args.prompt - prompt[:, None]
  tokens = rng.integers(1, lm.vocab_size, valid.shape) * valid
  prompts = Prompts(jnp.asarray(tokens, jnp.int32), jnp.asarray(valid), jnp.asarray(response))

  sampled = []
  for slots in (args.slots, args.rows):
    cfg = Sampling(response=args.response, temperature=args.temperature, slots=slots)
    draw = jax.jit(partial(rollout.sample, lm, cfg=cfg))
    rows = draw(params, prompts, jax.random.key(args.seed + 1))
    sampled.append(jax.device_get(rows))
  few, all_at_once = sampled
  responses = [rows.tokens[:, args.prompt :] for rows in sampled]
  flipped, compared = first_difference(*responses, few.mask)
  rate = intervals.share(np.stack([flipped, compared], axis=1))
  same = np.arange(args.response) < (compared - flipped)[:, None]
  error = np.abs(few.logp - all_at_once.logp)[same]
  result = {
    **vars(args),
    "flips": int(flipped.sum()),
    "compared": int(compared.sum()),
    "rate": float(rate.value),
    "low": float(rate.low),
    "high": float(rate.high),
    "logp_error": float(error.mean()),
    "logp_error_max": float(error.max()),
  }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
