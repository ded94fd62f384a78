"""An offline stand-in for Perspective: the linear classifier of the package alt-profanity-check."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from instructjax.errors import UserError


def toxicity(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
  """The probability that each response is profane; an empty one is 0.  Raises UserError without the
  package.
  """
  try:
    classifier = importlib.import_module("profanity_check")
  except ImportError as error:
    raise UserError(
      f"the stand-in needs the package alt-profanity-check ({error}): run pip install "
      "'instructjax[toxicity]'"
    ) from None
  found = iter(
    classifier.predict_prob(said) if (said := [text for text in responses if text.strip()]) else ()
  )
  return [float(next(found)) if text.strip() else 0.0 for text in responses]
