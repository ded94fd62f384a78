"""The language of a text: by its script, and in Latin letters by the most frequent words."""

from __future__ import annotations

import re
from collections import Counter

# By the codes of ISO 639-1.
NAMES = {
  "en": "English",
  "fr": "French",
  "de": "German",
  "es": "Spanish",
  "it": "Italian",
  "pt": "Portuguese",
  "nl": "Dutch",
  "ru": "Russian",
  "el": "Greek",
  "zh": "Chinese",
  "ja": "Japanese",
  "ko": "Korean",
  "ar": "Arabic",
  "he": "Hebrew",
  "hi": "Hindi",
}

# The Unicode blocks of languages that one script points to, tried in this order. Kana come before
# Han characters, which Japanese has too. Cyrillic stands for Russian, and Arabic letters for
# Arabic, because no item asks for another language of these scripts.
SCRIPTS = {
  "ja": "\u3040-\u30ff",
  "ko": "\uac00-\ud7af\u1100-\u11ff",
  "zh": "\u4e00-\u9fff",
  "ru": "\u0400-\u04ff",
  "el": "\u0370-\u03ff\u1f00-\u1fff",
  "ar": "\u0600-\u06ff",
  "he": "\u0590-\u05ff",
  "hi": "\u0900-\u097f",
}
# The share of the letters of a text that must be in another script.
LEAST_SHARE = 0.3

# The most frequent words of the languages in Latin letters: articles, pronouns, prepositions and
# auxiliary verbs, which nearly every sentence has. The lists were written for this project. The
# language with the most of its words in a text is taken for that of the text.
FREQUENT = {
  "en": (
    "the of and to in is that for it with as was on are be this have from or by not",
    "but what all were when we there can an your which their if will each how them",
    "then many some would into has more her him could people my than been who its now",
    "only over also after most very just do does you he she they his because about a",
    "i me where had any like no go should much such while before between too",
  ),
  "fr": (
    "le la les des un une du de et est en que qui dans pour pas sur au aux avec ce",
    "cette ces il elle ils elles nous vous je se sa son ses leur leurs mais ou où par",
    "plus ne sont été être avoir comme fait très bien aussi même peut tout tous quand",
    "donc c'est d'un d'une l'on qu'il n'est j'ai faire quelques entre sans peuvent",
    "parce",
  ),
  "de": (
    "der die das und ist in den von zu mit sich des auf für im dem nicht ein eine",
    "einen einem einer als auch es an werden aus er hat dass sie nach wird bei noch",
    "wie um am sind war haben nur oder aber vor zur bis mehr durch man kann wenn ich",
    "wir ihr ihre sehr über unter zum so diese dieser weil viele ihm können",
  ),
  "es": (
    "el la los las a para algunos algunas de que y en un una unos unas ser es se no",
    "con por su sus al del lo como más pero fue este esta ha sí porque cuando muy sin",
    "sobre también me hasta hay donde quien desde todo nos durante todos uno les ni",
    "contra otros ese eso son está están puede pueden tiene mi tu cada así cómo qué",
    "ella él nadie estaba dónde había era hacer vez tan si solo mucho muchos mismo",
    "tener aquí entonces",
  ),
  "it": (
    "il lo la a su gli le di che e è un una uno in per non con si da del della dei",
    "delle nel nella sono al alla ha come anche più ma questo questa quando ci suo",
    "sua loro dove molto essere se tra fra perché poi ogni può possono dal dalla sul",
    "sulla i degli agli era hanno così tutti tutto mio mia lei lui nessuno aveva",
    "stato stata solo quello quella senza già c'era ed due questi qui",
  ),
  "pt": (
    "o a os as alguns algumas quer dê de que e do da dos das em um uma para com não",
    "por mais se na no nas nos ao aos como mas foi ele ela tem à seu sua ou ser",
    "quando muito há já está eu também só pelo pela até isso entre era depois sem",
    "mesmo são porque você pode podem cada uns umas meu minha nós às ninguém estava",
    "onde havia ficou duas dois durante fazer ter sempre aqui então essa esse isto",
  ),
  "nl": (
    "de het een en van in is dat op te zijn met voor niet aan er om ook als maar door",
    "naar hij zij ze bij nog wordt uit kan worden over wat je wel dan of we ik hebben",
    "heeft was deze dit die geen meer veel hun jij hoe waarom omdat zo tot onder",
    "tegen heel kunnen moet had werd",
  ),
}
WORDS = {code: frozenset(" ".join(lines).split()) for code, lines in FREQUENT.items()}

# Letters and signs that decide between languages with equally many frequent words.
TELLING = {
  "de": "ßäöü",
  "es": "ñ¿¡",
  "pt": "ãõ",
  "fr": "êœëîç",
  "it": "èìò",
}


def identify(text: str) -> str | None:
  """Returns the code of the language; None where nothing speaks for one."""
  letters = sum(letter.isalpha() for letter in text)
  if not letters:
    return None
  code = _by_script(text, LEAST_SHARE * letters)
  return code if code is not None else _by_words(text)


def _count(script: str, text: str) -> int:
  """Returns how many letters of a text are in a script."""
  return len(re.findall(f"[{SCRIPTS[script]}]", text))


def _by_script(text: str, fewest: float) -> str | None:
  for code in SCRIPTS:
    count = _count(code, text)
    # A Japanese text may have a few kana among many Han characters.
    if code == "ja" and count:
      count += _count("zh", text)
    if count >= fewest:
      return code
  return None


def _by_words(text: str) -> str | None:
  """Returns the language with the most frequent words; a tie that no letter breaks gives None."""
  words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower().replace("’", "'"))
  hits: Counter[str] = Counter()
  for code, frequent_words in WORDS.items():
    hits[code] = sum(word in frequent_words for word in words)
  most_hits = max(hits.values())
  if not most_hits:
    return None
  best = [code for code, count in hits.items() if count == most_hits]
  marks = {}
  for code in best:
    telling_letters = TELLING.get(code, "")
    marks[code] = sum(letter in telling_letters for letter in text.lower())
  most_marks = max(marks.values())
  winners = [code for code in best if marks[code] == most_marks]
  return winners[0] if len(winners) == 1 else None
