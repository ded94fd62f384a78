"""What the reward models and the lexicon say of answers.

The answers to one prompt share it: the reward models read it once, as they do the completions of a
comparison. Each answer is read as a text, whoever wrote it.

Dimensions: N prompts, M = N / 2 instructions. Each of these is two prompts, one after the other:
the first asks for praise, the second for criticism.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from instructjax.data.public import tone_measures
from instructjax.data.records.records import Comparison, Demonstration
from instructjax.quickstart import ranking
from instructjax.quickstart.models import Trained
from instructjax.settings.quickstart import QuickstartSettings


class Judged(NamedTuple):
  """The verdicts about the answers of one author, a policy or people.

  scores    the score of each answer by the name of the reward model
  crossed   gold's score of each criticism as an answer to the prompt that asks for praise
  follows   1 where the VADER lexicon finds the tone that was asked for
  """

  scores: dict[str, Float[np.ndarray, " N"]]
  crossed: Float[np.ndarray, " M"]
  follows: Float[np.ndarray, " N"]


def judge(
  settings: QuickstartSettings,
  trained: Trained,
  prompts: Sequence[Demonstration],
  texts: Mapping[str, Sequence[str]],
) -> dict[str, Judged]:
  """Returns the verdicts about the answers of each author to all prompts."""
  authors = list(texts)
  records = []
  for number, prompt in enumerate(prompts):
    answers = [texts[author][number] for author in authors]
    # To compare the two answers to an instruction, both are read under the same prompt.
    if prompt.use_case == "praise":
      answers += [texts[author][number + 1] for author in authors]
    records.append(as_comparison(prompt, answers))
  scores = ranking.score(settings, trained, records)

  judged = {}
  for place, author in enumerate(authors):
    scores_of_author: dict[str, np.ndarray] = {}
    for name, rows in scores.items():
      scores_of_author[name] = np.asarray([row[place] for row in rows], np.float64)
    crossed = []
    follows = []
    for prompt, text, row in zip(prompts, texts[author], scores["gold"], strict=True):
      follows.append(tone_measures.follows(prompt, text))
      if prompt.use_case == "praise":
        crossed.append(row[len(authors) + place])
    judged[author] = Judged(
      scores_of_author, np.asarray(crossed, np.float64), np.asarray(follows, np.float64)
    )
  return judged


def as_comparison(prompt: Demonstration, texts: Sequence[str]) -> Comparison:
  """Returns answers to a prompt as completions without an order."""
  return Comparison(
    prompt=prompt.prompt,
    completions=tuple(texts),
    ranks=(1,) * len(texts),
    turns=prompt.turns,
    source=prompt.source,
    use_case=prompt.use_case,
  )


def best_of(
  draws: Sequence[tuple[Sequence[str], Judged]],
) -> tuple[list[str], Judged]:
  """Returns of several answers to each prompt the one that the reward model scores highest."""
  rewards = np.stack([judged.scores["reward"] for _, judged in draws])
  best = rewards.argmax(0)
  everyone = np.arange(len(best))
  texts = [draws[draw][0][number] for number, draw in enumerate(best)]
  scores = {}
  for name in draws[0][1].scores:
    scores[name] = np.stack([judged.scores[name] for _, judged in draws])[best, everyone]
  crossed = np.stack([judged.crossed for _, judged in draws])
  # Every second prompt asks for criticism.
  crossed = crossed[best[1::2], everyone[: len(best) // 2]]
  follows = np.stack([judged.follows for _, judged in draws])[best, everyone]
  return texts, Judged(scores, crossed, follows)


def directed(judged: Judged) -> Float[np.ndarray, " M"]:
  """Returns 1 for each instruction whose praise is the more positive of its two answers, by gold.

  Both are read under the prompt that asks for praise. Equal scores count half.
  """
  praise = judged.scores["gold"][0::2]
  return (np.sign(praise - judged.crossed) + 1) / 2


# --- what an answer is like ---


def distinct(texts: Sequence[str]) -> float:
  """Returns the share of different pairs of neighbouring words (Li et al. 2016, "distinct-2")."""
  pairs = []
  for text in texts:
    words = text.lower().split()
    pairs += itertools.pairwise(words)
  return len({*pairs}) / len(pairs) if pairs else 0.0


def repeated(texts: Sequence[str]) -> Float[np.ndarray, " N"]:
  """Returns 1 for each answer that another prompt got too, word for word."""
  counts: dict[str, int] = {}
  for text in texts:
    counts[text] = counts.get(text, 0) + 1
  return np.asarray([counts[text] > 1 for text in texts], np.float64)
