"""Model averaging between the weights before and after RLHF (Lin et al. 2023, section 4).

    θ(α) = (1 - α) θ_SFT + α θ_RLHF

    python experiments/recipes/averaging.py --seed=0

RLHF forgets some of what the model knew before, which is the alignment tax: here GRPO makes the
text of `world` less likely. The paper finds that averaged weights keep much of the reward and
pay little of the tax. To send a prompt to one of both models at random would give the straight
line between them, so averaging is worth something where it lies above that line.
"""

import grpo
import numpy as np
import world

from instructjax import intervals, optim

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # α: the share of the weights after RLHF


def average(start, policy, share):
  """Returns (1 - α) start + α policy."""
  return optim.ema(start, policy, decay=1 - share)


def front(start, policy, seed):
  """Returns the reward of held-out prompts and the loss of rows of text: [shares, rows] each."""
  models = [average(start, policy, share) for share in SHARES]
  rewards = [world.evaluate(model, seed) for model in models]
  text = [world.text_loss(model) for model in models]
  return np.stack(rewards), np.stack(text)


def above_line(values):
  """Returns by how much each average exceeds the line between both ends: [shares, rows]."""
  share = np.array(SHARES)[:, None]
  return values - (1 - share) * values[0] - share * values[-1]


def shown(estimate):
  """Returns a number with its 95 % interval."""
  return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def main(words=None):
  args = world.arguments(words, iterations=60, warm=300)
  start = world.warm_start(args.seed, args.warm)
  policy, _ = grpo.train(start, args.seed, args.iterations, grpo.experiment(), kl_coef=0.0)
  reward, text = front(start, policy, args.seed)
  world.report("GRPO", args.seed, reward[0], reward[-1])
  print("text loss after GRPO:", shown(intervals.mean_difference(text[-1], text[0])))
  lines = above_line(reward), above_line(text)
  for i, share in enumerate(SHARES):
    row = (
      f"α {share:.1f}: reward {reward[i].mean():.3f}, text loss {text[i].mean():.3f} nats a token"
    )
    if 0 < share < 1:
      gain, tax = (intervals.mean(line[i]) for line in lines)
      row += f"; from the line {shown(gain)} and {shown(tax)}"
    print(row)
  return reward, text


if __name__ == "__main__":
  main()
