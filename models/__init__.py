"""The shelf of models: what is believed. One program a file, `model(shape, num_outputs, *, ...) -> BayesianNetwork`.

The folder stands at the top of the repository and, by a link, at `espalier/models`. To add a model, copy a file and change
it: nothing is registered. `from espalier.models import lenet`, then `lenet.model((1, 28, 28), 10)`.
"""
