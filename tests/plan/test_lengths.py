"""Drawn lengths: their medians and means, their limits, and what is wrong with a file of them."""

import numpy as np
import pytest

from instructjax.errors import UserError
from instructjax.plan import lengths


def test_the_paper_has_its_medians_and_means_at_1024_tokens():
  """Standard errors over 200,000 rows: of the means .5 and .3 tokens, of the medians .3 and .2."""
  rows = lengths.draws("paper", 1024, 1024)(0, 200_000)
  assert np.median(rows.prompt) == pytest.approx(62, abs=1)
  assert np.mean(rows.prompt) == pytest.approx(166, abs=2)
  assert np.median(rows.response) == pytest.approx(50, abs=1)
  assert np.mean(rows.response) == pytest.approx(100, abs=1)
  assert rows.prompt.min() >= 1 and rows.prompt.max() == 1024
  # Prompts and responses are independent.
  assert abs(np.corrcoef(rows.prompt, rows.response)[0, 1]) < 0.01


def test_the_paper_is_scaled_to_the_limits():
  """About 13 % of 128 + 128 positions are real, as of 1,024 + 1,024."""
  rows = lengths.draws("paper", 128, 64)(0, 100_000)
  assert np.mean(rows.prompt) == pytest.approx(166 / 8, abs=0.3)
  assert np.mean(rows.response) == pytest.approx(100 / 16, abs=0.1)
  assert (rows.prompt.min(), rows.prompt.max()) == (1, 128)
  assert (rows.response.min(), rows.response.max()) == (1, 64)


def test_uniform_and_full():
  rows = lengths.draws("uniform", 4, 7)(0, 10_000)
  counts = np.bincount(rows.prompt)
  assert counts[0] == 0 and len(counts) == 5 and counts[1:].min() > 2300
  assert set(rows.response) == set(range(1, 8))
  full = lengths.draws("full", 4, 7)(3, 2)
  assert full.prompt.tolist() == [4, 4] and full.response.tolist() == [7, 7]


@pytest.mark.parametrize("source", ["paper", "uniform"])
def test_a_draw_is_the_same_whenever_it_is_asked_for(source):
  draw = lengths.draws(source, 128, 128)
  first, second = draw(0, 16), draw(1, 16)
  again = lengths.draws(source, 128, 128)
  np.testing.assert_array_equal(again(1, 16), second)
  np.testing.assert_array_equal(again(0, 16), first)
  assert (first.prompt != second.prompt).any()
  assert (lengths.draws(source, 128, 128, seed=1)(0, 16).prompt != first.prompt).any()


def test_a_file_is_read_in_order_and_around_again(tmp_path):
  path = tmp_path / "lengths.jsonl"
  path.write_text(
    '{"prompt": 1, "response": 4}\n\n{"response": 5, "prompt": 2}\n{"prompt": 3, "response": 6}\n'
  )
  draw = lengths.draws(str(path), 3, 6)
  assert draw(0, 2).prompt.tolist() == [1, 2]
  assert draw(1, 2).prompt.tolist() == [3, 1]
  assert draw(1, 2).response.tolist() == [6, 4]
  assert draw(0, 2).prompt.dtype == np.int32


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", r":2: this is no JSON"),
    ("[1, 2]", r":2: an object"),
    ('{"prompt": 1}', r":2: response: missing"),
    ('{"prompt": 1.5, "response": 1}', r":2: prompt: a whole number of tokens .* this is 1\.5"),
    ('{"prompt": true, "response": 1}', r":2: prompt: a whole number .* this is True"),
    ('{"prompt": 0, "response": 1}', r":2: prompt: 0 tokens, where 1 to 8 fit"),
    ('{"prompt": 8, "response": 10}', r":2: response: 10 tokens, where 1 to 9 fit"),
    ('{"prompt": 8, "respnse": 1}', r":2: respnse: unknown field"),
  ],
)
def test_what_is_wrong_with_a_file(tmp_path, line, message):
  path = tmp_path / "lengths.jsonl"
  path.write_text('{"prompt": 8, "response": 9}\n' + line)
  with pytest.raises(UserError, match=r"lengths\.jsonl" + message):
    lengths.draws(str(path), 8, 9)


def test_a_file_that_is_not_there_or_is_empty(tmp_path):
  with pytest.raises(UserError, match=r"--lengths=papr: cannot be read .* full, uniform, paper"):
    lengths.draws("papr", 8, 8)
  (tmp_path / "empty").write_text("\n")
  with pytest.raises(UserError, match=r"empty: it has no lines"):
    lengths.draws(str(tmp_path / "empty"), 8, 8)
