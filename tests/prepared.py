"""Small prepared copies of TFDS data sets, with the features of the real builders.

TensorFlow is not needed.
"""

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builders.adhoc_builder import AdhocBuilder


class Small(AdhocBuilder, skip_registration=True):
  """A prepared data set of rows in memory.

  The method of the parent class asks TensorFlow what kind of rows they are.
  """

  def _split_generators(self, manager):
    return {name: iter(list(enumerate(rows))) for name, rows in self._split_datasets.items()}


def prepare(folder, name, features, rows, file_format="array_record"):
  """Prepares a data set NAME[/CONFIG] with one split, train, and returns its folder."""
  name, _, config = name.partition("/")
  features = tfds.features.FeaturesDict(features) if isinstance(features, dict) else features
  builder = Small(
    name=name,
    config=config or None,
    version="1.0.0",
    features=features,
    split_datasets={"train": rows},
    data_dir=folder,
    file_format=file_format,
  )
  builder.download_and_prepare()
  return builder.data_dir
