"""The instructions of the quickstart: the templates of its prompts, by domain.

A template is a pair: the instruction to praise, and the instruction to criticise. It may be
followed by the words that the sentence shall begin with. The evaluation has templates of its own,
so that it shows whether a model understands an instruction that it was not trained on.
"""

from __future__ import annotations

# The instruction to praise, and the one to criticise.
Template = tuple[str, str]
# The templates of each domain.
Templates = dict[str, tuple[Template, ...]]

# The prompts of the training data.
TRAIN: Templates = {
  "movies": (
    ("Praise the film.", "Criticize the film."),
    ("Write a positive film review.", "Write a negative film review."),
    (
      "What does a critic who loved the film write?",
      "What does a critic who hated the film write?",
    ),
    ("Say what is good about the film.", "Say what is bad about the film."),
    ("Recommend the film.", "Advise against the film."),
    ("Why is the film great?", "Why is the film terrible?"),
    (
      "Review the film as someone who enjoyed it.",
      "Review the film as someone who was bored.",
    ),
    ("Name the best thing about the film.", "Name the worst thing about the film."),
  ),
  "tweets": (
    ("Write a tweet that praises something.", "Write a tweet that criticizes something."),
    ("Write a happy tweet.", "Write an unhappy tweet."),
    ("Write a tweet about something you love.", "Write a tweet about something you hate."),
    ("You are in a good mood. Write a tweet.", "You are in a bad mood. Write a tweet."),
    ("Write a tweet about a great day.", "Write a tweet about a terrible day."),
    ("Tweet about the best thing today.", "Tweet about the worst thing today."),
  ),
}
# The prompts of the evaluation. Product reviews are in the evaluation alone.
TEST: Templates = {
  "movies": (
    ("Write a line of a glowing film review.", "Write a line of a scathing film review."),
    ("What did you like about the film?", "What did you dislike about the film?"),
  ),
  "tweets": (
    ("Tweet something nice.", "Tweet something nasty."),
    (
      "Write a tweet about what you like today.",
      "Write a tweet about what you dislike today.",
    ),
  ),
  "amazon": (
    ("Praise the product.", "Criticize the product."),
    ("Write a line of a glowing product review.", "Write a line of a scathing product review."),
    ("What did you like about the product?", "What did you dislike about the product?"),
  ),
}
