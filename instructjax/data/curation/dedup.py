"""Near-duplicate prompts: "heuristically deduplicated by checking for prompts that share a long
common prefix" (section 3.2).

The paper does not say how long.  Ours: two prompts are near-duplicates where the first `prefix`
characters of their normal form are the same, or the whole of it; the normal form has one space
for any white space, and no upper case. To share a first part of fixed length is an equivalence,
so the classes come out of one pass with a dict, and they do not depend on the order of the
prompts.
"""

from __future__ import annotations

from collections.abc import Iterable

PREFIX = 128  # characters, about 30 tokens of English


def normal(text: str) -> str:
  """Any white space as one space, none at the ends, no upper case."""
  return " ".join(text.split()).casefold()


def key(text: str, prefix: int = PREFIX) -> str:
  """What near-duplicates have in common: their first `prefix` characters, or all where there are
  fewer.
  """
  head = normal(text[: 4 * prefix])  # most prompts are decided by their beginning
  return (head if len(head) >= prefix else normal(text))[:prefix]


def classes(texts: Iterable[str], prefix: int = PREFIX) -> list[list[int]]:
  """The places of each class of near-duplicates, in the order of their first members; linear in the
  text.
  """
  found: dict[str, list[int]] = {}
  for place, text in enumerate(texts):
    found.setdefault(key(text, prefix), []).append(place)
  return list(found.values())
