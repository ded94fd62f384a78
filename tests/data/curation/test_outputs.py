from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from instructjax.data.curation.outputs import Output, choose

GROUPS = st.lists(
  st.lists(st.sampled_from(["", " ", "a", " a", "b", "c ", "d", "e"]), max_size=4),
  min_size=1,
  max_size=4,
)


def outputs(groups):
  return [[Output(text, {"model": f"m{at}"}) for text in group] for at, group in enumerate(groups)]


@given(groups=GROUPS, k=st.integers(2, 9), lot=st.text(max_size=3))
def test_what_is_kept_is_different_and_nobody_is_favoured(groups, k, lot):
  chosen = choose(outputs(groups), k, lot)
  different = {text.strip() for group in groups for text in group} - {""}
  assert len(chosen) == min(k, len(different))
  assert (
    len({output.text.strip() for output in chosen}) == len(chosen)
    and {output.text.strip() for output in chosen} <= different
  )
  candidates = {
    (output.text, output.source["model"]) for group in outputs(groups) for output in group
  }
  assert all((output.text, output.source["model"]) in candidates for output in chosen)
  assert chosen == choose(outputs(groups), k, lot)


@given(models=st.integers(1, 4), n=st.integers(1, 4), k=st.integers(2, 9), lot=st.text(max_size=3))
def test_different_outputs_are_taken_evenly(models, n, k, lot):
  chosen = choose(
    outputs([[f"{model} {draw}" for draw in range(n)] for model in range(models)]), k, lot
  )
  counts = Counter(output.source["model"] for output in chosen)
  assert max(counts.values()) - min(counts.get(f"m{model}", 0) for model in range(models)) <= 1


def test_a_text_that_two_drew_is_credited_by_lot():
  both = outputs([["same", "x"], ["same", "y"]])
  credit = Counter(
    next(output for output in choose(both, 3, str(lot)) if output.text == "same").source["model"]
    for lot in range(400)
  )
  assert 150 < credit["m0"] < 250  # 5 standard deviations of a fair coin
  places = Counter(
    [output.text for output in choose(both, 3, str(lot))].index("same") for lot in range(400)
  )
  assert all(80 < places[at] < 190 for at in range(3))
