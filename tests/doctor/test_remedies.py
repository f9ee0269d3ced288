"""Remedies: every symptom has some, every patch can be applied, every line of code is Python."""

import ast
import itertools
import textwrap

import pytest

from luthier.doctor.findings import Finding, Remedy
from luthier.doctor.remedies import REMEDIES, prescribe
from luthier.doctor.remedies.cures import lr_factor
from luthier.doctor.symptoms import SYMPTOMS
from luthier.errors import LuthierError
from luthier.patch import NotApplicable, Patch
from luthier.recipe import Recipe

LISTED = """
vanishing_gradient exploding_gradient exploding_activation nan_inf nan_input dead_relu saturated_activation
bad_activation overfitting underfitting oscillating_loss plateau no_learning lr_too_high lr_too_low too_few_epochs
batch_too_small batch_too_large bad_init symmetric_init unnormalised_input unscaled_target output_range_mismatch
constant_output missing_nonlinearity wrong_loss softmax_before_ce softmax_wrong_dim shape_broadcast loss_scale
missing_zero_grad optimizer_reset stale_optimizer lr_schedule_collapse grad_clip_too_small frozen_params
disconnected_params unregistered_params unshuffled_data class_imbalance label_noise label_misaligned
degenerate_labels data_leakage train_val_mismatch train_eval_slip small_batch_bn too_much_regularisation
input_bottleneck precision_loss
"""
# the ids that the design lists
RICH_RECIPE = Recipe(
    optimizer="sgd",
    lr=0.1,
    schedule="step",
    weight_decay=0.1,
    l1=0.1,
    dropout=0.8,
    augment=("flip",),
    clip_norm=1e-4,
    model={"width": 64, "depth": 4},
    batch_size=64,
    accumulate=2,
    precision="float16",
)


def found(symptom, **fields):
    return Finding(symptom, "warning", "it is so", **fields)


FULL = {
    "lr": 0.5,
    "update_ratio": 0.3,
    "grad_norm_early": 2.5,
    "norm": 2.5,
    "ratio": 0.01,
    "best_step": 40,
    "mean": 300.0,
    "std": 20.0,
    "dim": 0,
    "shape": [32, 10],
    "factor": 100.0,
    "columns": [1, 2],
    "op": "sigmoid",
    "operation": "sqrt",
    "loss": "binary_cross_entropy_with_logits",
    "low": -3.0,
    "high": 40.0,
    "prediction": (32, 1),
    "target": (32,),
    "feature": 3,
    "shift": -2.0,
    "kind": "functional",
    "missing": True,
    "used": False,
    "cut_at": ["detach in encoder"],
    "weight_decay": 0.5,
}


@pytest.fixture(params=[{}, {"where": ("blocks.0.fc", "blocks.1.fc", "head"), "numbers": FULL}], ids=["bare", "full"])
def fields(request):
    return request.param


def test_every_symptom_has_remedies():
    assert set(LISTED.split()) <= set(REMEDIES)
    assert set(SYMPTOMS) == set(REMEDIES)


@pytest.mark.parametrize("symptom", sorted(REMEDIES))
def test_remedies_are_sentences_with_something_to_do(symptom, fields):
    remedies = prescribe(found(symptom, **fields)).remedies
    assert remedies
    assert len({remedy.text for remedy in remedies}) == len(remedies)
    for remedy in remedies:
        assert remedy.text[0].isupper()
        assert remedy.text.endswith(".")
        assert "  " not in remedy.text
    assert any(remedy.patch or remedy.code for remedy in remedies[:1])


@pytest.mark.parametrize("symptom", sorted(REMEDIES))
def test_every_patch_survives_json_and_applies_to_a_recipe(symptom, fields):
    for remedy in prescribe(found(symptom, **fields)).remedies:
        if remedy.patch is None:
            continue
        again = Patch.model_validate_json(remedy.patch.model_dump_json())
        assert again == remedy.patch
        patched = again.apply(RICH_RECIPE)
        assert isinstance(patched, Recipe), f"{remedy.text}: {patched}"
        assert patched != RICH_RECIPE


