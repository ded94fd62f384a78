"""Random keys: every draw has a purpose, and no two draws of a run share a key or an order."""

import ast
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import tiny

from instructjax import optim, ppo, reward, sft, steps
from instructjax.data.batches import pipeline
from instructjax.models import gpt, lora
from instructjax.ppo import PPOConfig
from instructjax.rollout import Sampling
from instructjax.runs import origin
from instructjax.system import keys

PACKAGE = Path(origin.__file__).parent.parent
# What takes a key and gives random numbers.
DRAWS = ("uniform", "normal", "truncated_normal", "bernoulli", "permutation")


def test_no_two_purposes_have_the_same_number():
  numbers = {keys._number(purpose) for purpose in keys.PURPOSES}
  assert len(numbers) == len(keys.PURPOSES)


def test_no_two_draws_of_a_run_share_a_key(monkeypatch):
  """The keys of a small run, step by step: models, adapter, SFT with dropout, PPO in two epochs.

  The steps are compiled, and their programs tell the key of every draw while they run.
  """
  draws = []

  def recording(name, draw):
    def recorded(key, *args, **kwargs):
      record = lambda data: draws.append((tuple(data.tolist()), name, str(args)))
      jax.debug.callback(record, jax.random.key_data(key))
      return draw(key, *args, **kwargs)

    return recorded

  for name in DRAWS:
    monkeypatch.setattr(jax.random, name, recording(name, getattr(jax.random, name)))
  # A recomputed block draws again from its own key, as it must: nothing is recomputed.
  monkeypatch.setattr(jax, "checkpoint", lambda function, **settings: function)
  # No other test has compiled the pieces of this model, so that they are traced with the recorder.
  lm = gpt.gpt(gpt.GPTConfig(tiny.VOCAB, context=64, width=8, depth=2, heads=2, dropout=0.2))
  seed = 3
  root = jax.random.key(seed)
  tx = optax.sgd(0.1)
  params = origin.random_params(lm, seed)
  lora.init(keys.key_for(root, "adapter"), lm.table, lora.sizes(lm.table, lora.Lora(2, 4.0, "all")))
  reward_model = reward.init(keys.key_for(root, "head"), lm, params)
  state = steps.init_state(root, params, tx)
  rows = tiny.demonstrations(lm, rows=2)
  sft_step = jax.jit(partial(sft.sft_step, lm=lm, tx=tx, cfg=sft.SFTConfig(micro=2)))
  for _ in range(2):
    state, _ = sft_step(state, {}, rows)
  # PPO is a run of its own, and goes on with the same seed.
  experiment = ppo.PPO(
    lm=lm,
    tx=optim.by_subtree(policy=tx, value=tx),
    sampling=Sampling(response=2),
    cfg=PPOConfig(epochs=2, minibatches=1, ptx_coef=0.0),
  )
  state = steps.init_state(root, ppo.init_params(params, reward_model), experiment.tx, kl_coef=0.1)
  frozen = ppo.Frozen(trunk={}, ref=params, reward=reward_model)
  prompts = tiny.prompts(lm, rows=2)
  iteration = jax.jit(partial(ppo.iteration, ppo=experiment))
  for _ in range(2):
    state, _ = iteration(state, frozen, prompts, None)
  jax.effects_barrier()
  names = Counter(name for _, name, _ in draws)
  # Two steps of two micro-batches through two layers, each of which drops twice; one order in each
  # of two epochs of two iterations, in which two rows get two tokens each. The rest are weights.
  assert names["bernoulli"] == 16 and names["permutation"] == 4 and names["uniform"] >= 8
  shared = [key for key, count in Counter(key for key, *_ in draws).items() if count > 1]
  assert not shared, [draw for draw in draws if draw[0] in shared]


def test_neighbouring_seeds_have_no_order_in_common():
  """The order of seed s + 1 was that of seed s, one epoch later."""

  def epochs(seed, count=4, rows=12):
    stream = pipeline.stream(
      list(range(rows)), list, size=rows, seed=keys.seed_for(seed, "prompts")
    )
    return [tuple(stream(epoch)) for epoch in range(count)]

  orders = [order for seed in range(4) for order in epochs(seed)]
  assert len(set(orders)) == len(orders)


def test_two_streams_of_one_run_have_orders_of_their_own():
  seeds = {keys.seed_for(0, purpose) for purpose in keys.PURPOSES}
  assert len(seeds) == len(keys.PURPOSES)
  assert keys.seed_for(0, "bucket", 0) != keys.seed_for(0, "bucket", 1)


# Where a key is split further that belongs to one purpose already.
WITHIN_A_PURPOSE = {
  "system/keys.py",
  "rollout.py",  # a token of the response
  "steps.py",  # a micro-batch
  "ppo.py",  # an epoch of minibatches
  "stages/drawing.py",  # a batch of prompts
  "models/transformer.py",  # a leaf, a layer
  "models/lora.py",  # a leaf
  "models/adapters.py",  # a random stream of a Flax module
}


def test_keys_are_made_in_one_place():
  """No file derives a key by a bare number from the key of the run."""
  places = set()
  for file in PACKAGE.rglob("*.py"):
    for node in ast.walk(ast.parse(file.read_text())):
      if not isinstance(node, ast.Attribute) or ast.unparse(node.value) != "jax.random":
        continue
      if node.attr in ("fold_in", "split"):
        places.add(file.relative_to(PACKAGE).as_posix())
  assert places == WITHIN_A_PURPOSE


def test_the_number_of_a_purpose_is_that_of_its_name_for_ever():
  """A run that is taken up by another process, or by a later version, has the same draws."""
  assert keys._number("head") == 0xA7F3F69C
  assert keys.seed_for(0, "prompts", 1) == 1489719460
  root = jax.random.key(0)
  by_hand = root
  for number in (0xA7F3F69C, 5, 7):
    by_hand = jax.random.fold_in(by_hand, number)
  assert keys.key_for(root, "head", 5, 7) == by_hand


def test_every_number_of_a_draw_counts_in_its_place():
  draws = [
    keys.run_key(0, "head"),
    keys.run_key(0, "head", 1),
    keys.run_key(0, "head", 1, 2),
    keys.run_key(0, "head", 2, 1),
    keys.run_key(0, "head", 3),
    keys.run_key(1, "head", 1, 2),
    keys.run_key(0, "ties", 1, 2),
  ]
  assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in draws}) == len(draws)
  seeds = [
    keys.seed_for(0, "prompts"),
    keys.seed_for(1, "prompts"),
    keys.seed_for(0, "text"),
    keys.seed_for(0, "prompts", 1),
    keys.seed_for(0, "prompts", 1, 2),
    keys.seed_for(0, "prompts", 2, 1),
  ]
  assert len(set(seeds)) == len(seeds)
