"""A trained network where its users work: a folder as model hubs lay it out, and programs that need no Espalier.

export.py       a fit as a folder: config.json, model.safetensors, README.md; no code
pretrained.py   such a folder as a plain `nn.Module` with its preprocessing
spread.py       what its weights vary by, where it predicts by `moments`
card.py         README.md: what the network is, what it scores, what it was not tested on (templates/card.md)
hub.py          up to a hub and down from it, through huggingface_hub
programs.py     a `torch.export` program, ONNX
predictions.py  what a network says of new rows, as a table
"""

from __future__ import annotations

from espalier.deployment.export import FORMS as FORMS
from espalier.deployment.export import Form as Form
from espalier.deployment.export import export_run as export_run
from espalier.deployment.hub import FILES as FILES
from espalier.deployment.hub import push_to_hub as push_to_hub
from espalier.deployment.predictions import predict as predict
from espalier.deployment.pretrained import Deployed as Deployed
from espalier.deployment.pretrained import Inputs as Inputs
from espalier.deployment.pretrained import from_pretrained as from_pretrained
from espalier.deployment.programs import to_onnx as to_onnx
from espalier.deployment.programs import to_program as to_program
