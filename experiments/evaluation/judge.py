"""The judge of this evaluation, a stand-in for people: the VADER lexicon, which neither trained nor
chose any of the models.

A response wins by the tone that its prompt asks for.  Run where `instructjax data tone
--out=data` left its files.
"""

from pathlib import Path

from instructjax.data.public import tone_measures
from instructjax.data.records import records

ASKED = {
  record.prompt: record
  for path in sorted(Path("data").glob("test_prompts_*.jsonl"))
  for record in records.read(path, "prompt")
}


def tone(prompts, responses):
  """VADER's score of each response in the direction that its prompt asks for, from -1 to 1."""
  return [
    tone_measures.vader_score(ASKED[prompt], text)
    for prompt, text in zip(prompts, responses, strict=True)
  ]
