"""Laboratory W: a small world of templated English, in which every claim can be checked.

  facts      who lives where and what eats what, what people wrongly believe, and sentences about it
  oro        the second language of the world
  tasks      instructions of the paper's use cases, each with what a good answer holds
  drafts     answers as people write them: right ones, and ones with the usual faults
  gold       the score of an answer, by program
  labelers   people who rank answers, with noise and tastes of their own
  corpus     the text of the world for pretraining, with closed tasks that nobody asks for
  mixtures   public tasks in the style of FLAN and T0
  files      everything as JSONL files, the tokenizer, and models with random weights

A word is a token: all text is lower case, with single spaces between words and full stops. Imports
point upward in this list only. The world itself is always the same one; what is drawn from it
follows from a seed.
"""
