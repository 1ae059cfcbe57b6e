"""The shelf of inference: programs stand in the folder `inference/` at the top of a checkout, and here in an installed wheel."""

from espalier.shelf import portions

__path__ = portions("inference", list(__path__))
