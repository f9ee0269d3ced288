"""The training loop of a script: the function `train`."""

from __future__ import annotations

from luthier.ejecting.evaluation import metric_name, write_loss
from luthier.ejecting.facts import Facts
from luthier.ejecting.schedules import Rate
from luthier.ejecting.updates import refreshes, write_optimizer, write_update
from luthier.training.averaging import EMA, SWA
from luthier.training.schedules import Plateau


def write_train(facts: Facts, rate: Rate, mixing: str | None, draws: bool) -> str:
    """The function `train(path)`.

    Args:
        facts: of the run.
        rate: the schedule.
        mixing: the call of mixup or cutmix, or None.
        draws: whether a training step draws random numbers.
    """
    recipe = facts.recipe
    setup = ["x, y, x_val, y_val = load_data(path)"]
    setup += ["mean, std = statistics(x)"] if facts.scales else []
    setup += ["model = initial_model()", *write_optimizer(facts)]
    if recipe.averaging is not None:
        setup += ["average, n_averaged = copy.deepcopy(model).requires_grad_(False), 0"]
    setup += _counters(facts, rate, draws)
    size = "BATCH_SIZE" if recipe.batch_growth is None else "batch_size(epoch)"
    step = [*_seed(draws), *_set_rate(facts, rate), *_batch(facts, mixing), *_backward(facts), *write_update(facts)]
    step += ["step += 1"] if _counts(facts, rate, draws) else []
    step += _averaging(facts)
    epoch = [
        "loss_sum = 0.0",
        f"for chosen in batches(len(x), epoch, {size}):",
        *_indented(step),
        *_evaluation(facts, mixing),
    ]
    body = [*setup, "for epoch in range(EPOCHS):", *_indented(epoch), "torch.save(best_weights, BEST)", "return rows"]
    return "\n".join(["def train(path=DATA):", f'    """{_SAID}"""', *_indented(body)])


_SAID = "Train, keep the best weights in the file BEST, and return the numbers of every epoch."


def prepared(facts: Facts) -> str:
    """Arguments of `prepare` after the inputs, for evaluation."""
    return ", mean, std" if facts.scales else ""


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _counts(facts: Facts, rate: Rate, draws: bool) -> bool:
    """Whether the script must count steps."""
    used = any("step" in text.replace("steps", "") for text in (rate.factor, rate.momentum, rate.ramp) if text)
    return draws or used or facts.own or facts.recipe.averaging is not None


def _needs_total(facts: Facts, rate: Rate) -> bool:
    return "steps" in f"{rate.factor} {rate.momentum}" or isinstance(facts.recipe.averaging, SWA)


def _counters(facts: Facts, rate: Rate, draws: bool) -> list[str]:
    lines = []
    if _needs_total(facts, rate):
        if facts.recipe.batch_growth is None:
            lines.append("steps = EPOCHS * math.ceil(len(x) / BATCH_SIZE)")
        else:
            lines.append("steps = sum(math.ceil(len(x) / batch_size(epoch)) for epoch in range(EPOCHS))")
    names = ["rows", "best", "best_weights"] + (["step"] if _counts(facts, rate, draws) else [])
    values = ["[]", "None", "None"] + (["0"] if _counts(facts, rate, draws) else [])
    if isinstance(facts.recipe.schedule, Plateau):
        names, values = [*names, "history"], [*values, "[]"]
    lines.append(f"{', '.join(names)} = {', '.join(values)}")
    if (stopping := facts.recipe.early_stopping) is not None:
        lines.append("since = 0" if not stopping.min_delta else "since, bar = 0, math.inf")
    return lines


def _seed(draws: bool) -> list[str]:
    return ["torch.manual_seed(derived_seed(STEPS, step))"] if draws else []


def _set_rate(facts: Facts, rate: Rate) -> list[str]:
    if rate.whole is None:
        return []
    lines = [f"ramp = {rate.ramp}  # warm-up"] if rate.ramp else []
    lines.append(f"lr = LR * {rate.whole}")
    momentum = _momentum_target(facts) if rate.momentum else None
    if momentum:
        lines.append(f"momentum = {rate.momentum}")
    lines += ["for group in optimizer.param_groups:", '    group["lr"] = lr']
    return [*lines, f"    {momentum}"] if momentum else lines


def _momentum_target(facts: Facts) -> str | None:
    """The statement that writes a moving momentum, None where the optimizer has none."""
    group = facts.run.optimizer.param_groups[0]
    if "betas" in group:
        return 'group["betas"] = (momentum, group["betas"][1])'
    return 'group["momentum"] = momentum' if group.get("momentum") else None


def _batch(facts: Facts, mixing: str | None) -> list[str]:
    arguments = prepared(facts) + (", training=True" if facts.recipe.augment else "")
    inputs = f"prepare(x[chosen]{arguments})" if facts.prepares else "x[chosen]"
    if mixing is None:
        return [f"inputs, targets = {inputs}, y[chosen]"]
    mixed = mixing.replace("(x, y)", "(inputs, y[chosen])")
    return [f"inputs = {inputs}", f"inputs, targets = {mixed}"]


