"""The check of annotations: beartype, where an int is a float too, as in Python's type system."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
