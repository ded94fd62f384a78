"""A long text in overlapping pieces, of which each fits a classifier."""

import itertools

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from instructjax.rewards import classifier

VOCABULARY = {"[UNK]": 0, **{f"w{number}": number + 1 for number in range(100)}}


@pytest.mark.parametrize("length", [1, 10, 11, 37, 400])
def test_pieces_fit_overlap_and_hold_everything(length):
  text = "".join(chr(0x4E00 + number) for number in range(length))
  parts = classifier.pieces(text, lambda part: len(part) <= 10, text)
  assert (len(parts) == 1) == (length <= 10)
  assert all(len(part) <= 10 for part in parts) and set("".join(parts)) == set(text)
  for part, following in itertools.pairwise(parts):
    assert part[-1] > following[0] or length <= 10  # characters stand in two pieces


def test_a_response_that_leaves_no_room_is_not_cut_into_pieces():
  assert classifier.pieces("a b c", lambda part: False, "a b c") == ["a b c"]


@pytest.fixture
def tokenizer():
  """Its words w0 ... w99 need no space between them."""
  transformers = pytest.importorskip("transformers")
  backend = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]", continuing_subword_prefix=""))
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def test_a_text_without_spaces_is_cut_between_tokens(tokenizer):
  """Only single tokens fit beside the response; pieces of single characters would say nothing."""
  words = [f"w{number}" for number in range(20, 50)]
  text = "".join(words)
  tokens = classifier.tokens_of(tokenizer, text)
  assert tokens == words

  def fits(most):
    return lambda part: len(tokenizer(part, add_special_tokens=False)["input_ids"]) <= most

  assert classifier.pieces(text, fits(1), tokens) == words
  parts = classifier.pieces(text, fits(7), tokens, 7)
  assert {part[:1] for part in parts} == {"w"} and len(parts) == 6
  assert all(fits(7)(part) for part in parts) and parts[0].startswith("w20w21")
  for part, following in itertools.pairwise(parts):
    assert following[:3] in part  # the neighbours share tokens


def test_the_parts_of_a_text_are_the_text(tokenizer):
  for text in ("", " ", "  w1 w2,  w3 ", "w1\n\nzz"):
    assert "".join(classifier.tokens_of(tokenizer, text)) == text
  assert classifier.tokens_of(tokenizer, "w1 w2 w3") == ["w1 ", "w2 ", "w3"]


def test_long_texts_need_few_trials():
  """Sizes that cannot fit are not tried: 10,000 tokens in pieces of 10."""
  trials = []

  def fits(part):
    trials.append(part)
    return len(part) <= 10

  parts = classifier.pieces("x" * 10_000, fits, "x" * 10_000, 10)
  assert 1000 <= len(parts) < 2000 and sum(map(len, trials)) < 600 * 10_000
