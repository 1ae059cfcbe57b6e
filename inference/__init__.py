"""The shelf of inferences: how belief is updated. One program a file, `infer(model, data, *, ..., seed) -> Fit`.

The folder stands at the top of the repository and, by a link, at `espalier/inference`. To add an inference, copy a file and
change it: nothing is registered. `from espalier.inference import cigl`, then `cigl.infer(model, data, sparsity=0.9)`.
"""
