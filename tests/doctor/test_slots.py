"""Which optimizer steps what."""

import torch
from torch import nn

from luthier.doctor.measure.slots import Slots, learning_rate, state_step


def test_foreign_optimizers_are_ignored_and_new_ones_replace():
    model, other = nn.Linear(3, 2), nn.Linear(2, 2)
    slots = Slots(list(model.parameters()))
    first = torch.optim.Adam(model.parameters())
    assert slots.find(torch.optim.SGD(other.parameters(), lr=1.0)) == (None, True)
    slot, new = slots.find(first)
    assert (slot.number, slot.positions, slot.closes, slot.replaces, new) == (0, (0, 1), True, None, True)
    assert slots.find(first) == (slot, False)
    again, new = slots.find(torch.optim.Adam(model.parameters()))
    assert (again.number, again.closes, again.replaces, new) == (1, True, 0, True)


def test_two_optimizers_share_an_iteration():
    model = nn.Linear(3, 2)
    slots = Slots(list(model.parameters()))
    weight, bias = torch.optim.SGD([model.weight], lr=0.1), torch.optim.SGD([model.bias], lr=0.1)
    assert slots.find(weight)[0].closes
    assert not slots.find(bias)[0].closes
    assert slots.living() == [weight, bias]


def test_a_group_that_is_added_later_is_followed():
    model = nn.Linear(3, 2)
    slots = Slots(list(model.parameters()))
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    assert slots.find(optimizer)[0].positions == (0,)
    optimizer.add_param_group({"params": [model.bias]})
    assert slots.find(optimizer)[0].positions == (0, 1)
    assert len(slots.all) == 1


def test_numbers_of_an_optimizer():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
    assert learning_rate(optimizer) == 0.25
    assert state_step(optimizer) is None
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert state_step(optimizer) == 3
