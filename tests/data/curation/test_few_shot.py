"""K pairs make K examples, the target never among its own shots."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.data.curation import few_shot
from instructjax.data.records import sources
from instructjax.data.records.records import FewShot
from instructjax.errors import UserError

PAIRS = (
  {"input": "good", "output": "+"},
  {"input": "bad", "output": "-"},
  {"input": "so so", "output": "0"},
)
ONE = FewShot(
  "Label it.", PAIRS, user="u", source="labeler", use_case="Classification", consent=True
)


def test_three_pairs_by_hand():
  first, second, third = few_shot.expand(ONE)
  assert (
    first.prompt
    == "Label it.\n\nInput: bad\nOutput: -\n\nInput: so so\nOutput: 0\n\nInput: good\nOutput:"
  )
  assert (
    second.prompt
    == "Label it.\n\nInput: good\nOutput: +\n\nInput: so so\nOutput: 0\n\nInput: bad\nOutput:"
  )
  assert [first.completion, second.completion, third.completion] == ["+", "-", "0"]
  assert (first.user, first.source, first.use_case, first.consent) == (
    "u",
    "labeler",
    "Classification",
    True,
  )


@given(st.integers(2, 9), st.none() | st.integers(0, 9), st.integers(1, 4), st.integers(0, 3))
def test_the_target_is_never_in_its_own_context(k, shots, samples, seed):
  pairs = tuple({"input": f"in{i};", "output": f"out{i};"} for i in range(k))
  demonstrations = few_shot.expand(FewShot("Do.", pairs), shots=shots, samples=samples, seed=seed)
  assert demonstrations == few_shot.expand(
    FewShot("Do.", pairs), shots=shots, samples=samples, seed=seed
  )
  count = k - 1 if shots is None else min(shots, k - 1)
  assert len(demonstrations) == len(set(keys(demonstrations)))
  per_target = min(samples, len(list(itertools.combinations(range(k - 1), count))))
  assert len(demonstrations) == k * per_target
  assert [demo.completion for demo in demonstrations] == [
    f"out{i};" for i in range(k) for _ in range(per_target)
  ]
  for demo in demonstrations:
    assert demo.completion not in demo.prompt
    assert demo.prompt.count("\nOutput: ") == count


def keys(demonstrations):
  return [(demo.prompt, demo.completion) for demo in demonstrations]


def test_many_samples_of_many_pairs_differ():
  pairs = tuple({"input": f"in{i};", "output": f"out{i};"} for i in range(40))
  demonstrations = few_shot.expand(FewShot("Do.", pairs), shots=8, samples=5)
  assert len(set(keys(demonstrations))) == 200


def test_errors_are_named(tmp_path):
  with pytest.raises(UserError, match="shots -1, samples 1"):
    few_shot.expand(ONE, shots=-1)
  path = tmp_path / "x.jsonl"
  path.write_text(
    '{"instruction": "a", "pairs": [{"input": "x", "output": "y"}]}\n'
    '{"instruction": "a", "pairs": [{"input": "x", "output": "y"}, {"input": "x", "output": '
    '"z"}]}\n'
    '{"instruction": "a", "pairs": [{"input": "x", "output": "y"}, {"input": "q", "a": "z"}, '
    '{"input": "", "output": "z"}]}\n'
  )
  _, problems = sources.examine(path, "few_shot")
  assert [problem.removeprefix(f"{path}:") for problem in problems] == [
    "1: pairs: a list of at least 2 objects with input and output is expected",
    "2: pairs[1].input: the same as pairs[0]'s; take one out",
    "3: pairs[1]: an object with input and output is expected",
    "3: pairs[2].input: empty; give a text or take the record out",
  ]
