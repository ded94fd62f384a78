"""Would the tests notice?  Faults that a person could make in the method, one at a time.

  python scripts/mutants.py --list                  the mutants of each module
  python scripts/mutants.py                         all of them; takes an hour
  python scripts/mutants.py --only losses           those of one module
  python scripts/mutants.py --only losses sign      those whose phrase has the word "sign"

A mutant is a piece of a module, what takes its place, and a phrase that says what is wrong then.
Each of them is applied to a copy of the package, and the fast tests of its module run against the
copy until one of them fails.  A mutant that no test fails survives: a test is missing, or the
mutant changes nothing that could be observed.  In that case `equivalent` says why, and the mutant
is not run.

The exit code is 1 where a mutant survives.  `tests/test_mutants.py` checks that each piece stands
in its module exactly once, so a change of the code asks for a change of this table.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "instructjax"
# Seconds after which a mutant counts as killed: it made a loop endless.
PATIENCE = 300


@dataclass(frozen=True)
class Mutant:
  """One fault: `old` becomes `new`, and that `breaks` something."""

  old: str
  new: str
  breaks: str
  # Why no test can notice it.
  equivalent: str = ""


# The tests of each module, the quickest first.
TESTS = {
  "losses": ["tests/method/test_losses.py", "tests/method/test_misuse.py"],
  "returns": ["tests/method/test_returns.py", "tests/method/test_misuse.py"],
  "likelihood": ["tests/method/test_likelihood.py"],
  "rollout": ["tests/method/test_rollout.py", "tests/method/test_misuse.py"],
  "steps": ["tests/method/test_steps.py", "tests/method/test_misuse.py"],
  "packs": ["tests/method/test_packs.py"],
  "optim": ["tests/method/test_optim.py"],
  "sharding": ["tests/method/test_sharding.py"],
  "sft": ["tests/method/test_sft.py"],
  "reward": ["tests/method/test_reward.py"],
  "ppo": [
    "tests/method/test_ppo_by_hand.py",
    "tests/method/test_misuse.py",
    "tests/method/test_ppo.py",
  ],
  "dpo": ["tests/method/test_dpo.py"],
  "bestofn": ["tests/method/test_bestofn.py"],
  "evals/preference/length": ["tests/evals/test_preference.py"],
  "intervals": ["tests/method/test_intervals.py"],
  "models/heads": ["tests/models/test_heads.py"],
  "models/blocks": ["tests/models/test_branched_rows.py"],
  "models/attention": ["tests/models/test_attention.py", "tests/models/test_branched_rows.py"],
  "models/transformer": ["tests/models/test_branched_rows.py"],
  "data/batches/branches": ["tests/data/batches/test_branches.py"],
  "models/cache": [
    "tests/models/test_cache.py",
    "tests/models/test_transformer.py",
    "tests/models/test_int8.py",
    "tests/method/test_rollout.py",
  ],
  "models/int8": ["tests/models/test_int8.py"],
  "models/decay": ["tests/models/test_decay.py"],
  "system/keys": ["tests/system/test_keys.py"],
}

M = Mutant
MUTANTS: dict[str, list[Mutant]] = {}

MUTANTS["losses"] = [
  M(
    "logits.astype(jnp.float32) / temperature",
    "logits.astype(jnp.float32) * temperature",
    "logits are multiplied by the temperature",
  ),
  M(
    "is_banned[list(banned)] = True",
    "is_banned[list(banned)[:1]] = True",
    "only the first banned id is banned",
  ),
  M("return picked - normaliser", "return picked", "log-probabilities without the normaliser"),
  M(
    "picked = jnp.sum(jnp.where(is_token, logits, 0), axis=-1)",
    "picked = jnp.max(jnp.where(is_token, logits, 0), axis=-1)",
    "max for sum where the vocabulary is sharded",
  ),
  M(
    "return jnp.log(total) - weighted / total",
    "return jnp.log(total) + weighted / total",
    "sign in the entropy",
  ),
  M("z = logits - top\n", "z = logits\n", "the entropy overflows"),
  M(
    "count = jnp.maximum(jnp.sum(mask), 1)  # an empty",
    "count = jnp.int32(mask.size)  # an empty",
    "the token mean counts padding",
  ),
  M("rows = jnp.sum(length > 0)", "rows = mask.shape[0]", "the sequence mean counts empty rows"),
  M(
    "length = jnp.sum(mask, axis=-1, keepdims=True)",
    "length = jnp.sum(mask, axis=0, keepdims=True)",
    "the wrong axis in the sequence mean",
  ),
  M("ordered = winner < loser if", "ordered = winner <= loser if", "ties are counted"),
  M(
    "real = (winner > 0) & (loser > 0)", "real = loser > 0", "a padded completion beats all others"
  ),
  M(
    "real = (winner > 0) & (loser > 0)",
    "real = winner > 0",
    "the padded loser is not asked for",
    equivalent="a real winner has a rank above 0, and no loser of rank 0 has a larger one",
  ),
  M("prompts = jnp.sum(pairs > 0)", "prompts = rank.shape[0]", "prompts without pairs count"),
  M(
    "pairs = completions * (completions - 1) // 2",
    "pairs = completions * completions // 2",
    "a completion is paired with itself",
  ),
  M("return -jnp.sum(weight * logp)", "return jnp.sum(weight * logp)", "sign of the likelihood"),
  M(
    "difference = winner - loser - margin",
    "difference = winner - loser + margin",
    "sign of the margin",
  ),
  M(
    "difference = winner - loser - margin",
    "difference = loser - winner - margin",
    "the loser is preferred",
  ),
  M("total = winner + loser", "total = winner - loser", "centering penalises differences"),
  M(
    "best = rank == 1",
    "best = rank == jnp.min(rank, axis=1, keepdims=True)",
    "a padded completion is the best",
  ),
  M(
    "real = (rank > 0) & (weight != 0)[:, None]",
    "real = (rank >= 0) & (weight != 0)[:, None]",
    "padded completions take part in the softmax",
  ),
  M(
    "target = weight[:, None] / ties.astype(jnp.float32)",
    "target = weight[:, None] / jnp.ones_like(ties, jnp.float32)",
    "tied best completions count double",
  ),
  M(
    "jnp.where(difference == 0, jnp.float32(0.5), 0)",
    "jnp.where(difference == 0, jnp.float32(0), 0)",
    "equal scores are wrong",
  ),
  M("log_ratio = logp - old_logp", "log_ratio = old_logp - logp", "the ratio upside down"),
  M(
    "bounded = jnp.minimum(log_ratio, LARGEST_LOG_RATIO)",
    "bounded = log_ratio",
    "the ratio overflows",
  ),
  M(
    "near = jnp.clip(ratio, 1 - clip, 1 + high)",
    "near = jnp.clip(ratio, None, 1 + high)",
    "the ratio is clipped from above alone",
  ),
  M(
    "  return jnp.sum(weight * jnp.maximum(unclipped, clipped))",
    "  return jnp.sum(weight * jnp.minimum(unclipped, clipped))",
    "the optimistic side of the policy clip",
  ),
  M(
    "return 0.5 * jnp.sum(weight * jnp.maximum(unclipped, clipped))",
    "return 0.5 * jnp.sum(weight * jnp.minimum(unclipped, clipped))",
    "the optimistic side of the value clip",
  ),
  M(
    "return 0.5 * jnp.sum(weight * jnp.maximum(unclipped, clipped))",
    "return jnp.sum(weight * jnp.maximum(unclipped, clipped))",
    "no half in the value loss",
  ),
  M(
    "near = jnp.clip(value, old_value - reach, old_value + reach)",
    "near = jnp.clip(old_value, value - reach, value + reach)",
    "value clip around the new value",
  ),
  M(
    "return jnp.square(value - target), jnp.square(near - target)",
    "return jnp.square(value - target), jnp.square(near - old_value)",
    "old value for target",
  ),
  M(
    "advantage, clip)\n  is_clipped = (clipped > unclipped)",
    "advantage, clip)\n  is_clipped = (clipped != unclipped)",
    "clipfrac counts tokens that keep their gradient",
  ),
  M(
    '"policy/approxkl_avg": 0.5 * masked_mean(jnp.square(logp - old_logp), mask)',
    '"policy/approxkl_avg": 0.5 * jnp.mean(jnp.square(logp - old_logp))',
    "approxkl is diluted by padding",
  ),
  M(
    "jnp.max(jnp.where(mask, ratio, -jnp.inf))",
    "jnp.max(ratio)",
    "the largest ratio counts padding",
  ),
  M(
    "unexplained = masked_var(target - value, mask)",
    "unexplained = masked_var(target - old_value, mask)",
    "the variance explained by the old values",
  ),
  M(
    "rejected = logp_rejected.astype(jnp.float32) - ref_rejected",
    "rejected = logp_rejected.astype(jnp.float32) - ref_chosen",
    "the wrong reference in DPO",
  ),
  M(
    "return [jnp.where(mask, x.astype(jnp.float32), 0) for x in arrays]",
    "return [x.astype(jnp.float32) for x in arrays]",
    "masked entries are read",
  ),
  M(
    "rows = jnp.sum(jnp.any(mask, axis=-1))",
    "rows = mask.shape[0]",
    "the sum over sequences counts empty rows",
  ),
  M(
    "beats = pair_weights(rank, distinct=distinct, labels=labels) > 0",
    "beats = pair_weights(rank, labels=labels) > 0",
    "equal completions count in the accuracy",
  ),
  M(
    "beats = real & ordered & distinct",
    "beats = real & ordered",
    "equal completions are a pair",
  ),
  M(
    "label = jnp.where(beats, 1 if labels is None else labels, 0)",
    "label = jnp.where(beats, 1, 0)",
    "the weights of labels of pairs are ignored",
  ),
  M(
    "ordered = winner < loser if labels is None else labels > 0",
    "ordered = winner < loser",
    "labels of pairs that are no ranking are ignored",
  ),
]

MUTANTS["returns"] = [
  M(
    "count = jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)",
    "count = jnp.float32(mask.size)",
    "the mean counts padding",
  ),
  M(
    "deviation = x.astype(jnp.float32) - masked_mean(x, mask)",
    "deviation = x.astype(jnp.float32)",
    "the second moment for the variance",
  ),
  M(
    "return var * n / jnp.maximum(n - 1, 1)",
    "return var * n / jnp.maximum(n, 1)",
    "the unbiased variance is biased",
  ),
  M("* jax.lax.rsqrt(var + eps)", "/ (var + eps)", "whitened by the variance, not by its root"),
  M("whitened = whitened + mean", "whitened = whitened - mean", "the mean is taken away twice"),
  M("if not shift_mean:", "if shift_mean:", "the mean is kept where it should go"),
  M(
    "return jnp.where(mask, whitened, 0)",
    "return whitened",
    "whitening leaves something in the padding",
  ),
  M(
    "return logp.astype(jnp.float32) - ref_logp.astype(jnp.float32)",
    "return ref_logp.astype(jnp.float32) - logp.astype(jnp.float32)",
    "sign of the KL",
  ),
  M("return 0.5 * jnp.square(d)", "return jnp.square(d)", "no half in k2"),
  M("return jnp.expm1(-d) + d", "return jnp.expm1(d) - d", "k3 of the other direction"),
  M(
    "return position == jnp.max(marked, axis=-1, keepdims=True)",
    "return position == jnp.sum(mask, axis=-1, keepdims=True) - 1",
    "the last token is counted, and a gap ignored",
  ),
  M(
    "marked = jnp.where(mask, position, -1)",
    "marked = jnp.where(mask, position, 0)",
    "an empty row is paid at its start",
  ),
  M(
    "after = jnp.concatenate([first_column, last[..., :-1]], axis=-1)",
    "after = jnp.concatenate([last[..., 1:], first_column], axis=-1)",
    "paid before the last token",
  ),
  M("return jnp.where(has_room, after, last)", "return after", "a full row is never paid"),
  M("return mask | place(mask)", "return mask", "no value is trained after the end"),
  M(
    "return jnp.where(place(mask), score, 0) - penalty",
    "return jnp.where(place(mask), score, 0) + penalty",
    "sign of the penalty",
  ),
  M(
    "penalty = jnp.where(mask, kl_coef * kl.astype(jnp.float32), 0)",
    "penalty = kl_coef * kl.astype(jnp.float32)",
    "padding pays the penalty",
  ),
  M(
    "return jnp.where(ended, score.astype(jnp.float32), value)",
    "return jnp.where(ended, value, score.astype(jnp.float32))",
    "a response that ended loses its score",
  ),
  M(
    "return jnp.where(ended, score, score - penalty)",
    "return jnp.where(ended, score, score + penalty)",
    "a missing end of text is rewarded",
  ),
  M(
    "advantage = r + discount * next_value - v + discount * lam * next_advantage",
    "advantage = r + next_value - v + discount * lam * next_advantage",
    "the next value is not discounted",
  ),
  M(
    "advantage = r + discount * next_value - v + discount * lam * next_advantage",
    "advantage = r + discount * next_value - v + lam * next_advantage",
    "the next advantage is not discounted",
  ),
  M(
    "advantage = r + discount * next_value - v + discount * lam * next_advantage",
    "advantage = r + lam * next_value - v + discount * lam * next_advantage",
    "discount and lambda swapped",
  ),
  M("jnp.where(inside, v, next_value)", "v", "a gap ends the episode"),
  M("steps, reverse=True)", "steps, reverse=False)", "advantages flow forward"),
  M(
    "return advantage, advantage + value",
    "return advantage, advantage + reward",
    "reward for value in the target",
  ),
  M(
    "value = jnp.where(mask, value.astype(jnp.float32), 0)",
    "value = value.astype(jnp.float32)",
    "targets of padding",
  ),
  M(
    "error = jnp.clip(kl / target - 1, -0.2, 0.2)",
    "error = jnp.clip(1 - kl / target, -0.2, 0.2)",
    "the KL coefficient moves the wrong way",
  ),
  M(
    "error * min(n / horizon, 1.0)", "error * n / horizon", "the KL coefficient may become negative"
  ),
  M(
    "return math.log(n) - (n - 1) / n", "return math.log(n) - 1", "the KL of best of n at its limit"
  ),
  M(
    "return np.concatenate([below, descending[::-1]])",
    "return np.concatenate([below, descending])",
    "the smallest sample is the best of n",
  ),
]

MUTANTS["bestofn"] = [
  M(
    "highest = score.max(axis=1, keepdims=True)",
    "highest = score.min(axis=1, keepdims=True)",
    "the worst is chosen",
  ),
  M(
    "highest = score.max(axis=1, keepdims=True)",
    "highest = score.max(axis=0, keepdims=True)",
    "the wrong axis of the scores",
  ),
  M(
    "lots = jax.random.uniform(key, score.shape, jnp.float32)",
    "lots = jnp.zeros(score.shape, jnp.float32)",
    "the first of equals is chosen",
  ),
  M(
    "lots = jax.random.uniform(key, score.shape, jnp.float32)",
    "lots = jax.random.uniform(key, score.shape[1:], jnp.float32)",
    "all prompts share their lots",
  ),
  M(
    "return jnp.argmax(lots, axis=1)",
    "return jnp.argmin(lots, axis=1)",
    "a row that is not the best is chosen",
  ),
  M(
    "chosen = jnp.arange(index.shape[0]) * n + index",
    "chosen = index",
    "rows of the first prompt for all",
  ),
  M(
    "chosen = jnp.arange(index.shape[0]) * n + index",
    "chosen = jnp.arange(index.shape[0]) + index * index.shape[0]",
    "rows of a prompt taken to be strided",
  ),
  M(
    "order = np.argsort(proxy_scores, axis=1",
    "order = np.argsort(gold_scores, axis=1",
    "the gold score picks",
  ),
  M(
    "order = np.argsort(proxy_scores, axis=1",
    "order = np.argsort(-proxy_scores, axis=1",
    "the worst of n",
  ),
  M(
    "order = np.argsort(proxy_scores, axis=1",
    "order = np.argsort(proxy_scores, axis=0",
    "the wrong axis of the curve",
  ),
  M(
    "ranked_gold = np.take_along_axis(gold_scores, order, axis=1)",
    "ranked_gold = np.sort(gold_scores, axis=1)",
    "gold scores in an order of their own",
  ),
  M(
    "samples = proxy_scores.shape[1]",
    "samples = proxy_scores.shape[0]",
    "prompts counted as samples",
  ),
  M(
    "weights = returns.bon_weights(samples, n)",
    "weights = returns.bon_weights(samples, max(n - 1, 1))",
    "best of n - 1",
  ),
  M(
    '"kl": float(returns.bon_kl(n))',
    '"kl": float(returns.bon_kl(samples))',
    "the KL of all samples",
  ),
  M(
    '"gold": float((ranked_gold @ weights).mean())',
    '"gold": float((ranked_proxy @ weights).mean())',
    "proxy for gold",
  ),
]

MUTANTS["evals/preference/length"] = [
  M("SUPPORT = 0.15", "SUPPORT = 0.0", "a rate at equal length without support"),
  M("penalty[:, 0] = 0.0", "penalty[:, :] = 0.0", "there is no penalty"),
  M(
    "np.tanh(characters / deviation)",
    "np.tanh(characters / 1000.0)",
    "the difference of the lengths is not standardised",
  ),
  M(
    "equal = [np.ones_like(won), np.zeros_like(won)]",
    "equal = [np.ones_like(won), columns[1]]",
    "the rate is that at the lengths as they are",
  ),
  M(
    "if not characters.any():",
    "if False:",
    "equal lengths have no rate",
  ),
  M(
    "effective / max(loss, 1.0)",
    "effective",
    "holding the length costs no precision",
  ),
]

MUTANTS["intervals"] = [
  M("TAIL = 0.025", "TAIL = 0.05", "a 90 % interval"),
  M("CORRELATION = 0.1", "CORRELATION = 0.0", "a cluster is taken as independent items"),
  M("RARE = 3.0", "RARE = 0.0", "rare counts have Wilson's ends"),
  M(
    "indices = rng.integers(n, size=(draws, n))",
    "indices = rng.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)",
    "rows are drawn without replacement",
  ),
  M(
    "draws = min(draws_at_once, samples - done)",
    "draws = draws_at_once",
    "more draws than were asked for",
  ),
  M(
    "sums.append(rows[indices].sum(axis=1))",
    "sums.append(rows[indices].mean(axis=1))",
    "means for sums",
  ),
  M(
    "rng = np.random.default_rng(seed)\n  n = len(rows)",
    "rng = np.random.default_rng(0)\n  n = len(rows)",
    "the seed of the draws is ignored",
  ),
  M(
    "counts = rng.multinomial(rows, uniform, size=samples)",
    "counts = rng.multinomial(samples, uniform, size=samples)",
    "a draw has as many rows as there are draws",
  ),
  M(
    "rng = np.random.default_rng(seed)\n  uniform",
    "rng = np.random.default_rng(0)\n  uniform",
    "the seed of the counts is ignored",
  ),
  M(
    "draws = draws[np.isfinite(draws)]",
    "draws = np.asarray(draws)",
    "draws that are not finite count",
  ),
  M(
    "return Estimate(value, float(low), float(high), n, clusters)",
    "return Estimate(float(draws.mean()), float(low), float(high), n, clusters)",
    "the mean of the draws for the value",
  ),
  M(
    "distance = math.sqrt(clusters / (clusters - 1)) * t_quantile(clusters - 1)",
    "distance = Z",
    "the percentiles of few rows stay where they are",
  ),
  M(
    "if 1 < clusters < FEW:",
    "if False:",
    "few rows are bootstrapped",
  ),
  M(
    "error = math.sqrt((clusters - 1) / clusters * squares)",
    "error = math.sqrt(squares / clusters / (clusters - 1))",
    "the standard error of a mean for the jackknife's",
  ),
  M(
    "value = float(parts[:, 0].sum()) / whole\n  if not",
    "value = float(np.mean(parts[:, 0] / np.maximum(parts[:, 1], 1)))\n  if not",
    "every row weighs the same in a share",
  ),
  M(
    "return Estimate(value, low, high, round(whole), rows)",
    "return Estimate(value, low, high, rows, rows)",
    "n counts rows, not pairs",
  ),
  M(
    "return np.stack([values, np.ones_like(values)], axis=1)",
    "return np.stack([values, values != 0], axis=1).astype(float)",
    "zeros do not count in a mean",
  ),
  M(
    "return wilson(value, 1.0) if whole <= 1 else (0.0, 1.0)",
    "return wilson(value, whole)",
    "many items of one row are independent",
  ),
  M(
    "variance = effect / (whole * min(scale, 1.0) ** 2)",
    "variance = 1 / (whole * min(scale, 1.0) ** 2)",
    "there is no design effect",
  ),
  M(
    "weight = Z**2 * float(at_an_end.mean())",
    "weight = Z**2",
    "measures close together get the interval of coins",
  ),
  M(
    "independent = max(whole - 1, whole / 2)",
    "independent = whole",
    "single items have a design effect above 1",
  ),
  M(
    "quantile = t_quantile(max(equal_rows - 1, 1.0))",
    "quantile = Z",
    "the normal distribution for t",
  ),
  M(
    "low, high = _score_ends(outcomes, paired=True)",
    "low, high = _score_ends(outcomes, paired=False)",
    "differences of outcomes have no t",
  ),
  M(
    "return share(_parts(wins), paired=True)",
    "return share(_parts(wins))",
    "a win rate of 11 prompts loses its level",
  ),
  M(
    "below = math.hypot(ours.value - ours.low, theirs.high - theirs.value)",
    "below = math.hypot(ours.value - ours.low, theirs.value - theirs.low)",
    "the wrong end of theirs",
  ),
  M(
    "wins = (np.sign(difference) + 1) / 2",
    "wins = np.where(difference > 0, 1.0, 0.0)",
    "a tie is lost",
  ),
  M(
    "difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)",
    "difference = np.asarray(theirs, np.float64) - np.asarray(ours, np.float64)",
    "the other side wins",
  ),
  M(
    "wins = (np.sign(difference) + 1) / 2",
    "wins = (difference + 1) / 2",
    "a win counts by its margin",
  ),
]

MUTANTS["models/heads"] = [
  M(
    "w = w / jnp.sqrt(jnp.float32(width + 1))",
    "w = w / jnp.float32(width + 1)",
    "the variance for the standard deviation",
  ),
  M(
    "w = w / jnp.sqrt(jnp.float32(width + 1))",
    "w = w / jnp.sqrt(jnp.float32(width))",
    "1 / D for 1 / (D + 1)",
  ),
  M(
    'return {"w": w, "b": jnp.float32(0)}',
    'return {"w": w, "b": jnp.float32(1)}',
    "a bias that does not start at 0",
  ),
  M(
    "w = jax.random.normal(key, (width,), jnp.float32)",
    "w = jax.random.uniform(key, (width,), jnp.float32)",
    "uniform for normal",
  ),
  M(
    'return jnp.sum(products, axis=-1) + head["b"]',
    "return jnp.sum(products, axis=-1)",
    "values without the bias",
  ),
  M(
    'return jnp.sum(products, axis=-1) + head["b"]',
    'return jnp.mean(products, axis=-1) + head["b"]',
    "mean for sum over the width",
  ),
  M(
    'products = hidden.astype(jnp.float32) * head["w"]',
    'products = hidden * head["w"].astype(hidden.dtype)',
    "values in bfloat16",
  ),
  M(
    "real_columns = jnp.where(valid > 0, column, -1)",
    "real_columns = jnp.where(valid == 1, column, -1)",
    "only the first segment of a row is real",
  ),
  M(
    "real_columns = jnp.where(valid > 0, column, -1)",
    "real_columns = jnp.where(valid > 0, column, 0)",
    "an empty row reads its first column",
  ),
  M(
    "last = jnp.max(real_columns, axis=1, keepdims=True)",
    "last = jnp.sum(valid > 0, axis=1, keepdims=True) - 1",
    "padding on the left is not skipped",
  ),
  M("values(without_bias, hidden), 0)", "values(head, hidden), 0)", "the bias counts twice"),
  M(
    'return jnp.sum(at_last, axis=1) + head["b"]',
    "return jnp.sum(at_last, axis=1)",
    "a score without the bias",
  ),
  M(
    'return jnp.sum(at_last, axis=1) + head["b"]',
    'return jnp.mean(at_last, axis=1) + head["b"]',
    "mean for sum over the columns",
  ),
  M("jnp.where(column == last,", "jnp.where(column <= last,", "the score is summed over the row"),
  M(
    "jnp.where(column == last,",
    "jnp.where(column == last - 1,",
    "the score is read one token early",
  ),
]

MUTANTS["models/decay"] = [
  M(
    'HOLDERS = ("policy", "value", "lm")',
    'HOLDERS = ("policy", "lm")',
    "the value network is not understood",
  ),
  M(
    "while names[0] in HOLDERS:",
    "if names[0] in HOLDERS:",
    "a model within a holder is not understood",
  ),
  M(
    'if names[0] == "adapter":\n      return True',
    'if names[0] == "adapter":\n      return False',
    "adapters do not decay",
  ),
  M(
    'if names[0] == "adapter":\n      return True',
    'if names[0] == "adapter":\n      return names[-1] == "a"',
    "half of an adapter decays",
  ),
  M('return names[-1] == "w"', "return True", "the bias of a head decays"),
  M('return names[-1] == "w"', "return False", "no head decays"),
  M('if names[0] == "head":', 'if names[0] == "score":', "the head is looked up in the table"),
  M("return leaf.decays", "return True", "biases and norms decay"),
  M("return leaf.decays", "return not leaf.decays", "only biases and norms decay"),
  M("return leaf.decays", "return len(leaf.shape) > 1", "the number of axes decides"),
  M("return leaf.decays", 'return names[-1] == "w"', "embeddings do not decay"),
]

MUTANTS["system/keys"] = [
  M(
    "return zlib.crc32(purpose.encode())",
    "return len(purpose)",
    "names of one length share a number",
  ),
  M(
    "return zlib.crc32(purpose.encode())",
    "return hash(purpose) % 2**32",
    "numbers that change with the process",
  ),
  M(
    "return zlib.crc32(purpose.encode())",
    "return PURPOSES.index(purpose)",
    "a new name changes all the draws after it",
  ),
  M(
    "key = jax.random.fold_in(key, _number(purpose))",
    "key = jax.random.fold_in(key, 0)",
    "all purposes share their keys",
  ),
  M("for number in numbers:", "for number in numbers[:1]:", "only the first number counts"),
  M("for number in numbers:", "for number in numbers[-1:]:", "only the last number counts"),
  M(
    "for number in numbers:",
    "for number in [sum(numbers)] if numbers else []:",
    "the order of the numbers does not count",
  ),
  M("for number in numbers:", "for number in []:", "the same noise in every step"),
  M(
    "return key_for(jax.random.key(seed), purpose, *numbers)",
    "return key_for(jax.random.key(0), purpose, *numbers)",
    "the seed of a key is ignored",
  ),
  M(
    "return key_for(jax.random.key(seed), purpose, *numbers)",
    "return key_for(jax.random.key(seed), purpose)",
    "the numbers of a key are ignored",
  ),
  M(
    "entropy = np.random.SeedSequence((seed, _number(purpose), *numbers))",
    "entropy = np.random.SeedSequence((_number(purpose), *numbers))",
    "the seed of an order is ignored",
  ),
  M(
    "entropy = np.random.SeedSequence((seed, _number(purpose), *numbers))",
    "entropy = np.random.SeedSequence((seed, *numbers))",
    "all streams have one order",
  ),
  M(
    "entropy = np.random.SeedSequence((seed, _number(purpose), *numbers))",
    "entropy = np.random.SeedSequence((seed, _number(purpose)))",
    "the numbers of a seed are ignored",
  ),
  M(
    "return int(entropy.generate_state(1)[0])",
    "return seed + _number(purpose)",
    "neighbouring seeds have orders in common",
  ),
]
MUTANTS["likelihood"] = [
  M(
    "needed = math.ceil(rows * positions * vocab_size / LOGITS)",
    "needed = max(1, rows * positions * vocab_size // LOGITS)",
    "a part too few",
  ),
  M(
    'vocabulary_is_whole = sharding.fit((vocab_size,), ("vocab",)) == jax.P(None)',
    "vocabulary_is_whole = True",
    "a device counts the ids of the others",
  ),
  M(
    "rows, _ = jax.typeof(tokens).sharding.shard_shape(tokens.shape)",
    "rows, _ = tokens.shape",
    "a device counts the rows of the others",
  ),
  M("return min(needed, positions)", "return needed", "more parts than positions"),
  M(
    "return losses.token_logp(logits, tokens), losses.entropy(logits)",
    "return losses.entropy(logits), losses.token_logp(logits, tokens)",
    "entropy for log-probability",
  ),
  M(
    "return logp, logp >= best",
    "return logp, tokens == likeliest",
    "a tie with the likeliest token does not count",
  ),
  M(
    "logits = losses.temper(logits, temperature, banned)",
    "logits = losses.temper(logits, 1.0, banned)",
    "temperature not applied in scoring",
  ),
  M(
    "logits = losses.temper(logits, temperature, banned)",
    "logits = losses.temper(logits, temperature)",
    "banned ids not applied in scoring",
  ),
  M(
    'if name not in ("lower", "blocks", "layers")',
    'if name not in ("lower", "blocks", "layers", "head")',
    "the parts lose the unembedding that is not tied",
  ),
  M(
    "padding[1] = (0, n * m - length)",
    "padding[1] = (n * m - length, 0)",
    "the first part is filled up instead of the last",
  ),
  M(
    "  x = jnp.swapaxes(x, 0, 1)\n  rows, n, m = x.shape",
    "  n, rows, m = x.shape",
    "the parts of different rows are joined",
  ),
  M(
    "return hidden[:, -response - 1 : -1]",
    "return hidden[:, -response:]",
    "a token is scored by the state after it",
  ),
  M(
    "return at_columns(hidden, before)",
    "return hidden[:, -response - 1 : -1]",
    "in packed rows the last states are read",
  ),
  M(
    "hidden = lm.hidden(params, tokens, valid, branch=branch, stem=stem, key=key)",
    "hidden = lm.hidden(params, tokens, valid, branch=branch, key=key)",
    "the stem of a rollout is computed again",
  ),
  M(
    "hidden = lm.hidden(params, tokens, valid, branch=branch, stem=stem, key=key)",
    "hidden = lm.hidden(params, tokens, valid, branch=branch, stem=stem)",
    "no dropout in the log-probabilities of a response",
  ),
  M(
    "hidden = lm.hidden(params, batch.tokens, batch.valid, stem=batch.stem, key=key)",
    "hidden = lm.hidden(params, batch.tokens, batch.valid, key=key)",
    "the stem of a demonstration is computed again",
  ),
  M(
    "hidden = lm.hidden(params, batch.tokens, batch.valid, stem=batch.stem, key=key)",
    "hidden = lm.hidden(params, batch.tokens, batch.valid, stem=batch.stem)",
    "no dropout in the log-probabilities of demonstrations",
  ),
  M(
    "hidden = hidden[:, :-1]\n  targets = batch.tokens[:, 1:]",
    "hidden = hidden[:, 1:]\n  targets = batch.tokens[:, 1:]",
    "a token predicts itself",
  ),
  M("mask = batch.mask[:, 1:]", "mask = batch.mask[:, :-1]", "the mask is one token late"),
  M(
    "columns = jnp.argsort(~mask, axis=1, stable=True)[:, :window]",
    "columns = jnp.argsort(mask, axis=1, stable=True)[:, :window]",
    "the window holds the tokens that are not marked",
  ),
  M(
    "columns = jnp.argsort(~mask, axis=1, stable=True)[:, :window]",
    "columns = jnp.arange(length - window, length) + jnp.zeros((rows, 1), int)",
    "the window is always the end of the row",
  ),
  M("total = (logp * mask).sum(1)", "total = logp.sum(1)", "padding is scored"),
  M(
    "count = mask.sum(1, dtype=jnp.int32)",
    "count = jnp.full(mask.shape[0], mask.shape[1], jnp.int32)",
    "padding is counted",
  ),
  M(
    "all_likeliest = jnp.all(likeliest | ~mask, axis=1)",
    "all_likeliest = jnp.all(likeliest, axis=1)",
    "padding must be the likeliest too",
  ),
  M(
    "hidden = sharding.repeat(hidden[:, -1:], n)",
    "hidden = sharding.repeat(hidden[:, :1], n)",
    "an end is predicted by the first position",
  ),
  M(
    "rest, _ = lm.decode(layers, ends[:, :-1], mask[:, :-1], cached)",
    "rest, _ = lm.decode(layers, ends[:, 1:], mask[:, 1:], cached)",
    "the ends are read one token late",
  ),
  M(
    "cached = sharding.repeat_rows(cached, sharding.row_axes(empty_cache, rows), n)",
    "cached = sharding.repeat_rows(cached, sharding.row_axes(empty_cache, n), n)",
    "the prompts for the ends in the cache",
  ),
]

MUTANTS["rollout"] = [
  M("k = min(top_k, logits.shape[-1])", "k = top_k", "more tokens to keep than there are"),
  M(
    "logits = jnp.where(logits < kth, -jnp.inf, logits)",
    "logits = jnp.where(logits <= kth, -jnp.inf, logits)",
    "top-k keeps one too few",
  ),
  M(
    "before = jnp.cumsum(mass, axis=-1) - mass",
    "before = jnp.cumsum(mass, axis=-1)",
    "top-p stops before its mass",
  ),
  M(
    "in_set = jnp.where(before < top_p, ordered, jnp.inf)",
    "in_set = jnp.where(before <= top_p, ordered, jnp.inf)",
    "top-p keeps one too many",
  ),
  M(
    "logits = jnp.where(logits < last, -jnp.inf, logits)",
    "logits = jnp.where(logits <= last, -jnp.inf, logits)",
    "top-p cuts the last of its set",
  ),
  M(
    "index = jnp.argmax(total > u[:, None], axis=-1)",
    "index = jnp.argmax(total >= u[:, None], axis=-1)",
    "an id without mass is drawn at 0",
  ),
  M(
    "u = jnp.minimum(u, just_below_total)",
    "u = u * 1.0",
    "a uniform number that rounds up to the total draws the first id",
  ),
  M(
    "before = jnp.take_along_axis(total - mass, index[:, None], axis=-1)",
    "before = jnp.take_along_axis(total, index[:, None], axis=-1)",
    "the rest within a block is 0",
  ),
  M("mass = jnp.exp(logits - top)", "mass = jnp.exp(logits)", "the sampler overflows"),
  M("u = u * block_mass.sum(-1)", "u = u * 1.0", "the mass is taken to be normalised"),
  M(
    "block, u = first_above(block_mass, u)",
    "block, _ = first_above(block_mass, u)",
    "the same number searches block and id",
  ),
  M(
    "logits = losses.temper(logits, 1.0, cfg.banned)",
    "logits = losses.temper(logits, 1.0)",
    "greedy decoding says banned ids",
  ),
  M(
    "logits = losses.temper(logits, cfg.temperature, cfg.banned)",
    "logits = losses.temper(logits, cfg.temperature)",
    "banned ids are sampled",
  ),
  M(
    "logits = losses.temper(logits, cfg.temperature, cfg.banned)",
    "logits = losses.temper(logits, 1.0, cfg.banned)",
    "the temperature does not shape the sampler",
  ),
  M(
    "logits = losses.temper(logits, cfg.temperature, cfg.banned)\n"
    "    logits = truncate(logits, cfg.top_k, cfg.top_p)",
    "logits = losses.temper(logits, 1.0, cfg.banned)\n"
    "    logits = truncate(logits, cfg.top_k, cfg.top_p) / cfg.temperature",
    "the cut comes before the temperature",
  ),
  M(
    "logits = truncate(logits, cfg.top_k, cfg.top_p)\n    token = categorical(u, logits)",
    "token = categorical(u, truncate(logits, cfg.top_k, cfg.top_p))",
    "a draw is scored under the whole distribution",
  ),
  M(
    "own_key = jax.random.fold_in(jax.random.fold_in(key, row), t)",
    "own_key = jax.random.fold_in(key, row)",
    "every token of a response is drawn by the same number",
  ),
  M(
    "own_key = jax.random.fold_in(jax.random.fold_in(key, row), t)",
    "own_key = jax.random.fold_in(key, t)",
    "all rows share their noise",
  ),
  M(
    "draw(uniforms(s.key, rows.number, rows.t), logits, s.cfg)",
    "draw(uniforms(s.key, rows.row, rows.t), logits, s.cfg)",
    "the devices of a mesh share their noise",
  ),
  M(
    "place = jnp.where(live, row, buffer.shape[0])",
    "place = row",
    "a slot without a row writes into row 0",
  ),
  M(
    "ended = is_end(token, s.cfg.eos) | (t >= s.cfg.response)",
    "ended = is_end(token, s.cfg.eos) & (t >= s.cfg.response)",
    "an end of text ends nothing",
  ),
  M(
    "ended |= t >= take(sharding.repeat(s.prompts.ends, s.cfg.n), rows.row)",
    "ended |= t > take(sharding.repeat(s.prompts.ends, s.cfg.n), rows.row)",
    "a schedule ends a token late",
  ),
  M(
    "column = s.shape.prompt + slots.step % s.shape.response",
    "column = s.shape.prompt + slots.step",
    "the columns of responses are no ring",
  ),
  M(
    "s.layers, rows.last[:, None], rows.live[:, None], cached)",
    "s.layers, rows.last[:, None], jnp.ones_like(rows.live)[:, None], cached)",
    "a slot without a row is read",
  ),
  M(
    "position = jnp.where(live, position, cache.EMPTY)",
    "position = position + 0",
    "a row sees what its slot held before",
  ),
  M(
    "return jnp.any((waiting > 0) & (takable(s, slots) >= whole_group))",
    "return jnp.all((waiting > 0) & (takable(s, slots) >= whole_group))",
    "one device waits for all others",
  ),
  M(
    "row = jnp.repeat(prompt, n) * n + j % n",
    "row = jnp.repeat(prompt, n) * n",
    "the rows of a prompt are one row",
  ),
  M(
    "next=slots.next + taken,",
    "next=slots.next + s.shape.group,",
    "prompts of the queue are left out",
  ),
  M(
    "first = chunks - jnp.maximum(-(-longest // chunk), 1)",
    "first = chunks - jnp.maximum(longest // chunk, 1)",
    "the beginning of a prompt is not read",
  ),
  M(
    "return jnp.all(slots.next >= s.shape.prompts) & live_at_most(slots, most)",
    "return live_at_most(slots, most)",
    "what is still in the queue is forgotten",
  ),
  M(
    "return jnp.argsort(~live, stable=True)[:size].astype(jnp.int32)",
    "return jnp.argsort(live, stable=True)[:size].astype(jnp.int32)",
    "the rows that have ended move together",
  ),
  M("ended = is_end(final, cfg.eos)", "ended = ~is_end(final, cfg.eos)", "ended and cut swapped"),
  M(
    "valid=jnp.concatenate([prompts.valid, mask], axis=1)",
    "valid=jnp.concatenate([prompts.valid, jnp.ones_like(mask)], axis=1)",
    "what follows the end is valid",
  ),
]

MUTANTS["packs"] = [
  M(
    "has_room = enough & (positions + size.prompt + size.response <= W)",
    "has_room = positions + size.prompt + size.response <= W",
    "a row holds more response tokens than it has places for",
  ),
  M(
    "has_room = enough & (positions + size.prompt + size.response <= W)",
    "has_room = enough",
    "a row holds more tokens than it has",
  ),
  M("begun[rank] + 1, 0)", "1, 0)", "neighbours are one segment"),
  M(
    "in_response, rank + 1, 0)",
    "in_response, 1, 0)",
    "the responses to a prompt see each other",
  ),
  M(
    "goes_on = share & enough[last_row] & (positions[last_row] + size.response <= W)",
    "goes_on = share",
    "a response stands beyond the end of a full row",
  ),
  M(
    "return same & ~is_first",
    "return ~is_first",
    "a response shares the prompt of another",
  ),
  M(
    "shifts = jnp.where(column < prompt, prompt_shift[:, None], shift[:, None])",
    "shifts = shift[:, None]",
    "the states of a shared prompt are read beside it",
  ),
  M(
    "before = jnp.where(token == 0, prompt_end, start",
    "before = jnp.where(token < 0, prompt_end, start",
    "a second response is predicted by the end of the first",
  ),
  M(
    "real = (valid[:, :prompt] > 0) | (columns == prompt - 1)",
    "real = (valid[:, :prompt] > 0) | (columns == 0)",
    "padding before a prompt is packed too",
  ),
  M(
    "start.response[response_rank] + token - 1)",
    "start.response[response_rank] + token)",
    "a response token is predicted by its own state",
  ),
  M(
    "count = (jnp.max(row) // rows + 1).astype(jnp.int32)",
    "count = jnp.int32(N)",
    "empty parts are computed",
  ),
  M(
    "rounds = jnp.where(backward, rounds[:, ::-1], rounds)",
    "rounds = jnp.where(backward, rounds, rounds)",
    "the first shard gets the longest of every round",
  ),
  M(
    "longest_first = jnp.argsort(-group_length, stable=True)",
    "longest_first = jnp.argsort(0 * group_length, stable=True)",
    "episodes are dealt in the order of the batch",
  ),
  M(
    "limit = max(1, most // micro)",
    "limit = max(1, most)",
    "micro-batches do not bound the rows",
  ),
]

MUTANTS["models/int8"] = [
  M(
    "largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)",
    "largest = jnp.max(x, axis=axes, keepdims=True)",
    "the scale of negative numbers is that of the positive ones",
  ),
  M(
    "jnp.round(x / scale).astype(jnp.int8)",
    "(x / scale).astype(jnp.int8)",
    "numbers are cut and not rounded",
  ),
  M(
    "scale = jnp.where(largest > 0, largest / LARGEST, 1)",
    "scale = largest / LARGEST",
    "an output of zeros is divided by 0",
  ),
  M(
    'matrix(part["w"], lora.INPUTS.get(name, 1))',
    'matrix(part["w"], 1)',
    "the output of attention has a scale for each feature of a head",
  ),
  M(
    'q, scale = quantise(params["embed"]["tokens"], (1,))',
    'q, scale = quantise(params["embed"]["tokens"], (0, 1))',
    "all ids of a vocabulary share a scale",
  ),
]

MUTANTS["models/cache"] = [
  M(
    "q, scale = int8.quantise(new, (3,))",
    "q, scale = int8.quantise(new, (1, 3))",
    "all heads share a scale",
  ),
  M(
    "scores = scores * k_scale",
    "scores = scores * 1",
    "the scores of integers are not scaled",
  ),
  M(
    "weights = weights * v_scale",
    "weights = weights * 1",
    "values that are integers are not scaled",
  ),
  M(
    "return jax.lax.dynamic_update_slice(cached, new[None], start)",
    "return cached",
    "a sampled token is never kept",
  ),
  M(
    "touched = min(-(-(t + block - 1) // block), cached.shape[0])",
    "touched = min(-(-t // block), cached.shape[0])",
    "columns that begin within a block lose their end",
  ),
  M(
    "columns, new, column - first * block, axis=-2)",
    "columns, new, 0, axis=-2)",
    "columns are written from the first of their block on",
  ),
  M(
    "order = jnp.argsort(~used, stable=True).astype(jnp.int32)",
    "order = jnp.argsort(used, stable=True).astype(jnp.int32)",
    "the empty blocks are read",
  ),
  M(
    "seen = (column_position != EMPTY) & (distance >= 0)  # [n, B, t, b]",
    "seen = distance >= 0",
    "empty columns are seen",
  ),
  M(
    "seen = (column_position != EMPTY) & (distance >= 0)  # [n, B, t, b]",
    "seen = column_position + 0 * distance != EMPTY",
    "a prompt sees what comes after",
  ),
  M("seen &= distance < window", "seen &= distance <= window", "a window is one too wide"),
  M(
    "total = total * shrink + jnp.sum(weights, axis=(0, -1))",
    "total = total + jnp.sum(weights, axis=(0, -1))",
    "the sums of blocks are of different scales",
  ),
  M(
    "return new_largest, total, mixed * shrink[..., None] + _mixed(weights, part, dtype)",
    "return new_largest, total, mixed + _mixed(weights, part, dtype)",
    "the values of blocks are of different scales",
  ),
  M(
    "largest = jnp.max(scores, axis=(0, -1))\n",
    "largest = jnp.max(scores, axis=-1)[0]\n",
    "a cache that is read at once is scaled by the scores of its first block",
    equivalent="the scale of the exponentials cancels, unless they overflow",
  ),
  M(
    "  total = jnp.sum(weights, axis=(0, -1))\n  return _divided",
    "  total = jnp.sum(weights, axis=-1)[0]\n  return _divided",
    "a cache that is read at once is divided by the weights of its first block",
  ),
]

MUTANTS["steps"] = [
  M(
    "x = jax.lax.reshape(x, (rows // n, n, *rest), out_sharding=spec)\n"
    "    return jnp.swapaxes(x, 0, 1)",
    "return jax.lax.reshape(x, (n, rows // n, *rest))",
    "rows leave their devices",
  ),
  M(
    "    x = jnp.swapaxes(x, 0, 1)\n    size, n, *rest = x.shape",
    "    n, size, *rest = x.shape",
    "the rows of metrics come back in another order",
  ),
  M("jax.random.fold_in(key, i)", "key", "micro-batches share their key"),
  M(
    "return jax.tree.map(jnp.add, total, terms), rows\n\n    (grads",
    "return terms, rows\n\n    (grads",
    "only the last micro-batch counts",
  ),
  M(
    "return jax.tree.map(jnp.add, total, terms), rows\n\n    (grads",
    "return (jax.tree.map(jnp.add, total[0], terms[0]), terms[1]), rows\n\n    (grads",
    "the loss is that of the last micro-batch",
  ),
  M(
    "zeros = (jax.tree.map(jnp.zeros_like, params), jnp.float32(0))",
    "zeros = (jax.tree.map(jnp.copy, params), jnp.float32(0))",
    "the parameters are added to the gradient",
  ),
  M(
    "return jax.tree.map(jnp.add, total, terms), rows\n\n  (grads",
    "return terms, rows\n\n  (grads",
    "only the last part of packed rows counts",
  ),
  M(
    "return jax.lax.fori_loop(0, count, step_and_write, (carry, written))",
    "return jax.lax.fori_loop(0, count - 1, step_and_write, (carry, written))",
    "the last part that holds something is left out",
  ),
  M(
    "return jax.lax.dynamic_update_index_in_dim(buffer, x, i, 0)",
    "return jax.lax.dynamic_update_index_in_dim(buffer, x, 0, 0)",
    "all parts write the rows of the first",
  ),
  M(
    "return grads, value, merge(rows)",
    "return jax.tree.map(lambda g: g / micro, grads), value, merge(rows)",
    "the mean over micro-batches for their sum",
  ),
  M(
    "return grads, value, merge(rows)",
    "return grads, value / micro, merge(rows)",
    "the mean of the losses for their sum",
  ),
  M(
    "updates, opt_state = tx.update(grads, state.opt_state, state.params)",
    "updates, _ = tx.update(grads, state.opt_state, state.params)\n  opt_state = state.opt_state",
    "the moments of Adam never move",
  ),
  M(
    "tx.update(grads, state.opt_state, state.params)",
    "tx.update(grads, state.opt_state)",
    "weight decay sees no parameters",
  ),
  M(
    "params: Any = optax.apply_updates(state.params, updates)",
    "params: Any = jax.tree.map(jnp.subtract, state.params, updates)",
    "the gradient is climbed",
  ),
  M(
    "chex.assert_trees_all_equal_shapes(grads, state.params)",
    "pass",
    "a part without a gradient is not seen",
  ),
  M(
    "averaged_params = {name: params[name] for name in average}",
    "averaged_params = {name: state.params[name] for name in average}",
    "the average lags an update behind",
  ),
  M(
    "average = optim.ema(average, averaged_params, ema_decay)",
    "average = optim.ema(averaged_params, average, ema_decay)",
    "average and weights swapped",
  ),
  M("step=state.step + 1", "step=state.step", "updates are not counted"),
  M(
    "opt_state=opt_state,\n    ema=average",
    "opt_state=opt_state,\n    ema=state.ema",
    "the average is never kept",
  ),
  M("ema=jax.tree.map(jnp.copy, ema)", "ema=ema", "the average shares the memory of the weights"),
  M(
    "kl_coef=None if kl_coef is None else jnp.float32(kl_coef)",
    "kl_coef=None",
    "the KL coefficient is lost",
  ),
  M("donate_argnums=0", "donate_argnums=()", "the old state is not given back"),
  M(
    "out_shardings=(state_shardings, metric_shardings)",
    "out_shardings=None",
    "the shardings of the state are left to the compiler",
  ),
  M("return jax.tree.map(commit_leaf, state)", "return state", "a step compiles twice"),
]

MUTANTS["optim"] = [
  M(
    "return jnp.clip(step / max(steps, 1), 0.0, 1.0)",
    "return step / max(steps, 1)",
    "a schedule runs on after its end",
  ),
  M(
    "done = _progress(step, steps - 1)",
    "done = _progress(step, steps)",
    "the last update is not at the end of the cosine",
  ),
  M(
    "falling = 0.5 * (1 + jnp.cos(jnp.pi * done))",
    "falling = 0.5 * (1 - jnp.cos(jnp.pi * done))",
    "the cosine rises",
  ),
  M(
    "return jnp.float32(peak) * (final + (1 - final) * falling)",
    "return jnp.float32(peak) * jnp.maximum(final, falling)",
    "the cosine falls to 0 and is cut",
  ),
  M("share = start + (1 - start) * done", "share = done", "the warmup begins at 0"),
  M(
    "done = _progress(step, warmup)\n    share",
    "done = _progress(step, warmup - 1)\n    share",
    "the warmup is an update too short",
  ),
  M(
    "return jnp.float32(peak) * (1 - (1 - final) * done)",
    "return jnp.float32(peak) * (1 - done)",
    "the linear schedule ignores its end",
  ),
  M(
    "rising = jnp.float32(peak) * (start + (1 - start) * done)",
    "rising = jnp.float32(peak) * done",
    "the rise before a schedule begins at 0",
  ),
  M(
    "following = schedule(jnp.maximum(count - warmup, 0))",
    "following = schedule(count)",
    "the schedule does not wait for the warmup",
  ),
  M(
    "return jnp.where(count < warmup, rising, following)",
    "return jnp.where(count < warmup, following, rising)",
    "rise and schedule swapped",
  ),
  M(
    "return schedule(jnp.asarray(step) // updates)",
    "return schedule(jnp.asarray(step))",
    "updates counted as iterations",
  ),
  M(
    "rate = jnp.sqrt(1 - b2**t) / (1 - b1**t)",
    "rate = 1 / (1 - b1**t)",
    "no bias correction of the second moment",
  ),
  M(
    "return rate * m / (jnp.sqrt(v) + eps)",
    "return rate * m / jnp.sqrt(v + eps)",
    "epsilon within the root",
  ),
  M(
    "optax.scale_by_adam(b1=b1, b2=b2, eps=eps)",
    "optax.scale_by_adam(b1=b2, b2=b1, eps=eps)",
    "the betas swapped",
  ),
  M("b2: float = 0.95", "b2: float = 0.999", "the beta of Adam, not that of the paper"),
  M(
    "transforms.append(optax.clip_by_global_norm(clip))",
    "transforms.append(optax.clip(clip))",
    "each entry is clipped, not the norm",
  ),
  M(
    "transforms.append(optax.add_decayed_weights(weight_decay, mask=decays))",
    "transforms.append(optax.add_decayed_weights(weight_decay))",
    "weight decay on norms and biases",
  ),
  M(
    "transforms.append(optax.add_decayed_weights(weight_decay, mask=decays))",
    "transforms.insert(0, optax.add_decayed_weights(weight_decay, mask=decays))",
    "the decay goes through Adam",
  ),
  M(
    "transforms.append(optax.scale_by_learning_rate(schedule))",
    "transforms.append(optax.scale_by_learning_rate(schedule, flip_sign=False))",
    "the gradient is climbed",
  ),
  M(
    "labels = {name: name for name in transforms}",
    "labels = {name: next(iter(transforms)) for name in transforms}",
    "one optimizer for all subtrees",
  ),
  M(
    "return decay * a + (1 - decay) * p.astype(a.dtype)",
    "return (1 - decay) * a + decay * p.astype(a.dtype)",
    "the average is almost the weights",
  ),
  M(
    "return decay * a + (1 - decay) * p.astype(a.dtype)",
    "return decay * a + (1 - decay) * p",
    "the average takes the precision of the weights",
  ),
]

MUTANTS["sharding"] = [
  M('"batch": ("data", "fsdp")', '"batch": ("data",)', "fsdp does not split the batch"),
  M('"embed": ("fsdp",)', '"embed": ()', "parameters are whole on every device"),
  M(
    'MAY_BE_WHOLE = ("kv_heads", "vocab", "sequence")',
    'MAY_BE_WHOLE = ("kv_heads", "sequence")',
    "an odd vocabulary is refused",
  ),
  M(
    "if min(shape) < 1 or size > len(available):",
    "if min(shape) < 1 or size >= len(available):",
    "a mesh may not have all devices",
  ),
  M(
    "if min(shape) < 1 or size > len(available):",
    "if size > len(available):",
    "a mesh without devices",
  ),
  M("used = available[:size]", "used = available[-size:]", "a mesh has the last devices"),
  M(
    "allow_split_physical_axes=True",
    "allow_split_physical_axes=False",
    "two axes may not share a side of the topology",
  ),
  M("(_slice_of(device), device.id)", "device.process_index", "GPUs of two hosts stand in turn"),
  M("if length % devices == 0:", "if length >= devices:", "an axis that does not divide is split"),
  M(
    "elif axis in MAY_BE_WHOLE:",
    "elif axis:",
    "a batch that does not divide is whole on every device",
  ),
  M(
    "return names[0] if len(names) == 1 else names",
    "return names",
    "fsdp is not found in a type",
    equivalent="a partition of JAX writes a tuple of one name as that name",
  ),
  M(
    "return names[0] if len(names) == 1 else names",
    "return names[0]",
    "only one axis of the mesh splits",
  ),
  M(
    "lambda leaf: fit(leaf.shape, leaf.axes), table",
    "lambda leaf: spec(*leaf.axes), table",
    "parameters whose axes do not divide",
  ),
  M(
    "copies = jnp.broadcast_to(x[:, None], (rows, n, *rest))",
    "copies = jnp.broadcast_to(x[None], (n, rows, *rest))",
    "the copies of a row do not follow each other",
  ),
  M(
    "if len(grown) > 1 or lengths[grown[0]] != (rows, many):",
    "if len(grown) > 1:",
    "an array that is filled up for few rows passes",
  ),
  M(
    "if len(grown) > 1 or lengths[grown[0]] != (rows, many):",
    "if lengths[grown[0]] != (rows, many):",
    "an array whose rows are two axes passes",
  ),
  M(
    "return jnp.moveaxis(repeat(jnp.moveaxis(x, axis, 0), n), 0, axis)",
    "return repeat(x, n)",
    "another axis than that of the rows is repeated",
  ),
  M("index[axis] = rows\n", "index[0] = rows\n", "rows are put along another axis"),
  M(
    'for name in reversed(mesh_axes("embed")):',
    'for name in reversed(mesh_axes("mlp")):',
    "a parameter is made whole along model",
  ),
  M(
    "entries = [_without(entry, (name,)) for entry in stored]",
    "entries = [None for entry in stored]",
    "a parameter is made whole on every device",
  ),
  M(
    "return fsdp // long[-1], long[-1]",
    "return long[-1], fsdp // long[-1]",
    "the longest side is the outer of the two axes of fsdp",
  ),
  M(
    "len(long) == 2 and long[0] == long[1] > 2",
    "len(long) == 2 and long[0] == long[1]",
    "fsdp lies along two axes of two chips each",
  ),
  M(
    "return jax.sharding.reshard(x, spec(*axes))",
    "return jax.sharding.reshard(x, jax.P())",
    "what should be split is whole",
  ),
  M(
    'partition = fit((rows,), ("batch",))',
    'partition = fit((rows,), ("embed",))',
    "a batch lies along fsdp alone",
  ),
  M(
    "rows.update(range(size)[index[0]])",
    "rows.update(range(size)[index[0]][:1])",
    "a process takes the first row of each device",
  ),
  M(
    "return place(tree, jax.tree.map(lambda x: jax.P(), tree))",
    "return place_batch(tree)",
    "copies are split by rows",
  ),
]

MUTANTS["sft"] = [
  M("    cfg.window,\n", "    None,\n", "logits of the prompts are computed too"),
  M("key=key if cfg.dropout else None", "key=key", "dropout cannot be switched off"),
  M("key=key if cfg.dropout else None", "key=None", "no dropout in training"),
  M(
    "weight = mask * share[:, None]",
    "weight = mask / jnp.maximum(mask.sum(), 1)",
    "a micro-batch is a mean of its own",
  ),
  M(
    "marked = batch.mask[:, 1:].sum(axis=1)",
    "marked = batch.mask.sum(axis=1)",
    "the first token of a row counts",
  ),
  M(
    "return jnp.full(rows, 1.0 / jnp.maximum(marked.sum(), 1), jnp.float32)",
    "return 1.0 / (rows * jnp.maximum(marked, 1).astype(jnp.float32))",
    "a mean over rows for the mean over tokens",
  ),
  M(
    "return number >= rows - cfg.text_rows",
    "return number < cfg.text_rows",
    "the first rows are taken for text",
  ),
  M(
    "number_in_parts = number % N * (rows // N) + number // N",
    "number_in_parts = number",
    "the text of a packed batch is looked for in other rows",
  ),
  M(
    "jnp.where(holds_any, jnp.arange(1, micro + 1), 0)",
    "jnp.where(holds_any, jnp.arange(micro), 0)",
    "the last part that holds anything is left out",
  ),
  M(
    "jnp.where(holds_any, jnp.arange(1, micro + 1), 0)",
    "jnp.where(holds_any, micro, 0)",
    "parts that hold nothing are computed",
  ),
  M(
    "computed = count * (rows // cfg.micro)",
    "computed = rows",
    "what was not computed counts as padding",
  ),
  M(
    '"update/useful": (batch.valid > 0).sum()',
    '"update/useful": batch.valid.sum()',
    "a token counts as often as its segment says",
  ),
  M(
    "return jnp.where(text, of_text, of_others)",
    "return jnp.where(text, of_others, of_text)",
    "the shares swapped",
  ),
  M(
    "of_others = (1 - text_share) / jnp.maximum(other_tokens, 1)",
    "of_others = 1.0 / jnp.maximum(other_tokens, 1)",
    "the shares add up to more than 1",
  ),
  M(
    "of_text = text_share / jnp.maximum(text_tokens, 1)",
    "of_text = text_share / jnp.maximum(marked.sum(), 1)",
    "the share of text is of all tokens",
  ),
  M(
    '"loss/demonstrations": -returns.masked_mean(logp, mask & ~text[:, None])',
    '"loss/demonstrations": -returns.masked_mean(logp, mask)',
    "text in the loss of the demonstrations",
  ),
  M(
    '"loss/text": -returns.masked_mean(logp, mask & text[:, None])',
    '"loss/text": returns.masked_mean(logp, mask & text[:, None])',
    "sign of the loss of text",
  ),
  M(
    'key = keys.key_for(state.key, "dropout", state.step)',
    'key = keys.key_for(state.key, "dropout")',
    "the same dropout in every step",
  ),
  M(
    "weighted = (batch, token_shares(batch, text, cfg.text_share))",
    "weighted = (batch, token_shares(batch))",
    "the share of text is ignored",
  ),
  M("micro=cfg.micro", "micro=1", "one micro-batch for all"),
  M("ema_decay=cfg.ema_decay", "ema_decay=None", "the average does not move"),
  M("iteration=state.iteration + 1", "iteration=state.iteration", "batches are not counted"),
  M('"tokens": mask.sum()', '"tokens": batch.valid.sum()', "prompts counted as loss"),
  M(
    '"grad/norm": optax.tree.norm(grads)',
    '"grad/norm": optax.tree.norm(state.params)',
    "the norm of the weights for that of the gradient",
  ),
  M(
    "return -(logp * mask).sum(), mask.sum(dtype=jnp.float32)",
    "return -logp.sum(), mask.sum(dtype=jnp.float32)",
    "the evaluation counts unmarked tokens",
  ),
  M(
    "return -(logp * mask).sum(), mask.sum(dtype=jnp.float32)",
    "return -returns.masked_mean(logp, mask), mask.sum(dtype=jnp.float32)",
    "a mean where a sum is added up",
  ),
  M(
    "logp, mask = likelihood.masked_logp(lm, params, batch, window)",
    "logp, mask = likelihood.masked_logp(lm, params, batch, window, key=jax.random.key(0))",
    "dropout left on in the evaluation",
  ),
]

MUTANTS["reward"] = [
  M('if name != "head"', "if name", "the unembedding is kept"),
  M(
    '"lm": jax.tree.map(jnp.copy, body)',
    '"lm": body',
    "the reward model shares the memory of the SFT model",
  ),
  M('"lm": trunk | params["lm"]', '"lm": params["lm"]', "the trunk is left out"),
  M(
    'hidden = lm.hidden(params["lm"], tokens, valid, stem=stem, key=key)',
    'hidden = lm.hidden(params["lm"], tokens, valid, key=key)',
    "the stem is computed again",
  ),
  M(
    'hidden = lm.hidden(params["lm"], tokens, valid, stem=stem, key=key)',
    'hidden = lm.hidden(params["lm"], tokens, valid, stem=stem)',
    "no dropout in the reward model",
  ),
  M(
    "was_cut = ~rows.ended[:, None]",
    "was_cut = rows.ended[:, None]",
    "a response that ended is closed again",
  ),
  M("jnp.int32(eos[0])", "jnp.int32(eos[-1])", "another end of text than in training"),
  M(
    "last = returns.at_last_token(rows.valid)",
    "last = rows.valid",
    "every token of a cut response is an end of text",
  ),
  M("    stem=part.stem,\n", "", "the stem of the comparisons is computed again"),
  M("    branch=part.branch,\n", "", "a completion sees those before it"),
  M(
    "    stem=part.stem,\n    key=key,\n",
    "    stem=part.stem,\n",
    "no dropout in the comparisons",
  ),
  M(
    "return by_prompt(at_columns(values, part.last))",
    "return by_prompt(at_columns(values, part.last - 1))",
    "scores are read before the last token",
  ),
  M(
    "holds_something = jnp.any(parts.valid > 0, axis=(1, 2))",
    "holds_something = jnp.any(parts.valid >= 0, axis=(1, 2))",
    "parts that hold nothing are computed",
    equivalent="no number changes but the time and what is said of it",
  ),
  M("    count=count,\n", "    count=count - 1,\n", "the last part is left out"),
  M(
    "positions = jnp.maximum(count * G * L, 1)",
    "positions = jnp.maximum(count * L, 1)",
    "the rows of a part are not counted",
  ),
  M("key=key if cfg.dropout else None", "key=key", "dropout cannot be switched off"),
  M("key=key if cfg.dropout else None", "key=None", "no dropout in training"),
  M(
    "loss = losses.ranking(scores, pair_weight,",
    "loss = losses.ranking(-scores, pair_weight,",
    "the loser is preferred",
  ),
  M(
    'key = keys.key_for(state.key, "dropout", state.step)',
    'key = keys.key_for(state.key, "dropout")',
    "the same dropout in every step",
  ),
  M(
    "weight = losses.pair_weights(rank, cfg.pairs, distinct=differ, labels=labels)",
    "weight = losses.pair_weights(rank, distinct=differ, labels=labels)",
    "the kind of mean over pairs is ignored",
  ),
  M(
    "share = correct.sum() / jnp.maximum(count, 1)",
    "share = (correct / jnp.maximum(pairs, 1)).mean()",
    "the accuracy is a mean over prompts",
  ),
  M("real = rank > 0", "real = rank >= 0", "completions that are not there in the mean score"),
  M(
    "tokens = jnp.sum(parts.valid > 0)",
    "tokens = jnp.int32(parts.valid.size)",
    "padding counted as tokens",
  ),
  M(
    "state = dataclasses.replace(state, iteration=state.iteration + 1)",
    "pass",
    "batches are not counted",
  ),
  M(
    "return rescale(params, 1.0, -demonstration_score)",
    "return rescale(params, 1.0, demonstration_score)",
    "the bias is fit with the wrong sign",
  ),
  M(
    "return rescale(params, 1.0, -demonstration_score)",
    "return rescale(params, 0.0, -demonstration_score)",
    "the bias is fit and the weights are lost",
  ),
  M('"b": head["b"] * gain + shift', '"b": shift', "the bias is replaced, not shifted"),
  M('"b": head["b"] * gain + shift', '"b": head["b"] + shift', "the bias has no part in the gain"),
  M(
    "level = -by_prompt(part.rank).astype(jnp.float32)",
    "level = by_prompt(part.rank).astype(jnp.float32)",
    "the margin of ranks is upside down",
  ),
  M(
    "return cfg.margin * jnp.maximum(gap, 0)",
    "return cfg.margin * gap",
    "a rating against the rank asks for less than nothing",
  ),
  M(
    "count = jnp.maximum(jnp.sum(has_best), 1)",
    "count = jnp.int32(rank.shape[0])",
    "prompts without a best completion count",
  ),
  M(
    "return rank, same[:, :, None] != same[:, None, :]",
    "return rank, same[:, :, None] >= 0 * same[:, None, :]",
    "equal completions are a pair",
  ),
  M(
    "return jnp.where(count > 0, share, jnp.nan), count",
    "return share, count",
    "an accuracy of no pairs",
  ),
  M(
    "loss += cfg.centering * losses.centering(scores, pair_weight)",
    "loss += losses.centering(scores, pair_weight)",
    "the weight of centering is ignored",
  ),
  M('if cfg.loss == "best_of_k":', 'if cfg.loss == "best":', "the kind of loss is ignored"),
]

MUTANTS["ppo"] = [
  M(
    "rows_of_text = episodes[:, None] * ratio + jnp.arange(ratio)",
    "rows_of_text = jnp.arange(episodes.shape[0])[:, None] * ratio + jnp.arange(ratio)",
    "the text rows of a minibatch are always the first ones",
  ),
  M(
    "rows_of_text = episodes[:, None] * ratio + jnp.arange(ratio)",
    "rows_of_text = episodes[:, None] + jnp.arange(ratio)",
    "the text rows of neighbours overlap",
  ),
  M(
    "advantage = returns.whiten(exp.advantage, exp.mask)",
    "advantage = exp.advantage",
    "no whitening inside the minibatch",
  ),
  M(
    "advantage = returns.whiten(exp.advantage, exp.mask)",
    "advantage = returns.whiten(exp.advantage, exp.value_mask)",
    "advantages are whitened where no token is",
  ),
  M(
    "advantage = returns.whiten(exp.advantage, exp.mask)",
    "advantage = returns.whiten(exp.advantage, exp.mask, shift_mean=False)",
    "whitened advantages keep their mean",
  ),
  M(
    "mask & scored[:, None], value_mask & scored[:, None]",
    "mask, value_mask",
    "an episode without a score is learnt from",
  ),
  M(
    "token_reward = returns.whiten(token_reward, value_learnt, shift_mean=False)",
    "token_reward = returns.whiten(token_reward, value_learnt)",
    "whitened rewards lose their mean",
  ),
  M(
    "if cfg.whiten_reward:",
    "if cfg.whiten_advantage:",
    "the switch of the rewards is that of the advantages",
  ),
  M(
    '"policy": jax.tree.map(jnp.copy, policy)',
    '"policy": policy',
    "the policy shares the memory of the reference",
  ),
  M(
    '"value": jax.tree.map(jnp.copy, reward_params)',
    '"value": reward_params',
    "the value network shares the memory of the reward model",
  ),
  M(
    "tokens = reward.closed(rows, ppo.sampling.eos)\n\n  def stem",
    "tokens = rows.tokens\n\n  def stem",
    "the stem of the reward model is of what was cut",
  ),
  M(
    "return policy_stem, stem(_reward_lm(ppo), frozen.reward_trunk)",
    "return policy_stem, policy_stem",
    "the reward side reads the stem of the policy",
  ),
  M(
    "return ppo.reward_lm or ppo.lm",
    "return ppo.lm",
    "the reward model on the language model of the policy",
  ),
  M(
    "trunk = frozen.reward_trunk\n  if trunk is None:\n    trunk = frozen.trunk",
    "trunk = frozen.trunk",
    "the reward model on the trunk of the policy",
  ),
  M("temperature=sampling.temperature", "temperature=1.0", "temperature not applied in scoring"),
  M("banned=sampling.banned", "banned=()", "banned ids not applied in scoring"),
  M(
    "before = likelihood.states_before(hidden, response, rows.before)",
    "before = likelihood.states_before(hidden, response)",
    "in packed rows the values are of the last states",
  ),
  M(
    'policy = frozen.trunk | params["policy"]\n  return sample',
    "policy = frozen.trunk | frozen.ref\n  return sample",
    "the reference samples",
  ),
  M(
    "tokens = reward.closed(rows, ppo.sampling.eos)\n  layout",
    "tokens = rows.tokens\n  layout",
    "a cut response is scored where it was cut",
  ),
  M(
    "reference = frozen.trunk | frozen.ref",
    'reference = frozen.trunk | params["policy"]',
    "the policy is its own reference",
  ),
  M("kl = (logp - ref_logp) * mask", "kl = (ref_logp - logp) * mask", "sign of the KL"),
  M("kl = (logp - ref_logp) * mask", "kl = logp - ref_logp", "padding in the KL"),
  M("    logp=logp * mask,", "    logp=ref_logp * mask,", "the ratio is to the reference"),
  M(
    'value_model = reward_side(frozen, params["value"]) if "value" in params else None',
    "value_model = reward_side(frozen, frozen.reward)",
    "the reward model values the states",
  ),
  M(
    "paid = ppo.missing_eos(score, rows.ended)",
    "paid = score",
    "a missing end of text is never penalised",
  ),
  M(
    "value_mask = returns.value_mask(mask, ppo.place)",
    "value_mask = returns.value_mask(mask)",
    "a score paid after the end reaches no advantage",
  ),
  M(
    "token_reward = returns.token_rewards(paid, paid_kl, mask, kl_coef, place=ppo.place)",
    "token_reward = returns.token_rewards(paid, paid_kl, mask, kl_coef)",
    "the place of the score is ignored",
  ),
  M(
    "token_reward = returns.token_rewards(paid, paid_kl, mask, kl_coef, place=ppo.place)",
    "token_reward = returns.token_rewards(paid, paid_kl, mask, 0.0, place=ppo.place)",
    "no KL penalty",
  ),
  M(
    "token_reward = returns.token_rewards(paid, paid_kl, mask, kl_coef, place=ppo.place)",
    "token_reward = returns.token_rewards(paid, entropy, mask, kl_coef, place=ppo.place)",
    "the entropy is penalised",
  ),
  M("discount=ppo.cfg.discount,\n", "discount=1.0,\n", "gamma not applied"),
  M("lam=ppo.cfg.lam,\n", "lam=0.95,\n", "lambda not applied"),
  M(
    "discount=ppo.cfg.discount,\n      lam=ppo.cfg.lam",
    "discount=ppo.cfg.lam,\n      lam=ppo.cfg.discount",
    "discount and lambda swapped",
  ),
  M(
    "    target=target,\n    stem",
    "    target=advantage,\n    stem",
    "the values are fitted to the advantages",
  ),
  M(
    '"objective/scores": score.mean(where=scored)',
    '"objective/scores": paid.mean(where=scored)',
    "the penalty of a missing end counts as score",
  ),
  M(
    '"objective/non_score_reward": -kl_coef * episode_paid_kl.mean()',
    '"objective/non_score_reward": kl_coef * episode_paid_kl.mean()',
    "sign of the reward without the score",
  ),
  M(
    '"objective/rlhf_reward": (paid - kl_coef * episode_paid_kl).mean(where=scored)',
    '"objective/rlhf_reward": (paid - episode_paid_kl).mean(where=scored)',
    "beta left out of the reward of an episode",
  ),
  M(
    '"objective/entropy": (entropy * mask).sum(1).mean()',
    '"objective/entropy": entropy.sum(1).mean()',
    "padding in the entropy",
  ),
  M(
    "_value_loss(ppo)(value, exp.value, exp.target, value_weight)",
    "_value_loss(ppo)(value, value, exp.target, value_weight)",
    "value clip around the new value",
  ),
  M(
    "_value_loss(ppo)(value, exp.value, exp.target, value_weight)",
    "_value_loss(ppo)(value, exp.value, exp.target, weight)",
    "the value loss is not of the state after the end",
  ),
  M(
    "partial(losses.clipped_value, clip=ppo.cfg.value_clip)",
    "partial(losses.clipped_value, clip=ppo.cfg.clip)",
    "the clip of the policy for the values",
  ),
  M(
    "partial(losses.clipped_policy, clip=ppo.cfg.clip)",
    "partial(losses.clipped_policy, clip=ppo.cfg.value_clip or 0.2)",
    "the clip of the values for the policy",
  ),
  M(
    "loss += cfg.value_coef * _value_loss",
    "loss += _value_loss",
    "the coefficient of the values is ignored",
  ),
  M(
    "loss += cfg.value_coef * _value_loss",
    "loss -= cfg.value_coef * _value_loss",
    "sign of the value loss",
  ),
  M(
    "loss += kl_coef * ppo.kl_loss(",
    "loss += ppo.kl_loss(",
    "the coefficient of the KL in the loss is ignored",
  ),
  M(
    "loss += ppo.entropy_loss(entropy, weight)",
    "loss -= ppo.entropy_loss(entropy, weight)",
    "sign of the entropy in the loss",
  ),
  M(
    "paid_kl = jnp.where(mask, ppo.kl_reward(logp, ref_logp), 0)",
    "paid_kl = kl",
    "another estimate of the KL is not paid",
  ),
  M(
    "(token_reward, value, value_learnt)",
    "(token_reward, value, value_mask)",
    "an episode without a score is one of its group",
  ),
  M(
    "value_stem = exp.stem if frozen.reward_trunk is None else exp.value_stem",
    "value_stem = exp.stem",
    "the value network reads the stem of the policy",
  ),
  M(
    "return loss, (logp, value, jax.lax.stop_gradient(entropy))",
    "return loss, (logp, value, entropy)",
    "the entropy has a gradient",
    equivalent="the rows of steps.gradients take no part in the gradient",
  ),
  M(
    "weight = mask * share[:, None]",
    "weight = losses.token_mean(mask)",
    "a micro-batch of text is a mean of its own",
  ),
  M(
    "weigh = losses.WEIGHTS[cfg.normalise]",
    "weigh = losses.token_mean",
    "the kind of mean of the losses is ignored",
  ),
  M(
    "weight = losses.WEIGHTS[normalise](text.mask[:, 1:])",
    "weight = losses.token_mean(text.mask[:, 1:])",
    "the kind of mean of the text is ignored",
  ),
  M(
    "weight = losses.WEIGHTS[normalise](text.mask[:, 1:])",
    "weight = losses.WEIGHTS[normalise](text.mask)",
    "the first token of a text counts",
  ),
  M(
    "return jnp.max(weight, axis=1)",
    "return jnp.mean(weight, axis=1)",
    "the share of a text is thinned by its padding",
  ),
  M(
    "weights = (weigh(exp.mask), weigh(exp.value_mask))",
    "weights = (losses.sequence_mean(exp.mask), weigh(exp.value_mask))",
    "a mean over episodes for the mean over tokens",
  ),
  M(
    "weights = (weigh(exp.mask), weigh(exp.value_mask))",
    "weights = (weigh(exp.mask), weigh(exp.mask))",
    "the value of the end has no weight",
  ),
  M(
    'sampled = cfg.old_logp == "sampler"',
    'sampled = cfg.old_logp == "trainer"',
    "with the sampler's log-probabilities the first ratio is not 1",
  ),
  M(
    "first=(number == 0) if sampled else False",
    "first=sampled",
    "no ratio moves with the sampler's log-probabilities",
  ),
  M(
    "jnp.where(first, jax.lax.stop_gradient(logp), exp.logp)",
    "jnp.where(first, logp, exp.logp)",
    "the first update has no gradient with the sampler's log-probabilities",
  ),
  M("    micro=cfg.micro,", "    micro=1,", "one micro-batch for all episodes"),
  M("micro=cfg.ptx_micro", "micro=cfg.micro", "the text is split as the episodes are"),
  M(
    "lambda g, p: g + cfg.ptx_coef * p",
    "lambda g, p: g + p",
    "the coefficient of the text is ignored",
  ),
  M(
    "lambda g, p: g + cfg.ptx_coef * p",
    "lambda g, p: g - cfg.ptx_coef * p",
    "the text is unlearned",
  ),
  M(
    'decay = cfg.ema_decay if cfg.ema_every == "minibatch" else None',
    "decay = cfg.ema_decay",
    "an average of iterations moves with each update too",
  ),
  M(
    'if cfg.ema_decay is not None and cfg.ema_every == "iteration" and average is not None:',
    "if cfg.ema_decay is not None and average is not None:",
    "an average of updates moves with each iteration too",
  ),
  M(
    "jax.random.permutation(jax.random.fold_in(key, epoch), rows // together)",
    "jax.random.permutation(key, rows // together)",
    "every epoch has the same order",
  ),
  M(
    "jax.random.permutation(jax.random.fold_in(key, epoch), rows // together)",
    "jnp.roll(jnp.arange(rows // together), epoch)",
    "the order is not random",
  ),
  M(
    "jax.random.permutation(jax.random.fold_in(key, epoch), rows // together)",
    "jax.random.randint(jax.random.fold_in(key, epoch), (rows // together,), 0, rows // together)",
    "rows are drawn with replacement",
  ),
  M(
    'order_key = keys.key_for(state.key, "minibatches", state.step)',
    'order_key = keys.key_for(state.key, "minibatches")',
    "every iteration has the same order",
  ),
  M(
    'return keys.key_for(state.key, "responses", state.step)',
    'return keys.key_for(state.key, "responses")',
    "every iteration has the same noise",
  ),
  M(
    'summary["policy/ratio_first"] = metrics["policy/ratio_max"][0]',
    'summary["policy/ratio_first"] = metrics["policy/ratio_max"][-1]',
    "the ratio of the last update for the first",
  ),
  M(
    "summary[name] = per_update.max()",
    "summary[name] = per_update.mean()",
    "an extreme that is a mean",
  ),
  M(
    'kl_coef=ppo.kl_control(kl_coef, rollout_metrics["objective/kl"], episodes)',
    "kl_coef=kl_coef",
    "the KL coefficient is not updated",
  ),
  M(
    'kl_coef=ppo.kl_control(kl_coef, rollout_metrics["objective/kl"], episodes)',
    'kl_coef=ppo.kl_control(kl_coef, rollout_metrics["objective/kl_k3"], episodes)',
    "the KL coefficient follows another estimate",
  ),
  M("iteration=state.iteration + 1", "iteration=state.iteration", "iterations are not counted"),
  M(
    "scores = score(frozen, rows, ppo, reward_stem)",
    "scores = score(frozen, rows, ppo, policy_stem)",
    "the reward model reads the stem of the policy",
  ),
]

MUTANTS["dpo"] = [
  M(
    "is_of = predictions.completion[:, :, None] == jnp.arange(S * K)",
    "is_of = predictions.completion[:, :, None] >= jnp.arange(S * K)",
    "tokens of other completions count",
  ),
  M(
    "total = jnp.sum(jnp.where(is_of, logp[:, :, None], 0), axis=1)",
    "total = jnp.mean(jnp.where(is_of, logp[:, :, None], 0), axis=1)",
    "the mean of the tokens for their sum",
  ),
  M(
    "    stem=part.stem,\n    key=key,\n",
    "    stem=part.stem,\n",
    "no dropout in a completion",
  ),
  M("    stem=part.stem,\n", "", "the stem of a completion is computed again"),
  M("    branch=part.branch,\n", "", "a completion sees those before it"),
  M("    count=count,\n", "    count=count - 1,\n", "the last part is left out"),
  M(
    "return cfg.beta * (logp - ref_logp)",
    "return logp - ref_logp",
    "beta left out of the implicit reward",
  ),
  M(
    "frozen.ref, part)\n  return cfg.beta",
    "params, part)\n  return cfg.beta",
    "the implicit reward over the policy itself",
  ),
  M(
    "frozen.ref, part)\n  ref_logp = jax",
    "params, part)\n  ref_logp = jax",
    "the policy is its own reference",
  ),
  M(
    "ref_logp = jax.lax.stop_gradient(ref_logp)",
    "pass",
    "the reference has a gradient",
    equivalent="the gradient is that of the policy alone, which the reference does not read",
  ),
  M(
    "return _flat(winner), _flat(loser)",
    "return _flat(loser), _flat(winner)",
    "winner and loser swapped",
  ),
  M("key=key if cfg.dropout else None", "key=key", "dropout cannot be switched off"),
  M("key=key if cfg.dropout else None", "key=None", "no dropout in training"),
  M("_flat(weight), beta=cfg.beta", "_flat(weight), beta=0.1", "beta is ignored"),
  M(
    'key = keys.key_for(state.key, "dropout", state.step)',
    'key = keys.key_for(state.key, "dropout")',
    "the same dropout in every step",
  ),
  M(
    "weight = losses.pair_weights(rank, cfg.pairs, distinct=differ, labels=labels)",
    "weight = losses.pair_weights(rank, distinct=differ, labels=labels)",
    "the kind of mean over pairs is ignored",
  ),
  M(
    "weight = losses.pair_weights(rank, cfg.pairs, distinct=differ, labels=labels)",
    "weight = losses.pair_weights(rank, cfg.pairs, labels=labels)",
    "equal completions are a pair",
  ),
  M(
    "rewards = cfg.beta * (logp - ref_logp)",
    "rewards = cfg.beta * logp",
    "no reference in the measured rewards",
  ),
  M(
    "share = losses.pair_weights(rank, distinct=differ, labels=labels)",
    "share = weight",
    "measured means are divided as the loss is",
  ),
  M(
    '"reward/chosen": jnp.sum(share * rewards[:, :, None])',
    '"reward/chosen": jnp.sum(share * rewards[:, None, :])',
    "the reward of the loser for that of the winner",
  ),
  M(
    '"logp/rejected": jnp.sum(share * logp[:, None, :])',
    '"logp/rejected": jnp.sum(share * ref_logp[:, None, :])',
    "the reference for the policy in what is measured",
  ),
  M(
    "state = dataclasses.replace(state, iteration=state.iteration + 1)",
    "pass",
    "batches are not counted",
  ),
]

MUTANTS["models/blocks"] = [
  M("count = in_prompt + in_branch", "count = in_prompt", "branches have no positions"),
  M(
    "in_branch = _count_in_segment(real & (branch > 0), valid, branch)",
    "in_branch = _count_in_segment(real & (branch > 0), valid)",
    "a branch goes on from the one before it",
  ),
  M(
    "mask = mask & ((key_branch == 0) | (key_branch == query_branch))",
    "mask = mask & (key_branch == query_branch)",
    "a branch does not see its prompt",
  ),
  M(
    "mask = mask & ((key_branch == 0) | (key_branch == query_branch))",
    "mask = mask & (key_branch <= query_branch)",
    "a branch sees those before it",
  ),
  M(
    "mask = mask & (key_segment == query_segment)",
    "mask = mask & (key_segment <= query_segment)",
    "a branch sees other segments",
  ),
  M(
    "    distance = queries.position[:, :, None] - keys.position[:, None, :]\n",
    "    pass\n",
    "the window of a branch counts columns",
  ),
]

MUTANTS["models/attention"] = [
  M(
    "first = queries.first + size * jnp.arange(N)",
    "first = queries.first + 0 * jnp.arange(N)",
    "every part has the columns of the first",
  ),
  M(
    "first_key = max(0, start - window + 1)",
    "first_key = max(0, start - window + 2)",
    "the first query of a block misses the first key of its window",
  ),
  M(
    "keys=blocks.some_columns(columns, first_key, end),",
    "keys=blocks.some_columns(columns, 0, end - first_key),",
    "the keys of a window are taken for the first of the row",
  ),
  M(
    "queries = blocks.some_columns(columns, start, end)",
    "queries = blocks.some_columns(columns, 0, end - start)",
    "every block has the columns of the first",
  ),
  M(
    "  body = jax.checkpoint(body, prevent_cse=False)\n",
    "",
    "the scores of all parts are kept for the backward pass",
  ),
]

MUTANTS["models/transformer"] = [
  M(
    'x = family.embed(params["embed"], tokens, blocks.positions(valid, branch))',
    'x = family.embed(params["embed"], tokens, blocks.positions(valid))',
    "learned positions count the other branches",
  ),
  M(
    'x = run(family, params["lower"], x, valid, branch=branch)',
    'x = run(family, params["lower"], x, valid)',
    "the lower blocks see all branches",
  ),
  M(
    "positions = blocks.positions(valid, branch)",
    "positions = blocks.positions(valid)",
    "rotary positions count the other branches",
  ),
]

MUTANTS["data/batches/branches"] = [
  M("shared = min(shared, *starts)", "pass", "the first tokens of completions are not learnt"),
  M(
    "return shortest if equal.all() else int(np.argmin(equal))",
    "return 0",
    "nothing is shared",
  ),
  M(
    "last.append(end - 1 if len(rest) else shared - 1)",
    "last.append(end - 1)",
    "a row that others begin with ends in the branch before it",
  ),
  M(
    "np.where(previous < shared, previous, previous - shared + begin)",
    "previous - shared + begin",
    "the first token of a branch is predicted by the branch before it",
  ),
  M(
    "places = np.arange(max(start, 1), len(row))",
    "places = np.arange(start, len(row))",
    "the first token is predicted",
  ),
  M(
    "last[completions] = start + group.last",
    "last[completions] = group.last",
    "scores of another group",
  ),
  M("valid[columns] = slot + 1", "valid[columns] = 1", "groups see each other"),
  M(
    "before[places] = start + learnt.before",
    "before[places] = learnt.before",
    "tokens are predicted from another group",
  ),
  M(
    "completion[places] = slot * K + learnt.completion",
    "completion[places] = learnt.completion",
    "the completions of all groups are one",
  ),
  M(
    "rows = -(-most // micro) if micro else packs.rows_at_once(most, length, learnt=not scored)",
    "rows = packs.rows_at_once(most, length, learnt=not scored)",
    "the number of parts is ignored",
  ),
  M("length, learnt=not scored)", "length)", "scores are computed in parts as small as gradients"),
  M("slots=min(batch, length // shortest)", "slots=1", "a row has room for one group"),
]


def path_of(module: str) -> Path:
  """The file of a module, from the root of the repository."""
  return Path(PACKAGE, f"{module}.py")


def applied(mutant: Mutant, text: str) -> str:
  """The text of a module with the fault in it.

  Raises:
    ValueError: unless the old text stands there exactly once.
  """
  count = text.count(mutant.old)
  if count != 1:
    raise ValueError(f"{mutant.breaks}: the text stands there {count} times: {mutant.old}")
  return text.replace(mutant.old, mutant.new)


class Overlay:
  """A copy of the package in which mutants are tried."""

  def __init__(self, folder: Path):
    self.folder = folder
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE)
    self.environment = os.environ | {
      "PYTHONPATH": str(folder),
      # Examples that fail on a mutant are no examples for the package.
      "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
    }
    # `-P` leaves the working directory out of the path: the package there is the one without fault.
    self.python = [sys.executable, "-P"]
    where = [*self.python, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"]
    imported = subprocess.run(where, env=self.environment, capture_output=True, text=True)
    if not imported.stdout.startswith(str(folder)):
      raise SystemExit(f"the copy is not what is imported: {imported.stdout}{imported.stderr}")

  def failure(self, module: str) -> str | None:
    """What the tests of a module say first: the name of a test that fails, or None."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
    command = [*self.python, "-m", "pytest", *options, *TESTS[module]]
    try:
      result = subprocess.run(
        command,
        cwd=ROOT,
        env=self.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
      )
    except subprocess.TimeoutExpired:
      return "no test: it never ended"
    if result.returncode == 0:
      return None
    name = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", result.stdout, re.MULTILINE)
    return name.group(1) if name else result.stdout[-500:] + result.stderr[-500:]

  def try_mutant(self, module: str, mutant: Mutant) -> str | None:
    """The name of a test that fails on the mutant, or None where it survives."""
    source, copy = ROOT / path_of(module), self.folder / path_of(module)
    copy.write_text(applied(mutant, source.read_text()))
    try:
      return self.failure(module)
    finally:
      shutil.copy2(source, copy)
      # What was compiled of the mutant could be taken for what the next one compiles to.
      for compiled in copy.parent.glob(f"__pycache__/{copy.stem}.*"):
        compiled.unlink()


