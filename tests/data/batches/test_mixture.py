from collections import Counter

import pytest

from instructjax.data.batches import mixture, pipeline
from instructjax.data.batches.mixture import Mixture
from instructjax.errors import UserError


def test_the_grammar(tmp_path):
  assert mixture.parse("a.jsonl") == [(1.0, "a.jsonl")]
  assert mixture.parse("0.7*a.jsonl + 3e-1 * tfds:c4@train[:10%]") == [
    (0.7, "a.jsonl"),
    (0.3, "tfds:c4@train[:10%]"),
  ]
  assert mixture.parse("data/*.jsonl + 2*b.jsonl,c.jsonl") == [
    (1.0, "data/*.jsonl"),
    (2.0, "b.jsonl,c.jsonl"),
  ]
  named = tmp_path / "2*a + b.jsonl"
  named.write_text("")
  assert mixture.parse(str(named)) == [(1.0, str(named))]
  many = ",".join(f"{i}.jsonl" for i in range(100))  # longer than a name can be
  assert mixture.parse(many) == [(1.0, many)]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("a.jsonl + ", r"'a.jsonl \+ ': one of its sources is empty"),
    ("0*a.jsonl + b.jsonl", r"'0\*a.jsonl': the weight is 0 and must be above 0"),
    ("-1*a.jsonl + b.jsonl", "the weight is -1"),
    ("1e999*a.jsonl", "the weight is inf"),
  ],
)
def test_what_is_no_mixture(text, message):
  with pytest.raises(UserError, match=message):
    mixture.parse(text)


def draw(rows, count, seed=0, size=5):
  batches = pipeline.stream(rows, list, size=size, seed=seed)
  return [row for i in range(count // size) for row in batches(i)]


def test_shares_are_the_weights_and_every_source_has_its_own_epochs():
  rows = Mixture((range(10, 14), range(100, 200)), (0.3, 0.7))
  order = draw(rows, 1000)
  small, large = [row for row in order if row < 100], [row for row in order if row >= 100]
  assert len(small) == pytest.approx(300, abs=1)
  epochs = [sorted(small[at : at + 4]) for at in range(0, 296, 4)]
  assert all(epoch == [10, 11, 12, 13] for epoch in epochs)  # 75 epochs of the small one
  assert sorted(large[:100]) == list(range(100, 200))  # in which the large one has seven
  assert large[:100] != large[100:200]
  for at in range(50, 1000, 50):  # no stretch that is one source
    assert len([row for row in order[at - 50 : at] if row < 100]) == pytest.approx(15, abs=1)


def test_weights_count_by_their_ratio_and_sources_of_one_size_differ_in_order():
  parts = ([("a", i) for i in range(30)], [("b", i) for i in range(30)])
  order, same_order = (draw(Mixture(parts, weights), 60) for weights in ((1, 1), (5, 5)))
  assert order == same_order
  assert Counter(name for name, _ in order) == {"a": 30, "b": 30}
  assert [i for name, i in order if name == "a"] != [i for name, i in order if name == "b"]
  assert draw(Mixture(parts[:1], (3.0,)), 60) == draw(parts[0], 60)  # one source is no mixture


def test_a_mixture_is_reached_by_number():
  rows = Mixture((range(7), range(100, 103)), (2.0, 1.0))
  batches = [pipeline.stream(rows, list, size=4, seed=3) for _ in range(2)]
  assert [batches[0](i) for i in range(30)] == [batches[1](i) for i in reversed(range(30))][::-1]
  assert len(rows) == 10
  with pytest.raises(UserError, match="no rows"):
    pipeline.stream(Mixture((range(7), []), (1.0, 1.0)), list, size=4, seed=3)
