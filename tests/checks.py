"""The runtime checker of every annotated function of the package; an int is a float, as PEP 484 has
it.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
