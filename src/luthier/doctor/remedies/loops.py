"""Remedies for faults of the training loop and of what the optimizer holds."""

from __future__ import annotations

from luthier.doctor.findings import Finding, Remedy
from luthier.doctor.remedies.cures import as_python, first_module, places, written


def missing_zero_grad(_: Finding) -> tuple[Remedy, ...]:
    """Clear before every backward."""
    return (
        written(
            "Clear the gradients once per step: without it every step repeats all earlier gradients.",
            "  loss = loss_fn(model(x), y)\n+ optimizer.zero_grad()\n  loss.backward()\n  optimizer.step()",
        ),
    )


def optimizer_reset(_: Finding) -> tuple[Remedy, ...]:
    """Create it once."""
    return (
        written(
            "Create the optimizer (and its schedule) once, before the loop: momentum and Adam's averages start at "
            "zero again with every new one.",
            "+ optimizer = ...(model.parameters(), lr=lr)\n  for epoch in range(epochs):\n"
            "-     optimizer = ...(model.parameters(), lr=lr)\n      for x, y in loader:",
        ),
    )


def stale_optimizer(finding: Finding) -> tuple[Remedy, ...]:
    """Optimizer after the model is complete."""
    layer = first_module(finding, "head")
    return (
        written(
            f"Create the optimizer after the last change of the model ({places(finding, 'replaced layers')}): it "
            "still steps the old tensors, the new ones never learn.",
            f"- optimizer = ...(model.parameters(), lr=lr)\n  model.{layer} = nn.Linear(features, classes)\n"
            "+ optimizer = ...(model.parameters(), lr=lr)",
        ),
        written(
            "Or hand the new parameters over.",
            f"+ optimizer.add_param_group({{'params': model.{layer}.parameters()}})",
        ),
    )


def frozen_params(finding: Finding) -> tuple[Remedy, ...]:
    """Unfreeze, or hand over to the optimizer."""
    layer = first_module(finding, "")
    target, who = f"model.{layer}" if layer else "model", places(finding, "the parameters")
    given = written(
        f"Give {who} to the optimizer.",
        "+ optimizer = ...(model.parameters(), lr=lr)  # all of them, after the model is complete",
    )
    thawed = written(
        f"Let {who} learn: switch requires_grad on before the optimizer is made.",
        f"- {target}.requires_grad_(False)\n+ {target}.requires_grad_(True)",
    )
    return (
        given if finding.numbers.get("missing") else thawed,
        written(
            "If it is meant (fine-tuning), say so in your tests.",
            "+ luthier.assert_healthy(watch, allow=('frozen_params',))",
        ),
    )


def disconnected_params(finding: Finding) -> tuple[Remedy, ...]:
    """Keep the graph whole."""
    layer = first_module(finding, "encoder")
    who, cuts = places(finding, "these parameters"), finding.numbers.get("cut_at")
    at = f" (seen: {', '.join(map(str, cuts))})" if isinstance(cuts, (list, tuple)) and cuts else ""
    use = written(
        f"Use {who} in forward; if they are not needed, remove them.",
        f"+ x = self.{layer}(x)  # in forward",
    )
    join = written(
        f"Let the loss reach {who}: take detach(), .data, torch.no_grad() or the way through NumPy out of forward and "
        f"loss{at}.",
        f"- x = self.{layer}(x).detach()\n+ x = self.{layer}(x)",
    )
    return (use, join) if finding.numbers.get("used") is False else (join, use)


def unregistered_params(finding: Finding) -> tuple[Remedy, ...]:
    """nn.ModuleList and friends."""
    place = finding.where[0].partition("[")[0].partition(" ")[0] if finding.where else ""
    name = as_python(place) or "layers"
    return (
        written(
            "Keep layers in nn.ModuleList (by name: nn.ModuleDict; tensors: nn.Parameter): a plain list hides them "
            "from parameters(), to() and state_dict().",
            f"- self.{name} = [nn.Linear(width, width) for _ in range(depth)]\n"
            f"+ self.{name} = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))",
        ),
    )


def train_eval_slip(finding: Finding) -> tuple[Remedy, ...]:
    """train() before training, eval() before evaluation."""
    modes = written(
        "Call model.train() before every epoch and model.eval() before every evaluation: a mode stays until it is set "
        "anew.",
        "  for epoch in range(epochs):\n+     model.train()\n      for x, y in loader:\n          ...\n"
        "+     model.eval()\n      with torch.no_grad():\n          ...",
    )
    functional = written(
        "Where forward calls dropout or batch norm itself, tell it the mode.",
        "- x = F.dropout(x, 0.5)\n+ x = F.dropout(x, 0.5, training=self.training)",
    )
    if finding.numbers.get("kind") == "apart":
        return (_STATISTICS, modes)
    return (functional, modes) if finding.numbers.get("kind") == "functional" else (modes, functional)


_STATISTICS = written(
    "Let the running statistics follow: batch norm's momentum near 0.1, inputs of ordinary scale, a lower learning "
    "rate; or take them anew from the training data before evaluating.",
    "+ model.train()\n+ with torch.no_grad():\n+     for x, _ in loader:\n+         model(x)\n  model.eval()",
)


def input_bottleneck(_: Finding) -> tuple[Remedy, ...]:
    """Load beside the computation."""
    return (
        written(
            "Load batches in processes beside the training.",
            "- loader = DataLoader(data, batch_size)\n"
            "+ loader = DataLoader(data, batch_size, num_workers=4, persistent_workers=True, pin_memory=True)",
        ),
        written(
            "Decode and transform once and keep the tensors in memory when they fit.",
            "+ x = torch.stack([transform(image) for image in images])\n+ data = TensorDataset(x, y)",
        ),
        written("Transform whole batches instead of single examples, on the device."),
    )
