import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from instructjax.data.tokens import tokenizers, vocabulary
from instructjax.errors import UserError

CORPUS = [
  "The film is a joy, 2001 times over.\n",
  "It's the worst film I have seen; we'll never see 12,345 of them!",
  "la la land",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
plain = any_text.filter(lambda text: not any(name in text for name in SPECIAL))
typical = st.text(st.sampled_from(list("The film is a 0123456789 joy's,.!\n\té界🎉")), max_size=60)
FUZZ = settings(deadline=None, max_examples=100)


def byte_level(*, smollm=True) -> Tokenizer:
  """A small tokenizer built by the `tokenizers` package itself."""
  tokenizer = Tokenizer(models.BPE())
  by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
  digits = pre_tokenizers.Digits(individual_digits=True)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, by_bytes]) if smollm else by_bytes
  tokenizer.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=300, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet), show_progress=False
  )
  tokenizer.train_from_iterator(CORPUS * 3, trainer)
  return tokenizer


def as_gguf(tokenizer: Tokenizer, pre: str) -> dict:
  """The metadata that a GGUF file of this tokenizer would carry."""
  model = json.loads(tokenizer.to_str())["model"]
  names = sorted(model["vocab"], key=model["vocab"].get)
  return {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": pre,
    "tokenizer.ggml.tokens": names,
    "tokenizer.ggml.token_type": [3 if name in SPECIAL else 1 for name in names],
    "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_bos_token": False,
  }


ORIGINAL = {pre: byte_level(smollm=pre == "smollm") for pre in ("smollm", "gpt-2")}
GGUF = {pre: tokenizers.from_gguf(as_gguf(ORIGINAL[pre], pre)) for pre in ORIGINAL}


@pytest.mark.parametrize("pre", GGUF)
@FUZZ
@given(text=plain | typical)
def test_gguf_gives_the_ids_of_the_original_tokenizer(pre, text):
  ids = GGUF[pre].encode(text)
  assert ids == ORIGINAL[pre].encode(text).ids
  assert GGUF[pre].decode(ids) == text


def test_smollm_splits_digits_and_gpt2_does_not():
  assert len(GGUF["smollm"].encode("2001")) == 4
  assert len(GGUF["gpt-2"].encode("2001")) < 4


def test_special_tokens():
  tokenizer = GGUF["smollm"]
  assert tokenizer.eos == (2,) and tokenizer.banned == (0, 1) and tokenizer.bos == ()
  assert tokenizer.vocab_size == 300
  assert tokenizer.encode("a<|im_end|>")[-1] == 2
  assert tokenizer.decode([1, *tokenizer.encode("joy"), 2, 0]) == "joy"
  with_bos = tokenizers.from_gguf(
    as_gguf(ORIGINAL["smollm"], "smollm") | {"tokenizer.ggml.add_bos_token": True}
  )
  assert with_bos.bos == (1,)


@pytest.mark.parametrize(
  ("change", "problem"),
  [
    ({"model": "llama"}, "tokenizer.ggml.model is 'llama'"),
    ({"pre": "unheard-of"}, "tokenizer.ggml.pre is 'unheard-of'; known are 'gpt-2' and 'smollm'"),
    ({"merges": None}, "no tokenizer.ggml.merges"),
    ({"eos_token_id": 9999}, "end-of-text id 9999 is outside of the tokenizer's 300 ids"),
  ],
)
def test_gguf_metadata_that_cannot_be_used(change, problem):
  metadata = as_gguf(ORIGINAL["smollm"], "smollm") | {
    f"tokenizer.ggml.{key}": value for key, value in change.items()
  }
  with pytest.raises(UserError, match=problem):
    tokenizers.load(metadata)


def test_fingerprints_tell_tokenizers_apart():
  again = tokenizers.from_gguf(as_gguf(ORIGINAL["smollm"], "smollm"))
  assert again.fingerprint == GGUF["smollm"].fingerprint
  assert GGUF["smollm"].fingerprint != GGUF["gpt-2"].fingerprint


