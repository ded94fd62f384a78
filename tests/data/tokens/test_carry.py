"""Tokenizers as tokenizer.json: the same ids as ours, for every kind that is not already one."""

import json

import pytest
import tokenizers as hf

from instructjax.data.tokens import carry, tokenizers
from instructjax.errors import UserError

CORPUS = (
  "the cat sat on the mat and 12 dogs ran to a café\n" * 40 + "a naïve “quote” and 日本\n" * 10
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  path = tmp_path_factory.mktemp("corpus") / "text.txt"
  path.write_text(CORPUS, "utf-8")
  return path


def written(reference, folder):
  ours = tokenizers.by_reference(reference)
  folder.mkdir(exist_ok=True)
  carry.write(reference, ours, folder, context=16)
  return (
    ours,
    hf.Tokenizer.from_file(str(folder / carry.JSON)),
    json.loads((folder / carry.CONFIG).read_text()),
  )


def test_bytes_are_their_ids(tmp_path):
  ours, converted, config = written(tokenizers.BYTES, tmp_path / "out")
  for text in (*carry.PROBES, "\x00\x7fÿ"):
    assert converted.encode(text).ids == ours.encode(text) == list(text.encode())
    assert converted.decode(converted.encode(text).ids) == text
  assert converted.token_to_id(config["eos_token"]) == 256 == ours.eos[0]


def test_a_new_line_that_ends_responses_is_no_special_token(tmp_path):
  carry.write(
    tokenizers.BYTES,
    tokenizers.by_reference(tokenizers.BYTES)._replace(eos=(10, 256)),
    tmp_path,
    context=16,
  )
  assert json.loads((tmp_path / carry.CONFIG).read_text())["eos_token"] == carry.END


def test_the_characters_of_byte_level_bpe():
  assert sorted(carry.byte_characters()) == sorted(hf.pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize(
  "spec",
  [
    {
      "model_type": "bpe",
      "byte_fallback": True,
      "normalization_rule_name": "identity",
      "add_dummy_prefix": False,
      "remove_extra_whitespaces": False,
      "allow_whitespace_only_pieces": True,
      "bos_id": -1,
    },
    {
      "model_type": "bpe",
      "byte_fallback": True,
      "normalization_rule_name": "identity",
      "add_dummy_prefix": True,
      "remove_extra_whitespaces": False,
      "allow_whitespace_only_pieces": True,
    },
    {
      "model_type": "unigram",
      "byte_fallback": True,
      "normalization_rule_name": "nmt_nfkc",
      "add_dummy_prefix": True,
      "remove_extra_whitespaces": True,
    },
  ],
  ids=["ours", "llama", "unigram"],
)
def test_sentencepiece_gives_the_same_ids(tmp_path, corpus, spec):
  import sentencepiece

  prefix = tmp_path / "model"
  spec = {"bos_id": 1, "eos_id": 2} | spec
  sentencepiece.SentencePieceTrainer.train(
    input=str(corpus),
    model_prefix=str(prefix),
    vocab_size=320,
    hard_vocab_limit=False,
    minloglevel=2,
    character_coverage=1.0,
    unk_id=0,
    **spec,
  )
  ours, converted, _ = written(f"{prefix}.model", tmp_path / "out")
  for text in (*CORPUS.splitlines()[::7], *carry.PROBES):
    assert converted.encode(text, add_special_tokens=False).ids == ours.encode(text)
    assert converted.encode(text).ids == [*ours.bos, *ours.encode(text)]
  assert converted.decode(ours.encode("the cat sat")) == "the cat sat"


def test_gguf_metadata_become_a_file_and_its_template_too(tmp_path):
  import gguf

  names = [*carry.byte_characters(), "th", "the", "<|im_end|>"]
  writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("smollm")
  writer.add_token_list(names)
  writer.add_token_types([1] * (len(names) - 1) + [3])
  writer.add_token_merges(["t h", "th e"])
  writer.add_eos_token_id(len(names) - 1)
  writer.add_chat_template("{{ messages[0].content }}")
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  ours, converted, config = written(str(tmp_path / "m.gguf"), tmp_path / "out")
  assert converted.encode("the then 12").ids == ours.encode("the then 12")
  assert config["eos_token"] == "<|im_end|>"
  assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


def test_files_of_a_folder_are_copied(tmp_path, corpus):
  source = tmp_path / "source"
  written(tokenizers.BYTES, source)
  (source / "chat_template.jinja").write_text("x")
  target = tmp_path / "target"
  target.mkdir()
  carry.write(str(source), tokenizers.by_reference(str(source)), target, context=16)
  assert sorted(p.name for p in target.iterdir()) == [
    "chat_template.jinja",
    carry.JSON,
    carry.CONFIG,
  ]
  assert (target / carry.JSON).read_bytes() == (source / carry.JSON).read_bytes()


def test_other_ids_are_an_error(tmp_path):
  tokenizer = tokenizers.Tokenizer(lambda text: [1], lambda ids: "", 257, (256,), (), (), "")
  with pytest.raises(
    UserError, match=r"bytes: no tokenizer.json gives its ids \('' becomes \[\], not \[1\]\)"
  ):
    carry.write(tokenizers.BYTES, tokenizer, tmp_path, context=16)
