"""An offline stand-in for Perspective: the linear classifier of the package alt-profanity-check."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from instructjax.errors import UserError


def toxicity(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
  """Returns the probability that each response is profane; it is 0 for an empty one.

  This is a reward function, and the prompts are not read.

  Raises:
    UserError: if the package is not installed.
  """
  del prompts
  try:
    classifier = importlib.import_module("profanity_check")
  except ImportError as error:
    raise UserError(
      f"the stand-in needs the package alt-profanity-check ({error}): run pip install "
      "'instructjax[toxicity]'"
    ) from None
  scores = [0.0] * len(responses)
  # Empty responses are left out, and the classifier takes no empty list.
  places = [place for place, response in enumerate(responses) if response.strip()]
  if places:
    probabilities = classifier.predict_prob([responses[place] for place in places])
    for place, probability in zip(places, probabilities, strict=True):
      scores[place] = float(probability)
  return scores
