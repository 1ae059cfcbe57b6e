"""A deployed network as a program that needs no Espalier: of `torch.export`, and ONNX, which onnxruntime checks beforehand."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from espalier import nested, store
from espalier.deployment.pretrained import Deployed, examples
from espalier.sparse import SparseLinear

CLOSE = 1e-5
"""How far onnxruntime may be from torch: of probabilities, and of a regression per standard deviation of the target."""
ROWS = 5
"""Of the check, another number than the program was traced with."""
TRACED = 3


OUTPUTS = ("said", "doubt")
"""Of a program; the second of `moments` alone."""


class _WithDoubt(nn.Module):
    def __init__(self, module: Deployed) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> tuple[Tensor, Tensor]:
        return self.module.with_doubt(x)


def to_program(module: Deployed, path: str | Path | None = None, rows: Any = None) -> torch.export.ExportedProgram:
    """The module, preprocessing and all, as a `torch.export` program of any number of rows; written to `path` (`.pt2`) where
    one is given. Inputs are float32, whole numbers where the network takes those. Of `moments` it gives two things, as
    `with_doubt` does. rows: as a user has them, three or more, to trace it on; None makes them up, which of tokens may be none.

    Raises ValueError for a network that torch cannot export, and a file that is there.
    """
    if path is not None:
        _check_new(path, ".pt2")
    program = _traced(module, rows)
    if path is not None:
        written = io.BytesIO()
        with _quiet():
            torch.export.save(program, written)
        store.write_bytes(Path(path), written.getvalue())
    return program


def to_onnx(module: Deployed, path: str | Path, rows: Any = None) -> float:
    """The module, preprocessing and all, as ONNX, with its classes in the metadata (`classes`, JSON); its output is `said`, and
    of `moments` another `doubt`. rows: as in `to_program`. Returns the largest difference between onnxruntime and torch on rows
    of the check.

    Raises ValueError for a network that cannot be exported, for a difference above 1e-5 and a file that is there, RuntimeError
    without onnx, onnxscript and onnxruntime.
    """
    _check_new(path, ".onnx")
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RuntimeError(f"expected onnx, onnxscript and onnxruntime, but {error}: pip install 'espalier[onnx]'") from error
    program = _with_softplus_written_out(_without_idle_squeezes(_traced(module, rows)))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with _quiet():
        try:
            made = torch.onnx.export(program, (), dynamo=True, verbose=False)
            assert made is not None
            made.model.metadata_props["classes"] = json.dumps(module.classes)
            for output, name in zip(made.model.graph.outputs, OUTPUTS, strict=False):
                output.name = name
            content = made.model_proto.SerializeToString()
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # an operator that the exporter or the runtime does not know
            raise ValueError(f"expected a network that ONNX has operators for, but {_first_line(error)}") from error
    try:
        apart = _apart(module, session, rows)
    except Exception as error:  # of made-up rows: tokens, say
        what = "a network that takes made-up rows, or rows= to try it on"
        raise ValueError(f"expected {what}, but {_first_line(error)}") from error
    if not apart <= CLOSE:
        raise ValueError(f"expected onnxruntime within {CLOSE:g} of torch, got a difference of {apart:.3g}: nothing was written")
    store.write_bytes(Path(path), content)
    return apart


def _traced(module: Deployed, given: Any = None) -> torch.export.ExportedProgram:
    if any(isinstance(part, SparseLinear) for part in module.modules()):
        raise ValueError("expected a network with its zeros written out to export: from_pretrained(..., sparse=False)")
    rows = examples(module.config, TRACED) if given is None else nested.each(lambda leaf: leaf[:TRACED], given)
    dynamic = nested.each(lambda _: {0: torch.export.Dim.DYNAMIC}, rows)
    # Validation asks for values, and there are none; of a part without gradients alone a graph would be made within the graph.
    with torch.no_grad(), _quiet(), pyro.validation_enabled(False):
        try:
            asked = module if module.spread is None else _WithDoubt(module).eval()
            return torch.export.export(asked, (rows,), dynamic_shapes=(dynamic,))
        except Exception as error:  # whatever a network of the user's may do that cannot be traced
            raise ValueError(f"expected a network that torch.export can trace, but {_first_line(error)}") from error


def _without_idle_squeezes(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A squeeze of a dimension that is not 1 does nothing in torch; the exporter hands it on to ONNX, where it is an error."""
    graph = program.graph_module.graph
    for node in [node for node in graph.nodes if node.target is torch.ops.aten.squeeze.dim]:
        source, dim = node.args
        size = source.meta["val"].shape[dim]
        if isinstance(size, int) and size != 1:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _with_softplus_written_out(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """log(exp(beta x) + 1) / beta, of which onnxruntime has no double precision, by operators that it has."""
    graph, aten = program.graph_module.graph, torch.ops.aten
    for node in [node for node in graph.nodes if node.target is aten.softplus.default]:
        source, beta = node.args[0], node.args[1] if len(node.args) > 1 else 1.0
        with graph.inserting_before(node):
            scaled = graph.call_function(aten.mul.Tensor, (source, beta))
            zero = graph.call_function(aten.zeros_like.default, (source,))
            summed = graph.call_function(aten.logaddexp.default, (scaled, zero))
            written = graph.call_function(aten.div.Tensor, (summed, beta))
        for each in (scaled, zero, summed, written):
            each.meta = {"val": node.meta["val"]}
        node.replace_all_uses_with(written)
        graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _apart(module: Deployed, session: Any, given: Any = None) -> float:
    rows = examples(module.config, ROWS, seed=1) if given is None else nested.each(lambda leaf: leaf[-ROWS:], given)
    fed = {put.name: leaf.numpy() for put, leaf in zip(session.get_inputs(), nested.leaves(rows), strict=True)}
    theirs = session.run(None, fed)
    with torch.no_grad():
        mine = [module(rows)] if module.spread is None else [*module.with_doubt(rows)]
    if [tuple(one.shape) for one in mine] != [one.shape for one in theirs]:
        return float("inf")
    scale = module.scale if module.config["task"] == "regression" else torch.ones(())
    units = (scale.unsqueeze(-1), scale)
    return max(
        float(((one - torch.from_numpy(other)) / unit).abs().max()) for one, other, unit in zip(mine, theirs, units, strict=False)
    )


def _check_new(path: str | Path, suffix: str) -> None:
    there = Path(path).exists()
    if there or Path(path).suffix != suffix:
        raise ValueError(f"expected the name of a new {suffix} file, got {path}" + (", which exists" if there else ""))


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings and log lines of the exporters are about themselves."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__)[:300]
