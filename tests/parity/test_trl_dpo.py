"""DPO against the trainer of TRL 1.12.0: its loss with the gradient of every weight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructjax import dpo, losses, steps
from instructjax.data.batches import branches, pipeline
from instructjax.types import Frozen

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

trainers = pytest.importorskip("trl_trainers")
update = pytest.importorskip("trl_update")

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)

# Tokens of the prompts, and of the completions that are better and worse.
PROMPTS, CHOSEN, REJECTED = (3, 1, 5, 2), (4, 7, 1, 3), (2, 5, 6, 3)
BETA, RATE = 0.3, 0.02


def pairs():
  """(prompt, better, worse) as ids of ragged lengths."""
  rng = np.random.default_rng(0)
  draw = lambda length: rng.integers(2, update.VOCAB, length)
  return [tuple(draw(n) for n in lengths) for lengths in zip(PROMPTS, CHOSEN, REJECTED)]


def their_batch():
  """The batch of TRL's collator: the better completions, then the worse, padded on the right."""
  rows = [(prompt, better) for prompt, better, _ in pairs()]
  rows += [(prompt, worse) for prompt, _, worse in pairs()]
  width = max(len(prompt) + len(completion) for prompt, completion in rows)
  ids, valid, marked = np.zeros((3, len(rows), width), np.int64)
  for row, (prompt, completion) in enumerate(rows):
    length = len(prompt) + len(completion)
    ids[row, :length] = np.concatenate([prompt, completion])
    valid[row, :length] = 1
    marked[row, len(prompt) : length] = 1
  names = ("input_ids", "attention_mask", "completion_mask")
  return {name: torch.tensor(x) for name, x in zip(names, (ids, valid, marked))}


def our_batch():
  """The same as packed comparisons, of which the second and fourth have the better one last."""
  groups = []
  for number, (prompt, better, worse) in enumerate(pairs()):
    rows = [
      pipeline.Row(np.concatenate([prompt, completion]).astype(np.int32), start=len(prompt))
      for completion in (better, worse)
    ]
    ranks = (1, 2)
    if number % 2:
      rows, ranks = rows[::-1], (2, 1)
    group = pipeline.Group(tuple(rows), ranks=ranks)
    groups.append(branches.of_group(group, learnt=True))
  return branches.pack(groups, branches.layout(groups, len(groups), shards=1))


def test_new_weights_and_metrics_are_those_of_trl(tmp_path):
  """Two steps of SGD: at the second the policy has left where it was by the first."""
  policy, reference = trainers.policy_and_reference()
  trainer = trainers.dpo(tmp_path / "trl", policy, reference, beta=BETA)
  batch = their_batch()
  one_loss = lambda: trainer._compute_loss(policy, batch, return_outputs=False)
  their_losses, start = trainers.descend(policy, [one_loss, one_loss], RATE)

  lm, params = update.params_of(start, tmp_path / "start")
  _, expected = update.params_of(policy, tmp_path / "after")
  _, ref = update.params_of(reference, tmp_path / "ref")
  tx = optax.sgd(RATE)
  state, frozen = steps.init_state(jax.random.key(0), params, tx), Frozen({}, ref, {})
  step = jax.jit(partial(dpo.dpo_step, lm=lm, tx=tx, cfg=dpo.DPOConfig(beta=BETA)))
  comparisons = jax.tree.map(jnp.asarray, our_batch())
  for number, want in enumerate(their_losses):
    state, metrics = step(state, frozen, comparisons)
    close(metrics["loss"], want)
    for ours, theirs in {
      "accuracy": "rewards/accuracies",
      "reward/chosen": "rewards/chosen",
      "reward/rejected": "rewards/rejected",
      "reward/margin": "rewards/margins",
      "logp/chosen": "logps/chosen",
      "logp/rejected": "logps/rejected",
    }.items():
      close(metrics[ours], trainer._metrics["train"][theirs][number], err_msg=ours)
  moved = lambda new: jax.tree.map(lambda x, old: np.asarray(x - old), new, params)
  want, got = moved(expected), moved(state.params)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
  assert largest > 1e-3 and their_losses[1] < their_losses[0]
  jax.tree.map(partial(close, rtol=0, atol=1e-3 * largest), got, want)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_of_whole_responses(tmp_path, smoothing):
  """TRL's robust loss (Chowdhury et al. 2024) is two of ours; without smoothing it is one."""
  rng = np.random.default_rng(1)
  logp, ref = rng.normal(-20, 3, (2, 2, 6)).astype(np.float32)
  tlogp = torch.tensor(logp, requires_grad=True)
  loss_type = ["robust"] if smoothing else ["sigmoid"]
  trainer = trainers.dpo(
    tmp_path, None, None, beta=0.1, loss_type=loss_type, label_smoothing=smoothing
  )
  want = trainers.dpo_loss(trainer, tlogp, torch.tensor(ref))
  want.backward()

  def loss(x):
    clean = jnp.full(6, (1 - smoothing) / (1 - 2 * smoothing) / 6, jnp.float32)
    flipped = jnp.full(6, -smoothing / (1 - 2 * smoothing) / 6, jnp.float32)
    total = losses.dpo(x[0], x[1], ref[0], ref[1], clean, beta=0.1)
    return total + losses.dpo(x[1], x[0], ref[1], ref[0], flipped, beta=0.1)

  ref = jnp.asarray(ref)
  value, gradient = jax.value_and_grad(loss)(jnp.asarray(logp))
  np.testing.assert_allclose(value, want.item(), rtol=2e-6)
  np.testing.assert_allclose(gradient, tlogp.grad.numpy(), rtol=2e-6, atol=1e-7)
