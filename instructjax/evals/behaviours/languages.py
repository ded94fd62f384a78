"""Which language is a text in?  By its script, and among languages in Latin letters by their most
frequent words.
"""

from __future__ import annotations

import re
from collections import Counter

SCRIPTS = {  # ranges of letters; kana come before Han, which Japanese has too
  "ja": "\u3040-\u30ff",
  "ko": "\uac00-\ud7af\u1100-\u11ff",
  "zh": "\u4e00-\u9fff",
  "ru": "\u0400-\u04ff",
  "el": "\u0370-\u03ff\u1f00-\u1fff",
  "ar": "\u0600-\u06ff",
  "he": "\u0590-\u05ff",
  "hi": "\u0900-\u097f",
}
FREQUENT = {
  "en": """
    the of and to in is that for it with as was on are be this have from or by not but what all were when we there can
    an your which their if will each how them then many some would into has more her him could people my than been who
    its now only over also after most very just do does you he she they his because about a i me where had any like no
    go should much such while before between too""",
  "fr": """
    le la les des un une du de et est en que qui dans pour pas sur au aux avec ce cette ces il elle ils elles nous vous
    je se sa son ses leur leurs mais ou où par plus ne sont été être avoir comme fait très bien aussi même peut tout
    tous quand donc c'est d'un d'une l'on qu'il n'est j'ai faire quelques entre sans peuvent parce""",
  "de": """
    der die das und ist in den von zu mit sich des auf für im dem nicht ein eine einen einem einer als auch es an werden
    aus er hat dass sie nach wird bei noch wie um am sind war haben nur oder aber vor zur bis mehr durch man kann wenn
    ich wir ihr ihre sehr über unter zum so diese dieser weil viele ihm können""",
  "es": """
    el la los las a para algunos algunas de que y en un una unos unas ser es se no con por su sus al del lo como más
    pero fue este esta ha sí porque cuando muy sin sobre también me hasta hay donde quien desde todo nos durante todos
    uno les ni contra otros ese eso son está están puede pueden tiene mi tu cada así cómo qué ella él nadie estaba dónde
    había era hacer vez tan si solo mucho muchos mismo tener aquí entonces""",
  "it": """
    il lo la a su gli le di che e è un una uno in per non con si da del della dei delle nel nella sono al alla ha come
    anche più ma questo questa quando ci suo sua loro dove molto essere se tra fra perché poi ogni può possono dal dalla
    sul sulla i degli agli era hanno così tutti tutto mio mia lei lui nessuno aveva stato stata solo quello quella senza
    già c'era ed due questi qui""",
  "pt": """
    o a os as alguns algumas quer dê de que e do da dos das em um uma para com não por mais se na no nas nos ao aos como
    mas foi ele ela tem à seu sua ou ser quando muito há já está eu também só pelo pela até isso entre era depois sem
    mesmo são porque você pode podem cada uns umas meu minha nós às ninguém estava onde havia ficou duas dois durante
    fazer ter sempre aqui então essa esse isto""",
  "nl": """
    de het een en van in is dat op te zijn met voor niet aan er om ook als maar door naar hij zij ze bij nog wordt uit
    kan worden over wat je wel dan of we ik hebben heeft was deze dit die geen meer veel hun jij hoe waarom omdat zo tot
    onder tegen heel kunnen moet had werd""",
}
WORDS = {language: frozenset(text.split()) for language, text in FREQUENT.items()}
TELLING = {
  "de": "ßäöü",
  "es": "ñ¿¡",
  "pt": "ãõ",
  "fr": "êœëîç",
  "it": "èìò",
}  # where words leave a tie
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
LEAST = 0.3  # of the letters of a text are in another script


def identify(text: str) -> str | None:
  """The code of the language; None where nothing speaks for one."""
  letters = [letter for letter in text if letter.isalpha()]
  if not letters:
    return None
  for language, span in SCRIPTS.items():
    found = len(re.findall(f"[{span}]", text))
    if found >= LEAST * len(letters) or (
      language == "ja" and found and _han(text) + found >= LEAST * len(letters)
    ):
      return language
  tokens = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower().replace("’", "'"))
  hits = Counter(
    {language: sum(token in words for token in tokens) for language, words in WORDS.items()}
  )
  most = max(hits.values())
  best = [language for language, count in hits.items() if count == most]
  marks = {
    language: sum(letter in TELLING.get(language, "") for letter in text.lower())
    for language in best
  }
  first = max(best, key=lambda language: marks[language])
  alone = len(best) == 1 or sum(count == marks[first] for count in marks.values()) == 1
  return first if most and alone else None


def _han(text: str) -> int:
  return len(re.findall(f"[{SCRIPTS['zh']}]", text))
