"""The figures of a tokenizer on hand-made vocabularies, where they can be counted."""

import pytest

from instructjax.data.tokens import tokenizer_check
from instructjax.data.tokens.tokenizer_check import (
  CASES,
  Model,
  cases,
  losses,
  measure,
  misfits,
  others,
)
from instructjax.data.tokens.vocabulary import Tokenizer

NAMES = {"<pad>": 0, "</s>": 1, "<unk>": 2, "<s>": 3}


def letters(*, lower=False, eos=(1,), bos=(), alphabet="abcdefghijklmnopqrstuvwxyz ") -> Tokenizer:
  """A token for each letter, and one for all others."""
  ids = {letter: at for at, letter in enumerate(alphabet, len(NAMES))}
  back = {at: letter for letter, at in ids.items()}
  change = str.lower if lower else str
  encode = lambda text: [ids.get(letter, 2) for letter in change(text)]
  decode = lambda tokens: "".join(back.get(i, "") for i in tokens)
  return Tokenizer(encode, decode, len(NAMES) + len(alphabet), eos, (0, 2), bos, "", NAMES)


def test_figures_are_counts():
  measured = measure(letters(), ["a bc", "dé", "x</s>y", "", "a bc"])
  assert (measured.texts, measured.special) == (4, 1)
  assert (measured.words, measured.bytes, measured.tokens) == (5, 4 + 3 + 0 + 4, 4 + 2 + 0 + 4)
  assert (measured.unknown, measured.strange) == (1, 2)
  assert measured.lost == ((2, "dé", "d"),)
  assert measured.used == {2, 4, 5, 6, 7, 30}
  assert measure(letters(), []) == (0, 0, 0, 0, 0, frozenset(), 0, (), 0)


def test_what_is_shown_of_a_lost_text_begins_before_the_difference():
  ((number, was, now),) = measure(letters(lower=True), ["one", "a" * 100 + " Bcd " + "e" * 100])[7]
  assert (number, was, now) == (2, "a" * 9 + " Bcd eeeeee", "a" * 9 + " bcd eeeeee")


def test_a_leading_space_that_is_lost_is_a_loss():
  tokenizer = letters()
  dropping = tokenizer._replace(encode=lambda text: tokenizer.encode(text.removeprefix(" ")))
  assert [number for number, _, _ in measure(dropping, [" a", "a", "  a"]).lost] == [1, 3]
  assert not measure(tokenizer, [" a", "a", "  a"]).lost
  assert measure(letters(lower=True), [" A"]).lost


def test_losses_name_the_text_and_the_remedy():
  unknown, lost = losses(measure(letters(), ["ok", "dé"]))
  assert unknown.startswith(
    "1 of 4 tokens are unknown, the first in text 2; train the tokenizer with byte fallback"
  )
  assert lost.startswith(
    "1 of 2 texts do not come back: in text 2, 'dé' becomes 'd'; train with "
    "--normalization=identity"
  )
  assert losses(measure(letters(), ["ok"])) == []


def test_hard_cases():
  every = Tokenizer(
    lambda t: list(map(ord, t)),
    lambda ids: "".join(map(chr, ids)),
    0x110000,
    (0x10FFFF,),
    (),
    (),
    "",
  )
  assert cases(every) == []
  assert set(cases(letters())) == set(CASES) - {"runs of spaces"}


@pytest.mark.parametrize(
  ("rows", "named", "eos", "bos", "expected"),
  [
    (31, {}, (1,), (), None),
    (40, {}, (1,), (3,), None),
    (30, {}, (1,), (), "the tokenizer has 31 ids, the model's embedding 30 rows: 1 ids have none"),
    (31, {"config.json: eos_token_id": (1, 4)}, (1,), (), None),
    (
      31,
      {"config.json: eos_token_id": (4,)},
      (1,),
      (),
      "config.json: eos_token_id is 4, a response ends here with 1",
    ),
    (31, {"config.json: eos_token_id": ()}, (1,), (), None),
    (
      31,
      {"config.json: bos_token_id": (1,)},
      (1,),
      (3,),
      "config.json: bos_token_id is 1 '</s>', rows begin here with 3",
    ),
    (31, {"config.json: bos_token_id": (1,)}, (1,), (), None),
    (
      31,
      {"config.json: pad_token_id": (31,)},
      (1,),
      (),
      "config.json: pad_token_id is 31, the model has 31 rows; fix",
    ),
    (
      40,
      {"config.json: pad_token_id": (31,)},
      (1,),
      (),
      "config.json: pad_token_id is 31, the tokenizer has 31 ids: no text",
    ),
    (
      31,
      {"config.json: pad_token_id": (-1,)},
      (1,),
      (),
      "config.json: pad_token_id is -1, the model has 31 rows",
    ),
  ],
)
def test_misfits(rows, named, eos, bos, expected):
  problems = misfits(letters(eos=eos, bos=bos), Model(rows, named))
  assert [problem[: len(expected or "")] for problem in problems] == (
    [expected] if expected else []
  )


def test_ids_beyond_the_rows_are_named_each():
  problems = misfits(letters(eos=(1, 30)), Model(30))
  assert len(problems) == 2 and problems[1].startswith(
    "end-of-text id 30 of the tokenizer has no row among 30"
  )


def test_another_tokenizer_of_the_same_size_is_told_by_its_ids():
  assert others(letters(), letters(), ["some text"]) == []
  mixed = letters(alphabet="bacdefghijklmnopqrstuvwxyz ")
  (problem,) = others(letters(), mixed, [])
  assert (
    problem.startswith("the model's own tokenizer gives other ids: ")
    and "leave --tokenizer out" in problem
  )


def test_only_names_of_unknown_tokens_count_as_unknown():
  names = {"<unk>": 1, "[UNK]": 1, "<unk_token>": 1, "<|unknown|>": 1, "<|chunk|>": 0, "trunk": 0}
  assert {name: int(bool(tokenizer_check.UNKNOWN.fullmatch(name))) for name in names} == names
