"""The shelf of models: programs stand in the folder `models/` at the top of a checkout, and here in an installed wheel."""

from espalier.shelf import portions

__path__ = portions("models", list(__path__))