def run(module: str, mutants: list[Mutant], overlay: Overlay) -> list[Mutant]:
  """Tries the mutants of a module and prints a line for each; returns those that survive."""
  failure = overlay.failure(module)
  if failure:
    raise SystemExit(f"{module}: without any fault, this fails: {failure}")
  survivors = []
  for mutant in mutants:
    if mutant.equivalent:
      print(f"  equal     {mutant.breaks}: {mutant.equivalent}", flush=True)
      continue
    start = time.monotonic()
    test = overlay.try_mutant(module, mutant)
    seconds = time.monotonic() - start
    if test is None:
      survivors.append(mutant)
      print(f"  SURVIVES  {mutant.breaks} ({seconds:.0f} s)", flush=True)
    else:
      print(f"  killed    {mutant.breaks} ({seconds:.0f} s): {test}", flush=True)
  return survivors


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--only", choices=MUTANTS, help="one module")
  parser.add_argument("--list", action="store_true", help="print the mutants and run none")
  parser.add_argument("word", nargs="?", default="", help="a part of the phrase of a mutant")
  args = parser.parse_args()
  modules = [args.only] if args.only else list(MUTANTS)
  chosen = {
    module: [mutant for mutant in MUTANTS[module] if args.word in mutant.breaks]
    for module in modules
  }
  if args.list:
    for module, mutants in chosen.items():
      print(f"{module}: {len(mutants)}")
      for mutant in mutants:
        print(f"  {mutant.breaks}")
    return 0

  survivors = 0
  with tempfile.TemporaryDirectory() as folder:
    overlay = Overlay(Path(folder))
    for module, mutants in chosen.items():
      if not mutants:
        continue
      print(module, flush=True)
      survived = len(run(module, mutants, overlay))
      equivalent = sum(bool(mutant.equivalent) for mutant in mutants)
      killed = len(mutants) - survived - equivalent
      print(
        f"{module}: {len(mutants)} mutants, {killed} killed, {equivalent} equivalent", flush=True
      )
      survivors += survived
  return 1 if survivors else 0


if __name__ == "__main__":
  sys.exit(main())