def test_json_and_folder(tmp_path):
  original = ORIGINAL["smollm"]
  (tmp_path / "tokenizer.json").write_text(original.to_str())
  tokenizer = tokenizers.load(tmp_path / "tokenizer.json")
  assert tokenizer.eos == (2,) and tokenizer.banned == (0, 1) and tokenizer.bos == ()
  assert tokenizer.encode("The film 42") == original.encode("The film 42").ids
  (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|im_start|>"}}')
  assert tokenizers.load(tmp_path).eos == (1,)
  (tmp_path / "config.json").write_text('{"eos_token_id": 0}')
  assert tokenizers.load(tmp_path).eos == (0,)
  (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
  assert tokenizers.load(tmp_path).eos == (2, 0) and tokenizers.load(tmp_path).banned == (1,)
  (tmp_path / "generation_config.json").write_text("{")
  with pytest.raises(UserError, match=r"generation_config.json: malformed JSON"):
    tokenizers.load(tmp_path)


def test_a_beginning_token_is_found_and_put_before_rows_not_into_texts(tmp_path):
  original = byte_level()
  original.post_processor = processors.TemplateProcessing(
    single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
  )
  original.save(str(tmp_path / "t.json"))
  tokenizer = tokenizers.from_json(tmp_path / "t.json")
  assert tokenizer.bos == (1,) and 1 not in tokenizer.encode("joy")
  original.enable_padding(length=50)
  original.enable_truncation(2)
  original.save(str(tmp_path / "t.json"))
  assert tokenizers.from_json(tmp_path / "t.json").encode("The film is") == tokenizer.encode(
    "The film is"
  )


def test_a_tokenizer_that_prepends_a_space_does_not_double_ours(tmp_path):
  original = Tokenizer(
    models.BPE(dict(zip(["\u2581", "a", "b", "\u2581a", "</s>"], range(5))), [("\u2581", "a")])
  )
  original.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
  original.decoder = decoders.Metaspace(prepend_scheme="always")
  original.add_special_tokens([AddedToken("</s>", special=True)])
  original.save(str(tmp_path / "t.json"))
  tokenizer = tokenizers.from_json(tmp_path / "t.json")
  assert tokenizer.encode("a") == tokenizer.encode_next(" a") == [3]
  assert tokenizer.encode_next("a") == [1] and tokenizer.encode(" a") == [0, 3]
  assert tokenizer.encode("b") + tokenizer.encode_next(" a") == tokenizer.encode("b a")


def test_files_that_are_no_tokenizer(tmp_path):
  (tmp_path / "a.json").write_text("{}")
  (tmp_path / "b.model").write_bytes(b"nothing")
  (tmp_path / "c.txt").write_text("text")
  nameless = byte_level().to_str().replace("<|im_end|>", "<x>").replace("<|endoftext|>", "<y>")
  (tmp_path / "d.json").write_text(nameless)
  for name, problem in [
    ("a.json", "not a tokenizer.json"),
    ("b.model", "not a SentencePiece"),
    ("c.txt", "not '.txt'"),
    ("d.json", "no end-of-text token"),
    ("none.model", "no such tokenizer"),
    (".", "neither tokenizer.json nor"),
  ]:
    with pytest.raises(UserError, match=problem):
      tokenizers.load(tmp_path / name)
  with pytest.raises(UserError, match=r"no end-of-text token \['<z>'\]"):
    tokenizers.from_json(tmp_path / "d.json", ["<z>"])
  assert tokenizers.from_json(tmp_path / "d.json", ["<x>", 0]).eos == (2, 0)


def test_fit_bans_what_only_the_model_knows():
  tokenizer = tokenizers.fit(GGUF["smollm"], 302)
  assert tokenizer.banned == (0, 1, 300, 301) and tokenizer.vocab_size == 302
  assert tokenizer.decode([301, *tokenizer.encode("joy"), 300]) == "joy"
  with pytest.raises(UserError, match="the tokenizer has 300 ids but the model only 299"):
    tokenizers.fit(GGUF["smollm"], 299)


def test_a_file_that_is_no_gguf(tmp_path):
  (tmp_path / "x.gguf").write_bytes(b"GGUF and no more")
  with pytest.raises(UserError, match=r"x.gguf: not a readable GGUF file"):
    tokenizers.gguf_metadata(tmp_path / "x.gguf")


@pytest.mark.parametrize(
  ("name", "text", "problem"),
  [
    ("generation_config.json", "[]", "holds no JSON object"),
    (
      "generation_config.json",
      '{"eos_token_id": 1.5}',
      "'eos_token_id' is 1.5; the id or the name",
    ),
    ("generation_config.json", '{"eos_token_id": [true]}', "'eos_token_id' is "),
    ("generation_config.json", '{"eos_token_id": [[2]]}', "'eos_token_id' is "),
    ("generation_config.json", '{"eos_token_id": -1}', "end-of-text id -1 is outside"),
    ("config.json", '{"eos_token_id": ' + "9" * 30 + "}", "end-of-text id 9+ is outside"),
    ("config.json", '{"eos_token_id": NaN}', "malformed JSON"),
    ("tokenizer_config.json", '{"eos_token": {"content": {}}}', "'eos_token' is "),
    ("tokenizer_config.json", "[" * 100_000, "malformed JSON"),
  ],
)
def test_files_of_a_folder_that_say_nonsense(tmp_path, name, text, problem):
  (tmp_path / "tokenizer.json").write_text(ORIGINAL["smollm"].to_str())
  (tmp_path / name).write_text(text)
  with pytest.raises(UserError, match=problem) as error:
    tokenizers.load(tmp_path)
  assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("change", "problem"),
  [
    ({"tokens": 3}, "tokenizer.ggml.tokens is 3; a list of texts is expected"),
    ({"tokens": [1, 2]}, "tokenizer.ggml.tokens is "),
    ({"merges": ["no such pieces"]}, "tokenizer.ggml.merges cannot be used"),
    ({"merges": [["a", "b"]]}, "tokenizer.ggml.merges is "),
    ({"eos_token_id": 1.5}, "tokenizer.ggml.eos_token_id is 1.5"),
    ({"eos_token_id": True}, "tokenizer.ggml.eos_token_id is True"),
    ({"add_bos_token": True, "bos_token_id": 10**9}, "end-of-text id 1000000000 is outside"),
    ({"token_type": [3] * 400}, "names a control token 399 of 300 tokens"),
    ({"model": ["gpt2"]}, "tokenizer.ggml.model is "),
  ],
)
def test_gguf_metadata_of_other_types(change, problem):
  metadata = as_gguf(ORIGINAL["smollm"], "smollm") | {
    f"tokenizer.ggml.{key}": value for key, value in change.items()
  }
  with pytest.raises(UserError, match=problem):
    tokenizers.load(metadata)


@pytest.mark.parametrize(
  ("names", "eos", "end"),
  [
    (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ("<|im_end|>",), "<|endoftext|>"),
    (["<|end_of_text|>", "<|eot_id|>"], ("<|eot_id|>", "<|end_of_text|>"), "<|end_of_text|>"),
    (["<|endoftext|>", "</s>"], ("</s>",), "</s>"),
    (["<pad>", "<|im_end|>"], ("<|im_end|>",), "<|im_end|>"),
  ],
)
def test_documents_end_as_in_pretraining_and_not_as_turns_do(names, eos, end):
  ids = {name: i for i, name in enumerate(names)}
  tokenizer = tokenizers.of_bytes()._replace(eos=tuple(ids[name] for name in eos), specials=ids)
  assert vocabulary.document_end(tokenizer) == ids[end]


def test_a_new_line_that_ends_responses_ends_no_document():
  tokenizer = tokenizers.of_bytes()._replace(eos=(10, 256))
  assert vocabulary.document_end(tokenizer) == 256
