"""SentencePiece models are trained on all of the text, and by default lose nothing of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data.tokens import sentencepieces, tokenizers
from instructjax.data.tokens.sentencepieces import Training, train
from instructjax.errors import UserError

CORPUS = [
  "The film is a joy, 2001 times over.",
  "It's the worst film I have seen; we'll never see 12,345 of them!",
  "la la land",
] * 5
FUZZ = settings(deadline=None, max_examples=100)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
typical = st.text(st.sampled_from(list("The film is a 0123456789 joy's,.!\n\té界🎉")), max_size=60)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
  path = tmp_path_factory.mktemp("sp") / "x.model"
  return train(CORPUS, path, Training(vocab_size=300)), path


@pytest.fixture
def trained(tmp_path):
  """A tokenizer of 300 ids with other options, on CORPUS or other texts."""
  return lambda texts=CORPUS, **options: train(
    texts, tmp_path / "x.model", Training(**{"vocab_size": 300, **options})
  )


@FUZZ
@given(text=any_text.filter(lambda text: "\u2581" not in text) | typical)
def test_our_models_lose_nothing(pieces, text):
  tokenizer, _ = pieces
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert not set(ids) & {*tokenizer.eos, *tokenizer.banned}


def test_ids_and_file(pieces):
  tokenizer, path = pieces
  assert (
    tokenizer.eos == (1,)
    and tokenizer.banned == (0, 2)
    and tokenizer.bos == ()
    and tokenizer.vocab_size == 300
  )
  assert tokenizers.load(path).fingerprint == tokenizer.fingerprint
  assert len(tokenizer.encode("The film")) < len("The film")
  assert dict(tokenizer.specials) == {"<pad>": 0, "</s>": 1, "<unk>": 2}


def test_training_is_repeatable(pieces, trained):
  assert trained().fingerprint == pieces[0].fingerprint != trained(vocab_size=301).fingerprint


def test_named_pieces(trained):
  tokenizer = trained(
    eos="<|im_end|>",
    bos="<s>",
    pad="[PAD]",
    unk="[UNK]",
    control=("<|im_start|>",),
    symbols=("<tag>", "\n"),
  )
  assert dict(tokenizer.specials) == {
    "[PAD]": 0,
    "<|im_end|>": 1,
    "[UNK]": 2,
    "<s>": 3,
    "<|im_start|>": 4,
  }
  assert (tokenizer.eos, tokenizer.bos, tokenizer.banned) == ((1,), (3,), (0, 2, 3, 4))
  assert tokenizer.encode("<|im_start|>joy<|im_end|>")[:: len(tokenizer.encode("joy")) + 1] == [
    4,
    1,
  ]
  tag, line = (tokenizer.encode(symbol) for symbol in ("<tag>", "\n"))
  assert (
    len(tag) == len(line) == 1 and tokenizer.decode(tokenizer.encode("a<tag>\nb")) == "a<tag>\nb"
  )


def test_unigram_and_bpe_are_different_models(trained, pieces):
  unigram = trained(model_type="unigram", vocab_size=290)
  text = "The film is a joy"
  assert (
    unigram.decode(unigram.encode(text)) == text and unigram.fingerprint != pieces[0].fingerprint
  )


def test_without_byte_fallback_a_new_character_is_unknown(trained):
  tokenizer = trained(vocab_size=60, byte_fallback=False)
  assert tokenizer.decode(tokenizer.encode("la film")) == "la film"
  assert 2 in tokenizer.encode("laé") and tokenizer.decode(tokenizer.encode("laé")) == "la"


def test_coverage_leaves_rare_characters_to_the_bytes(trained):
  texts = ["aaaa bbbb cccc dddd"] * 100 + ["é"]
  all_, most = trained(texts, vocab_size=270), trained(texts, vocab_size=270, coverage=0.999)
  assert (len(all_.encode("é")), len(most.encode("é"))) == (1, 2)
  assert most.decode(most.encode("é")) == "é"


def test_normalisation_is_a_choice(trained, pieces):
  assert pieces[0].decode(pieces[0].encode("ﬁlm Ａ")) == "ﬁlm Ａ"
  tokenizer = trained(normalization="nmt_nfkc_cf")
  assert tokenizer.decode(tokenizer.encode("ﬁlm Ａ")) == "film a"


@pytest.mark.parametrize("mark", ["\t", "\0", "\r", "\n", "\u2581"])
def test_no_line_is_passed_over(trained, mark):
  """SentencePiece leaves out a whole line that holds a tab or a NUL."""
  tokenizer = trained([f"zebra quagga{mark}zebra quagga"] * 20, vocab_size=285)
  assert len(tokenizer.encode("zebra quagga")) <= 3


def test_a_long_line_is_learnt_from_too(trained, monkeypatch):
  monkeypatch.setattr(sentencepieces, "LONGEST", 50)
  assert [*sentencepieces.sentences(["x" * 120, " ", "a\tb\n"])] == [
    "x" * 50,
    "x" * 50,
    "x" * 20,
    "a",
    "b",
  ]
  tokenizer = trained(["zebra quagga " * 40], vocab_size=285)
  assert len(tokenizer.encode("zebra quagga")) <= 3


def test_training_that_cannot_work(tmp_path):
  (tmp_path / "file").write_text("")
  for texts, target, options, problem in [
    ([" ", ""], "x.model", {}, "no text to train a tokenizer on"),
    (CORPUS, "x.bin", {}, "must end in .model"),
    (CORPUS, "file/x.model", {}, "x.model: cannot be written"),
    (
      CORPUS,
      "x.model",
      {"vocab_size": 5000},
      r"no tokenizer of 5000 pieces .*Vocabulary size too high \(5000\)",
    ),
    (CORPUS, "x.model", {"vocab_size": 100}, "vocab_size 100: at least 260 "),
    (
      CORPUS,
      "x.model",
      {"vocab_size": 5, "byte_fallback": False, "symbols": ("a", "b")},
      "vocab_size 5: at least 6 ",
    ),
    (CORPUS, "x.model", {"model_type": "word"}, "model_type 'word': known are bpe, unigram"),
    (CORPUS, "x.model", {"normalization": "nfd"}, "normalization 'nfd': known are identity"),
    (
      CORPUS,
      "x.model",
      {"coverage": 0.5},
      "coverage 0.5: a share of the text's characters, .98 to 1",
    ),
    (CORPUS, "x.model", {"symbols": ("a", "</s>")}, "the piece '</s>' is empty, named twice"),
    (CORPUS, "x.model", {"control": ("",)}, "the piece '' is empty"),
  ]:
    with pytest.raises(UserError, match=problem):
      train(texts, tmp_path / target, Training(**{"vocab_size": 300, **options}))
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


@FUZZ
@given(name=st.text(max_size=8), symbol=st.text(max_size=8))
def test_any_names_make_a_model_or_a_user_error(tmp_path_factory, name, symbol):
  """For any names that a shell lets through the pieces exist, or an error says why they cannot."""
  path = tmp_path_factory.getbasetemp() / "any.model"
  try:
    tokenizer = train(CORPUS, path, Training(vocab_size=300, control=(name,), symbols=(symbol,)))
  except UserError as error:
    assert str(error)
  else:
    assert tokenizer.specials[name] == 3
    text = f"a{symbol}b"
    # A control token in a text becomes its id, which is not decoded.
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace(name, "")
