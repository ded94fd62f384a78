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
  kept = choose(outputs(groups), k, lot)
  different = {text.strip() for group in groups for text in group} - {""}
  assert len(kept) == min(k, len(different))
  assert (
    len({one.text.strip() for one in kept}) == len(kept)
    and {one.text.strip() for one in kept} <= different
  )
  drawn = {(one.text, one.source["model"]) for group in outputs(groups) for one in group}
  assert all((one.text, one.source["model"]) in drawn for one in kept)
  assert kept == choose(outputs(groups), k, lot)


@given(models=st.integers(1, 4), n=st.integers(1, 4), k=st.integers(2, 9), lot=st.text(max_size=3))
def test_different_outputs_are_taken_evenly(models, n, k, lot):
  kept = choose(
    outputs([[f"{model} {draw}" for draw in range(n)] for model in range(models)]), k, lot
  )
  counts = Counter(one.source["model"] for one in kept)
  assert max(counts.values()) - min(counts.get(f"m{model}", 0) for model in range(models)) <= 1


def test_a_text_that_two_drew_is_credited_by_lot():
  both = outputs([["same", "x"], ["same", "y"]])
  credit = Counter(
    next(one for one in choose(both, 3, str(lot)) if one.text == "same").source["model"]
    for lot in range(400)
  )
  assert 150 < credit["m0"] < 250  # 5 standard deviations of a fair coin
  places = Counter(
    [one.text for one in choose(both, 3, str(lot))].index("same") for lot in range(400)
  )
  assert all(80 < places[at] < 190 for at in range(3))