def _backward(facts: Facts) -> list[str]:
    if facts.recipe.accumulate > 1:
        return _accumulated(facts)
    forward = ["outputs = model(inputs)", f"loss = {write_loss(facts, training=True)}"]
    if facts.bfloat16:
        forward = ['with torch.autocast("cpu", torch.bfloat16):', *_indented(forward)]
    return [*forward, "loss_sum += loss.item() * len(targets)", "optimizer.zero_grad()", "loss.backward()"]


def _accumulated(facts: Facts) -> list[str]:
    forward = ["outputs = model(inputs)", f"loss = {write_loss(facts, training=True)}"]
    if facts.bfloat16:
        forward = ['with torch.autocast("cpu", torch.bfloat16):', *_indented(forward)]
    n = facts.recipe.accumulate
    return [
        "optimizer.zero_grad()",
        f"parts = min({n}, len(chosen))",
        "expected = len(inputs.tensor_split(parts)[0]) * parts",
        "pieces = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)",
        "for inputs, targets in pieces:",
        *_indented(forward),
        "    loss_sum += loss.item() * len(targets)",
        "    (loss * (len(targets) / expected)).backward()",
        "for p in model.parameters():",
        "    if p.grad is not None:",
        "        p.grad.div_(len(chosen) / expected)",
    ]


def _averaging(facts: Facts) -> list[str]:
    part = facts.recipe.averaging
    update = ["update_average(average, model, weight)", "n_averaged += 1"]
    if isinstance(part, EMA):
        decay = f"min({part.decay!r}, (1 + n_averaged) / (10 + n_averaged))" if part.warmup else repr(part.decay)
        return [f"weight = 1 - {decay} if n_averaged else 1.0", *update]
    if isinstance(part, SWA):
        update[0] = "update_average(average, model, 1 / (n_averaged + 1))"
        ends = " and step * EPOCHS // steps != (step - 1) * EPOCHS // steps" if part.every == "epoch" else ""
        return [f"if step >= {part.start_frac!r} * steps{ends}:", *_indented(update)]
    return []


def _evaluation(facts: Facts, mixing: str | None) -> list[str]:
    recipe, metric = facts.recipe, metric_name(facts)
    lines, model = [], "model"
    if isinstance(recipe.averaging, EMA):
        model = "average"
    elif recipe.averaging is not None:
        lines.append("evaluated = average if n_averaged else model")
        model = "evaluated"
    if refreshes(facts):
        lines += _refresh(facts, mixing)
    arguments = f"{model}, x_val, y_val{prepared(facts)}" + (", step" if facts.own else "")
    results = "val_loss, value" if metric else "value"
    lines.append(f"{results} = evaluate({arguments})")
    row = '"train_loss": loss_sum / len(x), ' + (
        f'"val_loss": val_loss, "val_{metric}": value' if metric else '"val_loss": value'
    )
    lines.append(f"rows.append({{{row}}})")
    lines.append(
        'print(f"epoch {epoch + 1:3d}  " + "  ".join(f"{name} {number:.4f}" for name, number in rows[-1].items()))'
    )
    if isinstance(recipe.schedule, Plateau):
        lines.append("history.append(value)")
    sign = "<" if facts.task.metric.minimise else ">"
    lines += [f"if value == value and (best is None or value {sign} best):"]
    lines += ["    best = value"]
    lines += [f"    best_weights = {{name: tensor.clone() for name, tensor in {model}.state_dict().items()}}"]
    return lines + _stopping(facts)


def _refresh(facts: Facts, mixing: str | None) -> list[str]:
    arguments = prepared(facts) + (", training=True" if facts.recipe.augment else "")
    inputs = f"prepare(x[chosen]{arguments})" if facts.prepares else "x[chosen]"
    if mixing is not None:
        inputs = mixing.replace("(x, y)", f"({inputs}, y[chosen])[0]")
    size = "BATCH_SIZE" if facts.recipe.batch_growth is None else "batch_size(epoch)"
    call = ["refresh_batch_norm(average, inputs)"]
    if facts.bfloat16:
        call = ['with torch.autocast("cpu", torch.bfloat16):', *_indented(call)]
    call = [f"first = batches(len(x), epoch, {size})[:50]", f"inputs = ({inputs} for chosen in first)", *call]
    draws = bool(facts.recipe.augment) or mixing is not None
    seed = ["torch.manual_seed(derived_seed(EVALUATION, step))"] if draws or facts.own else []
    return ["if n_averaged:", *_indented([*seed, *call])]


def _stopping(facts: Facts) -> list[str]:
    stopping = facts.recipe.early_stopping
    if stopping is None:
        return []
    if not stopping.min_delta:
        lines = ["    since = 0", "else:", "    since += 1"]
    else:
        cost = "value" if facts.task.metric.minimise else "-value"
        lines = [f"if {cost} < bar - {stopping.min_delta!r}:", f"    bar, since = {cost}, 0", "else:", "    since += 1"]
    return [*lines, f"if since >= {stopping.patience}:", "    break"]
