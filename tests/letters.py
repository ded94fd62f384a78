"""A tokenizer that gives each letter its own id, so that a test can read its rows."""

from instructjax.data.tokens.tokenizers import Tokenizer

EOS, PAD = 1, 2


def letters(bos=()) -> Tokenizer:
  """One id a letter (its code); `#` writes the end-of-text token and `~` the padding token."""
  encode = lambda text: [{"#": EOS, "~": PAD}.get(letter, ord(letter)) for letter in text]
  decode = lambda ids: "".join(chr(i) for i in ids if i > PAD)
  return Tokenizer(
    encode,
    decode,
    vocab_size=128,
    eos=(EOS,),
    banned=(PAD,),
    bos=bos,
    fingerprint="letters",
    specials={"#": EOS, "~": PAD},
  )
