"""Our functions against those of TRL 1.12.0, the last release with PPO: values and torch's
gradients.

Run with `pytest -m oracle` where the `oracles` extra is installed.
"""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax import losses, returns

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]
PAD, EOS = 0, 1


@pytest.fixture(scope="module")
def trl():
  """(the PPO module, the trainer utilities, the experimental utilities) of TRL."""
  from trl.experimental import utils
  from trl.experimental.ppo import ppo_trainer
  from trl.trainer import utils as trainer_utils

  return ppo_trainer, trainer_utils, utils


def close(ours, theirs, rtol=1e-5, atol=1e-6):
  np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=rtol, atol=atol)


def both(x, grad=False):
  x = np.asarray(x)
  x = x.astype(np.float32) if x.dtype.kind == "f" else x
  theirs = torch.tensor(x)
  return jnp.asarray(x), theirs.requires_grad_() if grad else theirs


def responses(seed=0, B=6, R=9, V=13):
  """Token ids with an EOS somewhere, or nowhere, and PAD after it; PAD is never sampled."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(2, V, (B, R))
  for b, end in enumerate(rng.integers(0, R, B - 1)):
    tokens[b, end] = EOS
    tokens[b, end + 1 :] = PAD
  return tokens


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logp_and_its_gradient(trl, temperature):
  rng = np.random.default_rng(0)
  logits, theirs = both(rng.normal(0, 4, (3, 5, 11)), grad=True)
  tokens, ids = both(rng.integers(0, 11, (3, 5)))
  f = lambda x: losses.token_logp(losses.temper(x, temperature), tokens)
  want = trl[1].selective_log_softmax(theirs / temperature, ids)
  close(f(logits), want, rtol=1e-5, atol=5e-6)
  want.sum().backward()
  close(jax.grad(lambda x: f(x).sum())(logits), theirs.grad)


def test_entropy(trl):
  logits, theirs = both(np.random.default_rng(0).normal(0, 4, (3, 5, 11)))
  close(losses.entropy(logits), trl[1].entropy_from_logits(theirs))


def test_masked_statistics(trl):
  rng = np.random.default_rng(1)
  x, tx = both(rng.normal(2, 3, (4, 9)))
  mask, tm = both(rng.random((4, 9)) < 0.6)
  close(returns.masked_mean(x, mask), trl[0].masked_mean(tx, tm))
  for unbiased in (False, True):
    close(
      returns.masked_var(x, mask, unbiased=unbiased), trl[0].masked_var(tx, tm, unbiased=unbiased)
    )
  for shift in (False, True):
    want = torch.masked_fill(trl[0].masked_whiten(tx, tm, shift_mean=shift), ~tm, 0)
    close(returns.whiten(x, mask, shift_mean=shift, unbiased=True), want)


def test_biased_whitening_differs_and_is_the_default(trl):
  rng = np.random.default_rng(1)
  x, tx = both(rng.normal(2, 3, (2, 5)))
  mask, tm = both(np.ones((2, 5), bool))
  close(returns.whiten(x, mask) * np.sqrt(9 / 10), trl[0].masked_whiten(tx, tm))


def test_the_score_falls_where_trl_puts_it(trl):
  """TRL finds the end of a response by PAD and pays at e + 1 where there is room; we are told the
  mask.
  """
  tokens = responses()
  ids = torch.tensor(tokens)
  assert torch.equal(trl[0].truncate_response(EOS, PAD, ids), ids)
  last = trl[2].first_true_indices(ids == PAD) - 1
  end = torch.where(last + 1 < ids.shape[1], last + 1, last)
  mask = jnp.asarray(np.arange(tokens.shape[1]) <= last.numpy()[:, None])
  np.testing.assert_array_equal(jnp.argmax(returns.at_last_token(mask), axis=1), last)
  np.testing.assert_array_equal(jnp.argmax(returns.after_last_token(mask), axis=1), end)
  wide = ~(torch.arange(tokens.shape[1]) > (last + 1)[:, None])
  np.testing.assert_array_equal(returns.value_mask(mask, returns.after_last_token), wide)


def test_a_sampled_pad_token_confuses_trl_and_not_us(trl):
  """A response that starts with the PAD id has length 0 there; here the mask counts."""
  tokens = responses()
  tokens[0, 0] = PAD
  ids = torch.tensor(tokens)
  assert (trl[2].first_true_indices(ids == PAD) - 1)[0] == -1
  mask = jnp.ones(tokens.shape, bool)
  assert returns.at_last_token(mask)[0, -1] and losses.token_mean(mask)[0, 0] > 0


def test_clipped_losses_and_their_gradients(trl):
  rng = np.random.default_rng(3)
  old, told = both(-rng.exponential(1.5, (4, 7)))
  logp, tlogp = both(old + rng.normal(0, 0.3, (4, 7)), grad=True)
  value, tvalue = both(rng.normal(0, 1, (4, 7)), grad=True)
  old_value, told_value = both(np.asarray(value) + rng.normal(0, 0.3, (4, 7)))
  advantage, tadv = both(rng.normal(0, 1, (4, 7)))
  target, ttarget = both(rng.normal(0, 1, (4, 7)))
  mask, tmask = both(np.arange(7) < np.array([7, 1, 4, 6])[:, None])
  ratio = torch.exp(tlogp - told)
  policy = trl[0].masked_mean(torch.max(-tadv * ratio, -tadv * torch.clamp(ratio, 0.8, 1.2)), tmask)
  near = torch.clamp(tvalue, told_value - 0.2, told_value + 0.2)
  critic = 0.5 * trl[0].masked_mean(
    torch.max((tvalue - ttarget) ** 2, (near - ttarget) ** 2), tmask
  )
  (policy + 0.1 * critic).backward()
  w = losses.token_mean(mask)

  def ours(lp, v):
    p = losses.clipped_policy(lp, old, advantage, w, clip=0.2)
    c = losses.clipped_value(v, old_value, target, w, clip=0.2)
    return p + 0.1 * c, (p, c)

  grads, (p, c) = jax.grad(ours, argnums=(0, 1), has_aux=True)(logp, value)
  close(p, policy)
  close(c, critic)
  close(grads[0], tlogp.grad)
  close(grads[1], tvalue.grad)


def test_approxkl_of_trl_is_diluted_by_padding():
  """TRL averages 0.5 d² over padding too, where d = 0: smaller than ours by the filled share of the
  batch.
  """
  rng = np.random.default_rng(4)
  mask = np.arange(9) < np.array([9, 6, 3])[:, None]
  d, td = both(np.where(mask, rng.normal(0, 0.2, mask.shape), 0))
  ours = losses.policy_metrics(d, jnp.zeros_like(d), d, jnp.asarray(mask))["policy/approxkl_avg"]
  close(ours * mask.mean(), 0.5 * (td**2).mean())


def test_ranking_and_its_gradient_against_torch_autograd():
  """Eq. 1 over `itertools.combinations`; with K = 2 and a margin it is the loss of TRL's reward
  trainer.
  """
  rng = np.random.default_rng(5)
  score, theirs = both(rng.normal(0, 2, (4, 6)), grad=True)
  rank = np.stack([rng.permutation(6) + 1 for _ in range(4)])
  for margin in (0.0, 0.5):
    theirs.grad = None
    total = 0
    for b in range(4):
      pairs = [(i, j) if rank[b, i] < rank[b, j] else (j, i) for i, j in combinations(range(6), 2)]
      gaps = torch.stack([theirs[b, i] - theirs[b, j] for i, j in pairs])
      total = total - torch.nn.functional.logsigmoid(gaps - margin).mean() / 4
    total.backward()
    f = lambda r, margin=margin: losses.ranking(
      r, losses.pair_weights(jnp.asarray(rank)), margin=margin
    )
    close(f(score), total)
    close(jax.grad(f)(score), theirs.grad)
