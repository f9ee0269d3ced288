import pytest
import torch
from torch import nn

from luthier.errors import LuthierError
from luthier.training.optimizers import SGD, Muon, OptimizerPart, build_optimizer
from luthier.training.penalties import add_l1, clip_gradients


def net() -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Linear(5, 4)
    model = nn.Sequential(first, nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        first.weight[0] = 0  # where the subgradient of |w| is taken to be 0
    return model


def data_loss(model: nn.Module) -> torch.Tensor:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    loss: torch.Tensor = model(x).square().mean()
    return loss


@pytest.mark.parametrize("part", [SGD(), Muon()], ids=repr)
@pytest.mark.parametrize("everything", [False, True])
def test_l1_equals_autograd_of_loss_plus_penalty(part: OptimizerPart, everything: bool) -> None:
    ours, theirs = net(), net()
    optimizer = build_optimizer(ours, part, lr=0.1, decay_norms_and_biases=everything)
    data_loss(ours).backward()  # type: ignore[no-untyped-call]
    add_l1(optimizer, 0.3)
    penalty = torch.stack([p.abs().sum() for p in theirs.parameters() if p.ndim > 1 or everything]).sum()
    (data_loss(theirs) + 0.3 * penalty).backward()  # type: ignore[no-untyped-call]
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.allclose(p.grad, q.grad, atol=1e-7)


def test_l1_leaves_parameters_without_gradient_alone_and_drives_weights_to_zero() -> None:
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, SGD(momentum=0), lr=0.01)
    add_l1(optimizer, 0.5)
    assert model.weight.grad is None
    for _ in range(300):
        model.weight.grad = torch.zeros_like(model.weight)
        add_l1(optimizer, 0.5)
        optimizer.step()
    assert model.weight.abs().max() <= 0.005 + 1e-6  # lr * strength, the width of the last oscillation


def test_l1_of_zero_does_nothing_and_unmarked_groups_are_refused() -> None:
    model = nn.Linear(3, 2)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    add_l1(plain, 0.0)
    with pytest.raises(LuthierError, match="needs parameter groups marked `decayed`"):
        add_l1(plain, 0.1)


def parameters(*gradients: list[float]) -> list[nn.Parameter]:
    params = []
    for gradient in gradients:
        p = nn.Parameter(torch.zeros(len(gradient)))
        p.grad = torch.tensor(gradient)
        params.append(p)
    return params


def gradients(params: list[nn.Parameter]) -> list[list[float]]:
    return [p.grad.tolist() for p in params if p.grad is not None]


def test_clipping_by_norm() -> None:
    params = [*parameters([3.0, 0.0], [4.0]), nn.Parameter(torch.zeros(2))]
    norm = clip_gradients(iter(params), max_norm=1.0)
    assert norm is not None
    assert norm.item() == pytest.approx(5.0)
    assert gradients(params)[0] == pytest.approx([0.6, 0.0], abs=1e-5)
    assert gradients(params)[1] == pytest.approx([0.8], abs=1e-5)


def test_small_gradients_are_left_as_they_are() -> None:
    params = parameters([0.3, 0.0], [0.4])
    norm = clip_gradients(params, max_norm=1.0, max_value=1.0)
    assert norm is not None
    assert norm.item() == pytest.approx(0.5)
    assert gradients(params) == [pytest.approx([0.3, 0.0]), pytest.approx([0.4])]


def test_clipping_by_value_comes_first() -> None:
    params = parameters([30.0, 0.0], [-40.0])
    assert clip_gradients(params, max_value=2.0) is None
    assert gradients(params) == [[2.0, 0.0], [-2.0]]
    params = parameters([30.0, 0.0], [-40.0])
    norm = clip_gradients(params, max_norm=1.0, max_value=2.0)
    assert norm is not None
    assert norm.item() == pytest.approx(8**0.5)
    assert gradients(params)[1] == pytest.approx([-(0.5**0.5)], abs=1e-5)


def test_clipping_nothing() -> None:
    params = parameters([3.0])
    assert clip_gradients(params) is None
    assert gradients(params) == [[3.0]]
