"""Wordings of the questions of public tasks, three for each task of `mappings`.

All of them are ours, and none is the one of the mapping. Where the answers of a task are fixed
words, such as Yes and No, each wording names them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from instructjax.data.records import mappings

Row = dict[str, Any]


def _translation(template: str) -> Callable[[Row], str]:
  """Returns a function that asks for a translation, from the language that the row has."""

  def ask(row: Row) -> str:
    code = mappings.language(row)
    return template.format(language=mappings.LANGUAGES[code], text=row[code])

  return ask


def _entailment(premise: str, hypothesis: str, answers: str) -> tuple[str, ...]:
  """Returns the wordings of entailment for data sets whose fields have these two names."""
  first = f"{{{premise}}}"
  second = f"{{{hypothesis}}}"
  return (
    (
      f"{first}\n\nDoes it follow from this text that the next sentence is true? {answers}\n\n"
      f"{second}"
    ),
    (
      f"Read the text and decide whether it supports the claim. {answers}\n\n"
      f"Text: {first}\nClaim: {second}"
    ),
    (
      f"Claim: {second}\n\nCan you tell from the following that the claim is true? {answers}\n\n"
      f"{first}"
    ),
  )


_BOTH = "Answer Yes or No."
_THREE = "Answer Yes, No or Maybe."
# Both versions of WSC have the same fields.
_PRONOUN = (
  '{text}\n\nIn this text, does "{span2_text}" stand for "{span1_text}"? Answer Yes or No.',
  (
    'Who is meant? Say Yes if "{span2_text}" means "{span1_text}" in the text below, '
    "otherwise say No.\n\n{text}"
  ),
  (
    "{text}\n\n"
    'Someone says that "{span2_text}" is "{span1_text}" here. Are they right? Answer Yes '
    "or No."
  ),
)

# Each wording is a template for `mappings.filled`, or a function of the row.
WORDINGS: dict[str, tuple[str | Callable[[Row], str], ...]] = {
  # Questions on a text.
  "squad": (
    (
      "Read this passage about {title} and answer the question. If the passage does not "
      'say, answer "Not in background."\n\n{context}\n\n'
      "Question: {question}"
    ),
    (
      "{context}\n\nUsing only what stands above, answer this: {question}\n"
      'Write "Not in background." if it cannot be answered.'
    ),
    (
      "I have a question: {question}\n\n"
      'Please look for the answer in this text, and say "Not in background." if it is not '
      "there.\n\n{context}"
    ),
  ),
  "drop": (
    "{passage}\n\n{question} Give a short answer; you may have to count or to calculate.",
    "Answer a question about the passage below.\n\nQuestion: {question}\n\nPassage: {passage}",
    (
      "Read carefully, the numbers matter.\n\n{passage}\n\n"
      "What is the answer to this question? {question}"
    ),
  ),
  # The next sentence.
  "hellaswag": (
    "How does this go on? Write the next sentence.\n\n{context}",
    "Topic: {activity_label}\n\nContinue the description in the most likely way:\n{context}",
    "Finish what somebody began to tell.\n\n{context}",
  ),
  # Sentiment, entailment and other tasks with a few fixed answers.
  "glue/sst2": (
    "Is this remark about a film positive or negative?\n\n{sentence}",
    "{sentence}\n\nDid the person who wrote this like the film? Answer positive or negative.",
    "Decide between positive and negative for the mood of the following text.\n\nText: {sentence}",
  ),
  "glue/rte": _entailment("sentence1", "sentence2", _BOTH),
  "super_glue/rte": _entailment("premise", "hypothesis", _BOTH),
  "super_glue/cb": _entailment("premise", "hypothesis", _THREE),
  "super_glue/boolq": (
    "{passage}\n\nFrom the text above: {question}? Answer Yes or No.",
    "Answer with Yes or No: {question}?\n\nYou find the answer here: {passage}",
    "Please read this and settle a dispute for us. {question}? Yes or No?\n\n{passage}",
  ),
  "super_glue/copa": (
    "{premise}\n\nWhich of these is more likely to be its {question}?\n1. {choice1}\n2. {choice2}",
    (
      "What is the {question}? Choose one of the two sentences and write it out.\n\n"
      "{premise}\n- {choice1}\n- {choice2}"
    ),
    (
      'Something happened: "{premise}" Say which sentence is its {question}: "{choice1}" '
      'or "{choice2}"'
    ),
  ),
  "super_glue/multirc": (
    '{paragraph}\n\n{question}\nSomebody answered "{answer}". Is that right? Answer Yes or No.',
    (
      "Question: {question}\nProposed answer: {answer}\n\n"
      "Check it against the text, and say Yes or No.\n\n{paragraph}"
    ),
    '{paragraph}\n\nIs "{answer}" a correct answer to "{question}"? Yes or No?',
  ),
  "super_glue/record": (
    (
      "{passage}\n\n"
      "A name is missing from the next sentence, where it says @placeholder. Which one?\n\n"
      "{query}"
    ),
    "Fill in @placeholder with a name from the news below.\n\n{query}\n\nNews: {passage}",
    "Read the article, then say who or what @placeholder is.\n\n{passage}\n\n{query}",
  ),
  "super_glue/wic": (
    (
      'Is "{word}" used in one and the same sense here? Answer Yes or No.\n'
      "1. {sentence1}\n2. {sentence2}"
    ),
    (
      "{sentence1}\n{sentence2}\n\n"
      'Say Yes if "{word}" means the same in both sentences, No if it does not.'
    ),
    (
      'A dictionary lists the senses of "{word}". Would these two uses stand under one '
      "sense? Yes or No?\n\n{sentence1}\n\n{sentence2}"
    ),
  ),
  "super_glue/wsc": _PRONOUN,
  "super_glue/wsc.fixed": _PRONOUN,
  # Translation into English.
  "wmt15_translate": (
    _translation("Translate this from {language} to English.\n\n{text}"),
    _translation("{text}\n\nHow would you say that in English?"),
    _translation("Here is a sentence in {language}: {text}\nPlease write it in English."),
  ),
  # Summaries.
  "cnn_dailymail": (
    "Summarise this news article in a few sentences.\n\n{article}",
    "{article}\n\nWhat are the main points of this article?",
    "Write the highlights that an editor would put above this story.\n\n{article}",
  ),
  "reddit": (
    "{content}\n\nSum up this post in one or two sentences.",
    "Somebody wrote this in a forum. What is it about, in short?\n\n{content}",
    "Shorten the following post to its gist.\n\nPost: {content}",
  ),
}
