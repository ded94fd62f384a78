"""Rewards by a `transformers` classifier: a tiny random BERT, saved and opened again."""

import pytest

from instructjax import rewards
from instructjax.errors import UserError
from instructjax.rewards import classifier

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = ["say good", "say bad", "say", "say " * 20]
TEXTS = [" good", " bad fine good", "", " bad"]


def save(folder, labels, kind="BertForSequenceClassification"):
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "say", "good", "bad", "fine"]
  folder.mkdir()
  (folder / "vocab.txt").write_text("\n".join(words) + "\n")
  torch.manual_seed(0)
  names = ["NEGATIVE", "NEUTRAL", "POSITIVE"][:labels]
  config = transformers.BertConfig(
    vocab_size=len(words),
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
    id2label=dict(enumerate(names)),
    label2id={name: i for i, name in enumerate(names)},
    initializer_range=0.5,
  )
  getattr(transformers, kind)(config).eval().save_pretrained(folder)
  vocab = {word: i for i, word in enumerate(words)}
  transformers.BertTokenizer(vocab=vocab).save_pretrained(folder)
  return folder


def score(source):
  (found,) = rewards.score_texts(rewards.open_all(source, {}), PROMPTS, TEXTS).values()
  return found.tolist()


def direct(folder, *texts):
  """One text at a time, without padding."""
  model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder, truncation_side="left")
  with torch.inference_mode():
    return model(
      **tokenizer(*([text] for text in texts), return_tensors="pt", truncation=True, max_length=16)
    ).logits[0]


def test_logits_and_probabilities_of_labels(tmp_path):
  folder = save(tmp_path / "three", 3)
  logits = [direct(folder, p + t) for p, t in zip(PROMPTS, TEXTS)]
  assert score(f"classifier:{folder}#POSITIVE") == pytest.approx(
    [float(x[2]) for x in logits], abs=1e-4
  )
  assert score(f"classifier:{folder}#0,batch=2") == pytest.approx(
    [float(x[0]) for x in logits], abs=1e-4
  )
  shares = [float(x.softmax(-1)[2]) for x in logits]
  assert score(f"classifier:{folder}#POSITIVE,as=probability") == pytest.approx(shares, abs=1e-4)
  assert len({round(value, 3) for value in shares}) == 4
  pairs = [float(direct(folder, p, t)[1]) for p, t in zip(PROMPTS, TEXTS)]
  assert score(f"classifier:{folder}#NEUTRAL,input=pair") == pytest.approx(pairs, abs=1e-4)


def test_a_long_prompt_is_read_in_pieces(tmp_path):
  """The highest score of any piece counts; the beginning of a prompt is no longer lost."""
  folder = save(tmp_path / "three", 3)
  source = f"classifier:{folder}#POSITIVE,as=probability,input=pair"
  long = "good bad " + "say " * 20
  pairs = [long, "say good"], [" fine", " fine"]
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  tokens = classifier.tokens_of(tokenizer, long)
  assert "".join(tokens) == long
  parts = classifier.pieces(
    long, lambda part: len(tokenizer(part, "fine")["input_ids"]) <= 16, tokens
  )
  assert len(parts) == 3 and parts[0].startswith("good bad") and parts[-1].endswith("say ")
  shares = [float(direct(folder, part, "fine").softmax(-1)[2]) for part in parts]
  (scores,) = rewards.score_texts(rewards.open_all(f"{source},long=pieces", {}), *pairs).values()
  (cut,) = rewards.score_texts(rewards.open_all(source, {}), *pairs).values()
  assert scores[0] == pytest.approx(max(shares), abs=1e-4)
  assert cut[0] != pytest.approx(scores[0], abs=1e-4)
  assert cut[1] == pytest.approx(scores[1], abs=1e-4)  # what fits is read as a whole


def test_one_label_needs_no_name(tmp_path):
  folder = save(tmp_path / "one", 1)
  expected = [float(direct(folder, text)[0]) for text in TEXTS]
  assert score(f"classifier:{folder}#input=response") == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ("", "name one of its labels NEGATIVE, NEUTRAL, POSITIVE"),
    ("#GOOD", "name one of its labels"),
    ("#0,long=pieces", "only of a pair"),
    ("#0,long=all", "long='all'; known are cut, pieces"),
    ("#3", "name one of its labels"),
    ("#POSITIVE,as=share", "known are logit, probability"),
    ("#POSITIVE,input=both", "known are joined, pair, response, chat"),
    ("#POSITIVE,input=chat", "has no chat template"),
  ],
)
def test_what_is_wrong_is_named(tmp_path, options, message):
  folder = save(tmp_path / "three", 3)
  with pytest.raises(UserError, match=message):
    rewards.open_all(f"classifier:{folder}{options}", {})


def test_a_model_without_a_trained_head_is_refused(tmp_path):
  folder = save(tmp_path / "base", 3, "BertModel")
  with pytest.raises(UserError, match=r"its weights hold no classifier\.bias, classifier\.weight"):
    rewards.open_all(f"classifier:{folder}#POSITIVE", {})
  with pytest.raises(UserError, match="transformers cannot open it"):
    rewards.open_all(f"classifier:{tmp_path / 'none'}", {})