@pytest.mark.parametrize("symptom", sorted(REMEDIES))
def test_a_patch_that_does_not_fit_says_why(symptom):
    for remedy in prescribe(found(symptom)).remedies:
        if remedy.patch is not None and isinstance(answer := remedy.patch.apply(Recipe()), NotApplicable):
            allowed = ("not a number to scale", "nothing would change", "unknown setting", "has no settings")
            assert any(words in answer.reason for words in allowed), answer.reason


def lines(code, sign):
    """The program before ("-") or after ("+") the change."""
    return "\n".join(line[2:] for line in code.splitlines() if line[:2] in (f"{sign} ", "  "))


@pytest.mark.parametrize("symptom", sorted(REMEDIES))
def test_code_is_marked_and_short(symptom, fields):
    for remedy in prescribe(found(symptom, **fields)).remedies:
        for line in remedy.code.splitlines():
            assert line[:2] in ("+ ", "- ", "  "), line
            assert len(line) <= 100, line


@pytest.mark.parametrize("symptom", sorted(REMEDIES))
def test_code_is_python(symptom, fields):
    """Snippets may begin inside a call (layers of a Sequential) or leave a block open (loops cut short)."""
    for remedy in prescribe(found(symptom, **fields)).remedies:
        if not remedy.code:
            continue
        after = textwrap.dedent(lines(remedy.code, "+"))
        tries = [after, after + "\n    pass", f"x = [\n{after}\n]", f"def f(self):\n{textwrap.indent(after, '    ')}"]
        tries += [f"{after}\n)", after + "\n        pass"]
        assert any(parses(text) for text in tries), remedy.code


def parses(text):
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


@pytest.mark.parametrize(
    ("symptom", "where", "numbers", "said"),
    [
        (
            "softmax_before_ce",
            ("head",),
            {"op": "softmax", "loss": "cross_entropy"},
            "- return torch.softmax(logits, dim=1)",
        ),
        ("softmax_before_ce", (), {"op": "sigmoid", "loss": "binary_cross_entropy_with_logits"}, "- nn.Sigmoid()"),
        ("softmax_wrong_dim", (), {"dim": 0, "shape": [8, 3]}, "+ softmax(x, dim=-1)"),
        ("softmax_wrong_dim", (), {"dim": 3, "shape": [8, 3, 4, 4]}, "+ softmax(x, dim=1)"),
        ("softmax_wrong_dim", ("attention",), {"shape": [8, 3, 4]}, "batch_first=True"),
        ("output_range_mismatch", (), {"op": "tanh", "low": -2.0, "high": 2.0}, "- return torch.tanh(x)"),
        ("shape_broadcast", (), {"prediction": (8, 1), "target": (8,)}, "F.mse_loss(prediction.squeeze(-1), y)"),
        ("shape_broadcast", (), {"prediction": (8,), "target": (8, 1)}, "F.mse_loss(prediction, y.squeeze(-1))"),
        ("shape_broadcast", ("mix",), {}, "b.squeeze(1)"),
        ("nan_inf", ("norm",), {"operation": "sqrt", "diverged": False}, "torch.sqrt(v.clamp_min(0) + 1e-8)"),
        ("nan_inf", (), {"operation": "sqrt", "diverged": True}, "lr / 10"),
        ("frozen_params", ("blocks.0",), {"missing": False}, "+ model.blocks[0].requires_grad_(True)"),
        ("frozen_params", ("head",), {"missing": True}, "+ optimizer = ...(model.parameters()"),
        ("disconnected_params", ("head",), {"used": False}, "+ x = self.head(x)"),
        ("disconnected_params", ("head",), {"used": True}, "- x = self.head(x).detach()"),
        ("unregistered_params", ("blocks[0]",), {}, "+ self.blocks = nn.ModuleList("),
        ("missing_nonlinearity", ("net.0", "net.1"), {}, "self.net[1](F.relu(self.net[0](x)))"),
        ("train_eval_slip", (), {"kind": "functional"}, "training=self.training"),
        ("train_eval_slip", (), {"kind": "eval"}, "model.eval()"),
        ("data_leakage", (), {"feature": 7}, "i != 7"),
        ("data_leakage", (), {"share": 0.4}, "x_val[fresh]"),
        ("label_misaligned", (), {"shift": 1.0}, "x[: -1], y[1 :]"),
        ("grad_clip_too_small", (), {"norm": 3.21, "ratio": 0.001}, "clip_grad_norm_(model.parameters(), 3.2)"),
        ("too_much_regularisation", (), {"weight_decay": 0.5}, "weight_decay=0.005"),
        ("unscaled_target", (), {"mean": 300.0, "std": 20.0}, "mean, std = 300, 20"),
    ],
)
def test_the_first_remedy_follows_what_was_found(symptom, where, numbers, said):
    assert said in prescribe(found(symptom, where=where, numbers=numbers)).remedies[0].code


