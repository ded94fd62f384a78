"""The parts of a row decode to exactly their texts, for every kind of tokenizer that is read."""

import tempfile
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from instructjax.data.batches import pipeline
from instructjax.data.records.records import Comparison, Demonstration
from instructjax.data.tokens import sentencepieces, tokenizers

CORPUS = ["the cat sat on the mat", "    return x\n", "a  b\t c", "naïve café 12"] * 30
SPACE = "\u2581"
any_text = st.text(
  st.sampled_from(list(" \n\tab c2é界🎉.")) | st.characters(exclude_categories=["Cs", "Cc", "Co"]),
  min_size=1,
  max_size=20,
).filter(lambda text: text.strip() and SPACE not in text)


def trained(**spec):
  """A SentencePiece model of this specification."""
  folder = Path(tempfile.mkdtemp())
  (folder / "corpus.txt").write_text("\n".join(CORPUS), "utf-8")
  sentencepiece.SentencePieceTrainer.train(
    input=str(folder / "corpus.txt"),
    model_prefix=str(folder / "m"),
    vocab_size=300,
    hard_vocab_limit=False,
    minloglevel=2,
    byte_fallback=True,
    character_coverage=1.0,
    model_type="bpe",
    allow_whitespace_only_pieces=True,
    **({"normalization_rule_name": "identity"} | spec),
  )
  return sentencepieces.from_sentencepiece(folder / "m.model")


def byte_level(add_prefix_space):
  """A byte-level BPE of the `tokenizers` package."""
  tokenizer = hf.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
  tokenizer.decoder = decoders.ByteLevel()
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  trainer = trainers.BpeTrainer(
    vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
  )
  tokenizer.train_from_iterator(CORPUS, trainer)
  return saved(tokenizer)


def with_bytes(pre_tokenizer=None, normalizer=None, decoder=None):
  """A BPE whose space is U+2581 and whose other characters are bytes, as in Llama's files."""
  pieces = ["</s>", SPACE, "a", "b", f"{SPACE}a", *[f"<0x{byte:02X}>" for byte in range(256)]]
  vocab = {piece: i for i, piece in enumerate(pieces)}
  model = models.BPE(vocab, [(SPACE, "a")], byte_fallback=True)
  tokenizer = hf.Tokenizer(model)
  if pre_tokenizer is not None:
    tokenizer.pre_tokenizer = pre_tokenizer
  if normalizer is not None:
    tokenizer.normalizer = normalizer
  tokenizer.decoder = decoder
  tokenizer.add_special_tokens([hf.AddedToken("</s>", special=True)])
  return saved(tokenizer)


def metaspace(scheme):
  return with_bytes(
    pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False),
    decoder=decoders.Sequence(
      [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme, split=False)]
    ),
  )


def llama():
  return with_bytes(
    normalizer=normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]),
    decoder=decoders.Sequence(
      [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
      ]
    ),
  )


def saved(tokenizer):
  path = Path(tempfile.mkdtemp()) / "t.json"
  tokenizer.save(str(path))
  return tokenizers.from_json(path)


EXACT = {
  "bytes": tokenizers.of_bytes,
  "sentencepiece": lambda: trained(add_dummy_prefix=False, remove_extra_whitespaces=False),
  "sentencepiece-prefix": lambda: trained(remove_extra_whitespaces=False),
  "byte-level": lambda: byte_level(False),
  "byte-level-prefix": lambda: byte_level(True),
  "metaspace-always": lambda: metaspace("always"),
  "metaspace-first": lambda: metaspace("first"),
  "metaspace-never": lambda: metaspace("never"),
  "llama": llama,
}
exact = cache(lambda name: EXACT[name]())


@pytest.mark.parametrize("name", EXACT)
@settings(deadline=None, max_examples=60)
@given(prompt=any_text, completion=any_text, separator=st.sampled_from([" ", "", "\n", "\n\n  "]))
def test_a_row_decodes_to_prompt_separator_completion(name, prompt, completion, separator):
  tokenizer = exact(name)
  record = Demonstration(prompt, completion)
  limits = {"prompt": 400, "response": 400, "separator": separator}
  (row,) = pipeline.demonstrations([record], tokenizer, **limits)
  assert tokenizer.decode(row.ids.tolist()) == prompt + separator + completion
  assert tokenizer.decode_next(row.ids[row.start :].tolist()) == separator + completion
  (group,) = pipeline.comparisons(
    [Comparison(prompt, (completion, "b"), (1, 2))], tokenizer, **limits
  )
  assert tokenizer.decode(group.rows[0].ids.tolist()) == prompt + separator + completion


@pytest.mark.parametrize("name", EXACT)
def test_indentation_and_spaces_stay(name):
  tokenizer = exact(name)
  for text in ("    return x", " one", "one ", "\n\n two", "\treturn"):
    assert tokenizer.decode_next(tokenizer.encode_next(text)) == text
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", EXACT)
def test_the_beginning_of_a_row_has_the_ids_of_the_model_and_its_continuation_too(name):
  """Where a model puts a space before a text, the next word of a row has the ids of a first one."""
  tokenizer = exact(name)
  assert tokenizer.encode("a") + tokenizer.encode_next(" a") == tokenizer.encode("a a")
  puts_space = name in ("sentencepiece-prefix", "byte-level-prefix", "llama") or (
    name in ("metaspace-always", "metaspace-first")
  )
  assert (tokenizer.encode("a") == tokenizer.encode_next(" a")) == puts_space


def test_a_normalizer_that_strips_keeps_the_space_between_the_parts():
  tokenizer = trained(normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
  row = [*tokenizer.encode("the cat"), *tokenizer.encode_next(" sat")]
  assert tokenizer.decode(row) == "the cat sat"
  row = [*tokenizer.encode("the c"), *tokenizer.encode_next("at")]
  assert tokenizer.decode(row) == "the cat"
