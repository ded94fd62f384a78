"""Porter's stemmer of English (Porter 1980), as the ROUGE of published papers uses it.

It follows the published rules with the few changes that NLTK made, because rouge-score stems with
NLTK: a table of irregular words, "ies" and "ied" of four letters, y after a single letter, and
"alli" before the other endings. A parity test compares the two.

A word is vowels and consonants; its measure m is how often a vowel is followed by a consonant.
"""

from __future__ import annotations

from collections.abc import Callable

VOWELS = "aeiou"
IRREGULAR = {
  "sky": "sky",
  "skies": "sky",
  "dying": "die",
  "lying": "lie",
  "tying": "tie",
  "news": "news",
  "innings": "inning",
  "inning": "inning",
  "outings": "outing",
  "outing": "outing",
  "cannings": "canning",
  "canning": "canning",
  "howe": "howe",
  "proceed": "proceed",
  "exceed": "exceed",
  "succeed": "succeed",
}
# Endings and what they become where the rest has a measure above 0. The first that fits counts.
SECOND = (
  ("ational", "ate"),
  ("tional", "tion"),
  ("enci", "ence"),
  ("anci", "ance"),
  ("izer", "ize"),
  ("bli", "ble"),
  ("alli", "al"),
  ("entli", "ent"),
  ("eli", "e"),
  ("ousli", "ous"),
  ("ization", "ize"),
  ("ation", "ate"),
  ("ator", "ate"),
  ("alism", "al"),
  ("iveness", "ive"),
  ("fulness", "ful"),
  ("ousness", "ous"),
  ("aliti", "al"),
  ("iviti", "ive"),
  ("biliti", "ble"),
  ("fulli", "ful"),
)
THIRD = (
  ("icate", "ic"),
  ("ative", ""),
  ("alize", "al"),
  ("iciti", "ic"),
  ("ical", "ic"),
  ("ful", ""),
  ("ness", ""),
)
# Endings that go where the rest has a measure above 1.
FOURTH = (
  "al",
  "ance",
  "ence",
  "er",
  "ic",
  "able",
  "ible",
  "ant",
  "ement",
  "ment",
  "ent",
  "ion",
  "ou",
  "ism",
  "ate",
  "iti",
  "ous",
  "ive",
  "ize",
)


def stem(word: str) -> str:
  """Returns the stem of a word in lower case; words of one or two letters stay."""
  if word in IRREGULAR:
    return IRREGULAR[word]
  if len(word) <= 2:
    return word
  for step in (_plural, _past, _final_y, _second, _third, _fourth, _final_e, _double_l):
    word = step(word)
  return word


def kinds(word: str) -> str:
  """Returns a "c" for each consonant and a "v" for each vowel; y after a consonant is a vowel."""
  letters = ""
  for letter in word:
    is_vowel = letter in VOWELS or (letter == "y" and letters.endswith("c"))
    letters += "v" if is_vowel else "c"
  return letters


def measure(word: str) -> int:
  return kinds(word).count("vc")


def _ends_short(word: str) -> bool:
  """Whether a word ends in consonant, vowel, consonant (not w, x or y), as in "hop"."""
  letters = kinds(word)
  if len(word) == 2:
    return letters == "vc"
  return letters.endswith("cvc") and word[-1] not in "wxy"


def _ends_double(word: str) -> bool:
  return len(word) >= 2 and word[-1] == word[-2] and kinds(word).endswith("c")


# --- the steps ---


def _plural(word: str) -> str:
  if word.endswith("ies"):
    return word[:-1] if len(word) == 4 else word[:-2]
  if word.endswith("sses"):
    return word[:-2]
  if word.endswith("s") and not word.endswith("ss"):
    return word[:-1]
  return word


def _past(word: str) -> str:
  if word.endswith("ied"):
    return word[:-1] if len(word) == 4 else word[:-2]
  if word.endswith("eed"):
    return word[:-1] if measure(word[:-3]) > 0 else word
  for ending in ("ed", "ing"):
    rest = word.removesuffix(ending)
    if rest != word and "v" in kinds(rest):
      return _restored(rest)
  return word


def _restored(word: str) -> str:
  """Returns a word that lost "ed" or "ing" with its "e" again, or without a doubled letter."""
  if word.endswith(("at", "bl", "iz")):
    return word + "e"
  if _ends_double(word):
    return word if word[-1] in "lsz" else word[:-1]
  if measure(word) == 1 and _ends_short(word):
    return word + "e"
  return word


def _final_y(word: str) -> str:
  rest = word[:-1]
  if word.endswith("y") and len(rest) > 1 and kinds(rest).endswith("c"):
    return rest + "i"
  return word


def _second(word: str) -> str:
  if word.endswith("alli") and measure(word[:-4]) > 0:
    return _second(word[:-2])
  if word.endswith("logi"):
    return word[:-1] if measure(word[:-3]) > 0 else word
  return _replaced(word, SECOND, lambda rest: measure(rest) > 0)


def _third(word: str) -> str:
  return _replaced(word, THIRD, lambda rest: measure(rest) > 0)


def _fourth(word: str) -> str:
  if word.endswith("ion") and not word[:-3].endswith(("s", "t")):
    return word
  return _replaced(word, [(ending, "") for ending in FOURTH], lambda rest: measure(rest) > 1)


def _replaced(
  word: str,
  rules: tuple[tuple[str, str], ...] | list[tuple[str, str]],
  applies: Callable[[str], bool],
) -> str:
  """Returns a word with its ending replaced by the first rule whose ending it has.

  Where the rule does not apply to the rest, no further rule is tried.
  """
  for ending, replacement in rules:
    if word.endswith(ending):
      rest = word.removesuffix(ending)
      return rest + replacement if applies(rest) else word
  return word


def _final_e(word: str) -> str:
  rest = word.removesuffix("e")
  if rest == word:
    return word
  if measure(rest) > 1 or (measure(rest) == 1 and not _ends_short(rest)):
    return rest
  return word


def _double_l(word: str) -> str:
  return word[:-1] if word.endswith("ll") and measure(word[:-1]) > 1 else word
