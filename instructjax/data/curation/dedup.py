"""Near-duplicate prompts, which share a long common prefix (Ouyang et al. 2022, section 3.2).

The paper "heuristically deduplicated by checking for prompts that share a long common prefix" and
does not say how long. Here two prompts are near-duplicates if the first `prefix` characters of
their normal form are the same, or the whole of it where it is shorter. The normal form has one
space for any white space, and no upper case.

To share a first part of fixed length is an equivalence. The classes therefore come out of one pass
with a dict, and they do not depend on the order of the prompts.
"""

from __future__ import annotations

from collections.abc import Iterable

PREFIX = 128  # characters, about 30 tokens of English


def normal(text: str) -> str:
  """Returns the text with one space for any white space, none at the ends, and no upper case."""
  return " ".join(text.split()).casefold()


def key(text: str, prefix: int = PREFIX) -> str:
  """Returns what near-duplicates have in common: the first `prefix` characters of the normal form.

  A shorter normal form is its own key.
  """
  # The beginning decides for most prompts. Only where most of it is white space, the whole is read.
  beginning = normal(text[: 4 * prefix])
  if len(beginning) < prefix:
    return normal(text)[:prefix]
  return beginning[:prefix]


def classes(texts: Iterable[str], prefix: int = PREFIX) -> list[list[int]]:
  """Returns the places of each class of near-duplicates, in the order of their first members.

  The time is linear in the text.
  """
  places_by_key: dict[str, list[int]] = {}
  for place, text in enumerate(texts):
    places_by_key.setdefault(key(text, prefix), []).append(place)
  return list(places_by_key.values())
