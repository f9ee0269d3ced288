"""Optimizers that do without torch's compiler: in a process of its own, for the patch stays in it."""

import subprocess
import sys

CODE = """
import sys
from luthier.training.uncompiled import spare_compiler
early = {early}
if early: spare_compiler()
import torch
if not early: spare_compiler()
from torch import nn

def train(make, step):
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)
    optimizer = make(layer.parameters(), lr=0.1)
    for x in torch.arange(12.0).view(4, 3):
        step(layer, optimizer, x)
    optimizer.load_state_dict(optimizer.state_dict())
    return [weight.tolist() for weight in layer.parameters()]

def step(layer, optimizer, x):
    optimizer.zero_grad()
    layer(x).square().mean().backward()
    optimizer.step()

makes = (torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam, torch.optim.Adagrad)
spared = [train(make, step) for make in makes]
assert not [name for name in sys.modules if name.startswith(("torch._dynamo", "sympy"))]
import torch._dynamo
assert [train(make, step) for make in makes] == spared  # torch's own ways now
assert train(torch.optim.SGD, torch.compile(step, backend="eager")) == spared[0]
"""


def run(early: bool) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.replace("{early}", str(early))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_optimizers_train_alike_with_and_without_the_compiler() -> None:
    run(early=False)


def test_torch_may_be_imported_later() -> None:
    run(early=True)