def test_the_learning_rate_of_the_finding_is_in_the_remedy():
    lower = prescribe(found("lr_too_high", numbers={"lr": 0.5, "update_ratio": 0.3})).remedies[0]
    assert "from 0.5 to 0.005" in lower.text
    assert lower.patch.apply(Recipe(lr=0.5)).lr == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("symptom", "numbers", "factor"),
    [
        ("lr_too_high", {}, 0.1),
        ("lr_too_high", {"update_ratio": 3.0}, 0.001),
        ("lr_too_high", {"update_ratio": 1e-3}, 0.3),
        ("lr_too_high", {"update_ratio": float("nan")}, 0.1),
        ("lr_too_low", {}, 10.0),
        ("lr_too_low", {"update_ratio": 3e-5}, 100.0),
        ("lr_too_low", {"update_ratio": 1e-12}, 1000.0),
        ("lr_too_low", {"lr": 1e-5, "suggested_lr": 3e-3}, 300.0),
    ],
)
def test_the_step_size_follows_the_measured_updates(symptom, numbers, factor):
    assert lr_factor(found(symptom, numbers=numbers)) == pytest.approx(factor)


@pytest.mark.parametrize("symptom", ["lr_too_high", "lr_too_low"])
@pytest.mark.parametrize("ratio", [None, 1e-6, 1e-4, 3e-3, 0.1, 100.0])
def test_further_rates_differ_from_the_first(symptom, ratio):
    remedies = prescribe(found(symptom, numbers={"update_ratio": ratio})).remedies
    factors = [remedy.patch.operations[0].factor for remedy in remedies[:3]]
    assert all((factor < 1) == (symptom == "lr_too_high") for factor in factors)
    for one, other in itertools.combinations(factors, 2):
        assert max(one / other, other / one) > 1.9


def test_only_images_are_augmented():
    texts = [
        " ".join(remedy.text for remedy in prescribe(found("overfitting", numbers=numbers)).remedies)
        for numbers in ({}, {"input_shape": [3, 8, 8]}, {"input_shape": [20]})
    ]
    assert ["Augment" in text for text in texts] == [True, True, False]


@pytest.mark.parametrize("symptom", ["overfitting", "label_noise"])
def test_tokens_are_not_mixed(symptom):
    mixed = [
        any("mixup" in remedy.text for remedy in prescribe(found(symptom, numbers=numbers)).remedies)
        for numbers in ({}, {"input_shape": [20]}, {"input_shape": [20], "tokens": True})
    ]
    assert mixed == [True, True, False]


def test_remedies_of_the_rule_itself_come_first():
    own = Remedy("Do this.")
    assert prescribe(found("dead_relu", remedies=(own,))).remedies[0] is own


def test_an_unknown_symptom_names_a_close_one():
    with pytest.raises(LuthierError, match="did you mean 'dead_relu'"):
        prescribe(found("dead_relus"))
