"""Near-duplicates by a long common prefix: crafted pairs, and the definition pair by pair."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data.curation import dedup

A = "Explain the moon landing to a six year old in a few sentences"


@pytest.mark.parametrize(
  ("texts", "prefix", "classes"),
  [
    (["abcdeX", "abcdeY"], 5, [[0, 1]]),  # a common prefix of exactly 5
    (["abcdX", "abcdY"], 5, [[0], [1]]),  # of 4
    (["abcde", "abcdeY"], 5, [[0, 1]]),  # the whole of one
    (["abc", "abcd"], 5, [[0], [1]]),  # shorter than 5, not the same
    (["abc", "abc"], 5, [[0, 1]]),  # shorter than 5, the same
    (["abcdeX", "q", "abcdeX", "abcdeY"], 5, [[0, 2, 3], [1]]),  # equal ones among them
    (["  ABC\n\n de X", "abc de y"], 6, [[0, 1]]),  # white space and upper case say nothing
    (["", " "], 5, [[0, 1]]),
    ([A + " please", A + ", please"], len(A), [[0, 1]]),
    ([A + " please", A + ", please"], len(A) + 1, [[0], [1]]),
    (
      ["a" + " " * 100 + "b", "a b"],
      8,
      [[0, 1]],
    ),  # the first letters of the normal form may stand far apart
  ],
)
def test_crafted_prompts(texts, prefix, classes):
  assert dedup.classes(texts, prefix) == classes


texts = st.lists(st.text("aB \n", max_size=9), max_size=12)


@given(texts, st.integers(1, 6))
@settings(deadline=None)
def test_classes_are_the_definition_pair_by_pair(texts, prefix):
  home = {i: n for n, places in enumerate(dedup.classes(texts, prefix)) for i in places}
  assert sorted(home) == list(range(len(texts)))
  plain = [" ".join(text.split()).casefold() for text in texts]
  for i, j in itertools.combinations(range(len(texts)), 2):
    common = sum(
      itertools.accumulate((a == b for a, b in zip(plain[i], plain[j])), lambda a, b: a and b)
    )
    assert (home[i] == home[j]) == (plain[i] == plain[j] or common >= prefix)
