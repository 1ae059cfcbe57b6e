"""The loop and its options.

train.py          `train`: epochs of steps, pairs collected at the end of late ones, a checkpoint at each
loop.py           one step: draw Z, the ELBO, backward, then the optimiser or a move of the topology
objective.py      the loss of one batch and its gradient: the ELBO, by Pyro or in closed form
drop_rates.py     the drop rate found while training, on validation rows
last_look.py      and once more when it is over, by moments
annealing.py      what a training changes of its prior: the KL factor that rises, a mixture whose spike narrows, noise
relaxed_masks.py  a mask that is found by an L1 on relaxed ones: how strong, how long
control_variates.py  a gradient steadied by that of a snapshot
function_space.py the KL of the functions at context points, in place of that of the weights
ratios.py         how many weights each layer of a trained network keeps: searched for
walks.py          a walk over the layers that removes weights from each, and the multiplier of its budget
constrained.py    an agent that learns to walk so, by PPO
options.py        Training: how long, how fast, where; `prepare`: the prior that a weight decay is
checks.py         do network, likelihood and data fit together?
batches.py        the batches of an epoch: shuffled, shared, augmented, softened
finite.py         losses that have to be numbers, looked at without a wait
rates.py          learning rates by step
streams.py        the device, and random numbers by purpose
watch.py          who looks on, and may end it: a bar, a log, a file of checkpoints, a run folder
stopping.py       patience on a score of the validation split
phases.py         several trainings in one run that resumes bit for bit
distillation.py   the posterior predictive, taught to one network
teachers.py       whose predictive that is: what a fit's networks say, or those of several
student.py        the network that learns it
tempered.py       how sure a student may be, from its teachers
distributed.py    one network on several processes
"""

from __future__ import annotations

from espalier.training.batches import crop_flip as crop_flip
from espalier.training.batches import soften as soften
from espalier.training.distillation import distill as distill
from espalier.training.loop import Info as Info
from espalier.training.loop import Loop as Loop
from espalier.training.options import Training as Training
from espalier.training.options import opened as opened
from espalier.training.options import prepare as prepare
from espalier.training.phases import Phase as Phase
from espalier.training.phases import started_from as started_from
from espalier.training.ratios import Ratios as Ratios
from espalier.training.ratios import layer_ratios as layer_ratios
from espalier.training.stopping import EarlyStopping as EarlyStopping
from espalier.training.streams import Streams as Streams
from espalier.training.streams import find_device as find_device
from espalier.training.watch import Checkpoints as Checkpoints
from espalier.training.watch import Watch as Watch
from espalier.training.watch import Watches as Watches
