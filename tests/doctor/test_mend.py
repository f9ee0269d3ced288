"""mend: what is tried, what is kept, what it costs, what it leaves."""

import json
import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

import luthier
from luthier import LuthierError, Patch, Recipe, Scale, Set
from luthier.doctor.findings import Diagnosis, Finding, Remedy
from luthier.doctor.mend import explicit, mend
from luthier.doctor.mending.book import builder_choices, case_of, general, has_gap, known_good, resets
from luthier.doctor.mending.candidates import candidates, prescribed
from luthier.doctor.mending.judging import Effect, Noise, chance_spread, curve_spread
from luthier.doctor.mending.trials import Trials
from luthier.doctor.remedies.cures import less_regularisation
from luthier.tasks import TASKS
from luthier.tasks.patients import PATIENTS


def points(n, seed):
    """Two moons: enough for a small network, too much for a linear one."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    angle = math.pi * torch.rand(n, generator=generator)
    x = torch.stack([angle.cos() + y * 1.0, angle.sin() * (1 - 2 * y) + y * 0.4], 1)
    return x + 0.1 * torch.randn(n, 2, generator=generator), y


class Net(nn.Sequential):
    """One hidden layer."""

    def __init__(self, width: int = 16, kind: Literal["wide", "deep"] = "wide"):
        hidden = [nn.Linear(2, width), nn.ReLU()] + ([nn.Linear(width, width), nn.ReLU()] if kind == "deep" else [])
        super().__init__(*hidden, nn.Linear(width, 2))


@pytest.fixture
def moons():
    """A task that a healthy recipe learns in 40 steps."""
    return luthier.Task(Net, points(160, 0), val=points(200, 1), test=points(200, 2), name="moons")


SLOW = Recipe(optimizer="sgd", lr=1e-4, batch_size=32, epochs=8)
RAISE = Patch(reason="raise the learning rate", operations=[Scale(field="lr", factor=1000.0)])
LOWER = Patch(reason="lower the learning rate", operations=[Scale(field="lr", factor=0.1)])
NO_DECAY = Patch(reason="no such setting", operations=[Set(field="schedule.gamma", value=0.5)])


def doctor(*patches, severity="warning"):
    """A doctor that prescribes these patches while the learning rate is below 0.05, and is content above."""

    def diagnose(record):
        if record.recipe.lr > 0.05:
            return Diagnosis(healthy=("lr_too_low",))
        remedies = tuple(Remedy(patch.reason, patch) for patch in patches)
        return Diagnosis((Finding("lr_too_low", severity, "The weights hardly move.", remedies=remedies),))

    return diagnose


def run(moons, tmp_path, *patches, **settings):
    given = {"trials": 12, "console": False, "until_healthy": True, **settings}
    return mend(moons, SLOW, folder=tmp_path / "m", diagnose=doctor(*patches), **given)


@pytest.fixture
def _only_prescribed(monkeypatch):
    """Known-good settings are not tried."""
    monkeypatch.setattr("luthier.doctor.mending.candidates.KNOWN_GOOD", ())
    monkeypatch.setattr("luthier.doctor.mending.candidates.known_good", lambda case: ())


@pytest.mark.usefixtures("_only_prescribed")
def test_keeps_the_patch_that_helps_and_stops_when_healthy(moons, tmp_path):
    mended = run(moons, tmp_path, LOWER, RAISE)
    assert mended.ended == "healthy"
    assert mended.recipe.lr == pytest.approx(0.1)
    assert mended.patches == (RAISE,)
    kept = mended.kept[0]
    assert kept.source == "lr_too_low"
    assert len(kept.effect.gains) >= 2
    assert kept.effect.mean > 0.1
    assert not mended.before.is_healthy
    assert mended.after.is_healthy


def test_pairs_the_same_seeds_and_counts_every_step(moons, tmp_path):
    mended = run(moons, tmp_path, RAISE)
    records = [luthier.Record(path.parent) for path in (tmp_path / "m" / "trials").glob("*/recipe.json")]
    seeds = {lr: {r.recipe.seed for r in records if r.recipe.lr == pytest.approx(lr)} for lr in (1e-4, 0.1)}
    assert {0, 1} <= seeds[1e-4] & seeds[0.1]
    trained = sum(record.status["step"] for record in records)
    proofs = mended.spent - trained
    assert proofs >= 0
    assert proofs % 8 == 0  # a fifth of the 40 steps each, for the recipe and for its patch
    assert mended.spent <= mended.limit == 12 * 40


def test_a_patch_that_does_not_help_is_dropped_and_told(moons, tmp_path):
    mended = run(moons, tmp_path, LOWER, NO_DECAY, trials=4)
    outcomes = {step.patch.reason: step.outcome for step in mended.steps}
    assert outcomes[LOWER.reason] == "dropped"
    assert outcomes[NO_DECAY.reason] == "not applicable"


def test_a_budget_that_allows_nothing_ends_with_the_recipe_as_it_was(moons, tmp_path):
    mended = run(moons, tmp_path, RAISE, trials=2)
    assert mended.ended == "budget"
    assert mended.recipe == mended.start
    assert mended.spent <= mended.limit


@pytest.mark.usefixtures("_only_prescribed")
def test_a_training_that_diverges_is_a_dropped_step_and_no_error(moons, tmp_path):
    explode = Patch(reason="explode", operations=[Scale(field="lr", factor=1e12)])
    mended = run(moons, tmp_path, explode, RAISE)
    step = next(step for step in mended.steps if step.patch.reason == "explode")
    assert step.outcome == "dropped"
    assert mended.recipe.lr == pytest.approx(0.1)


def test_a_start_that_diverges_is_mended(moons, tmp_path):
    lower = Patch(reason="lower the learning rate", operations=[Set(field="lr", value=0.1)])

    def diagnose(record):
        if record.recipe.lr < 1:
            return Diagnosis(healthy=("nan_inf",))
        return Diagnosis((Finding("nan_inf", "critical", "Numbers overflow.", remedies=(Remedy("", lower),)),))

    sick = SLOW.replace({"lr": 1e12})
    mended = mend(moons, sick, trials=12, folder=tmp_path / "m", diagnose=diagnose, console=False, until_healthy=True)
    assert mended.recipe.lr == 0.1
    assert all(value is None for value in mended.values_before)
    assert "did not end well" in str(mended)


def test_goes_on_by_the_book_when_nothing_is_prescribed(moons, tmp_path):
    mended = run(moons, tmp_path, trials=16)
    assert mended.kept
    assert all(step.source in ("book", "again") for step in mended.kept)
    assert max(mended.values_after) > max(mended.values_before) + 0.1


def test_reads_the_test_data_once_at_the_end(moons, tmp_path):
    mended = run(moons, tmp_path, RAISE, test=True)
    assert mended.test["after"]["accuracy"] > mended.test["before"]["accuracy"]
    with pytest.raises(LuthierError, match="read once only"):
        moons.test.open("again")


def test_what_it_leaves_can_be_read_and_trained(moons, tmp_path):
    mended = run(moons, tmp_path, RAISE)
    saved = json.loads((tmp_path / "m" / "mend.json").read_text())
    assert saved["diagnosis"]["before"]["findings"][0]["symptom"] == "lr_too_low"
    assert [step["outcome"] for step in saved["steps"]].count("kept") == 1
    assert Recipe.load(tmp_path / "m" / "recipe.json") == mended.recipe
    assert mended.record.load_best(moons) is not None


def test_only_start_and_result_keep_their_weights(moons, tmp_path):
    mended = run(moons, tmp_path, LOWER, RAISE)
    keys = {
        luthier.Record(path.parents[1]).recipe.key() for path in (tmp_path / "m").rglob("checkpoints/best.safetensors")
    }
    assert keys == {mended.start.key(), mended.recipe.key()}


@pytest.mark.usefixtures("_only_prescribed")
def test_says_what_it_does(moons, tmp_path, capsys):
    mended = run(moons, tmp_path, LOWER, RAISE, console=True, test=True)
    out = capsys.readouterr().out
    for told in ("lr_too_low", "lr x 1000", "kept", "points (2 seeds)", "healthy", "read once"):
        assert told in out
    assert "lr x 1000" in str(mended)


def test_a_folder_in_use_and_wrong_numbers_are_refused(moons, tmp_path):
    run(moons, tmp_path, RAISE)
    with pytest.raises(LuthierError, match="already holds a mending"):
        run(moons, tmp_path, RAISE)
    with pytest.raises(LuthierError, match="trials must be at least 2, got 1"):
        mend(moons, trials=1)
    with pytest.raises(LuthierError, match="expected a Task"):
        mend(3)


def test_a_recipe_that_cannot_be_built_is_an_error(moons, tmp_path):
    with pytest.raises(LuthierError, match="refused the keywords"):
        mend(moons, SLOW.replace({"model.depth": 3}), folder=tmp_path / "m", console=False)


def test_ctrl_c_leaves_what_was_found(moons, tmp_path):
    def diagnose(record):
        if record.recipe.lr > 0.05:
            raise KeyboardInterrupt
        return doctor(RAISE)(record)

    mended = mend(moons, SLOW, trials=12, folder=tmp_path / "m", diagnose=diagnose, console=False)
    assert mended.ended == "interrupted"
    assert mended.recipe.lr == pytest.approx(0.1)
    assert mended.test is None


def test_ctrl_c_before_anything_was_found_says_so(moons, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("luthier.fitting.fit", interrupted)
    with pytest.raises(LuthierError, match="nothing was found yet"):
        mend(moons, SLOW, trials=12, folder=tmp_path / "m", console=False)


def test_the_doctor_of_the_house_is_asked_by_default(moons, tmp_path):
    mended = mend(moons, SLOW, trials=3, folder=tmp_path / "m", console=False)
    assert mended.before.healthy or mended.before.findings
    assert mended.first.findings["is_healthy"] == mended.before.is_healthy
    tried = [luthier.Record(path) for path in (mended.folder / "trials").iterdir()]
    assert sum(each.findings is not None for each in tried) < len(tried)  # candidates that were not kept do without


# candidates


def finding(symptom, *fields, severity="warning", consequences=()):
    remedies = tuple(
        Remedy(f"{symptom} {name}", Patch(reason=f"{symptom} {name}", operations=[Set(field=name, value=value)]))
        for name, value in fields
    )
    return Finding(symptom, severity, "", remedies=remedies, consequences=consequences)


def test_the_roots_first_remedies_lead_and_information_comes_late():
    root = finding("a", ("lr", 0.1), ("lr", 0.2), ("lr", 0.3))
    other = finding("b", ("lr", 0.4))
    note = finding("c", ("lr", 0.5), severity="info")
    ranked = sorted(prescribed(Diagnosis((root, other, note))), key=lambda item: item[0])
    assert [symptom for _, symptom, _ in ranked] == ["a", "a", "a", "b", "c"]


def test_candidates_are_new_and_differ(moons):
    recipe = explicit(moons, SLOW)
    twice = finding("a", ("lr", 0.1), ("lr", 0.1), ("lr", 1e-4), ("schedule.gamma", 0.5))
    known = recipe.replace({"lr": 0.2}).key()
    again = [Patch(reason="", operations=[Set(field="lr", value=0.2)])]
    case = case_of(moons, recipe, None)
    found, refused = candidates(recipe, Diagnosis((twice,)), case, again, {known})
    assert found[0].recipe.lr == 0.1
    assert len({item.recipe.key() for item in found}) == len(found)
    assert known not in {item.recipe.key() for item in found}
    assert [item.source for item in refused] == ["a"]


@pytest.mark.parametrize(
    ("start", "own", "tried"),
    [({}, 0.0, False), ({}, 0.2, True), ({"l1": 0.1}, 0.0, True), ({"dropout": 0.3}, 0.0, True)],
)
def test_regularisers_that_are_off_are_not_switched_off(start, own, tried):
    task = luthier.Task(lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Dropout(own)), points(40, 0), name="moons")
    recipe = SLOW.replace({"weight_decay": 0.0, **start})
    sick = Diagnosis((Finding("underfitting", "warning", "", remedies=(less_regularisation(),)),))
    found, refused = candidates(recipe, sick, case_of(task, recipe, None), [], {recipe.key()})
    assert ("underfitting" in {item.source for item in found}) is tried
    assert refused == []


def test_known_good_settings_come_right_after_the_roots_first_remedy(moons):
    recipe = explicit(moons, SLOW.replace({"clip_norm": 1e-4, "dropout": 0.9}))
    case = case_of(moons, recipe, None)
    sick = Diagnosis((finding("a", ("lr", 0.1), ("lr", 0.2), ("lr", 0.3)), finding("b", ("lr", 0.4))))
    found, _ = candidates(recipe, sick, case, [], set())
    good = [patch for patch in known_good(case) if isinstance(patch.apply(recipe), Recipe)]
    places = [next(i for i, item in enumerate(found) if item.patch == patch) for patch in good]
    assert [found[i].patch.reason for i in (0, *places[:1])] == ["a lr", good[0].reason]
    assert places[0] == 1
    assert all(found[i].source == "book" for i in places)
    first = found[places[0]].recipe
    assert (first.optimizer.name, first.clip_norm, first.dropout, first.norm) == ("adamw", 1.0, None, "batch")
    healthy, _ = candidates(recipe, Diagnosis(healthy=("nan_inf",)), case, [], set())
    assert healthy[0].patch == good[0]


def test_known_good_settings_leave_what_helps_against_overfitting(moons):
    fits = replace(case_of(moons, SLOW.replace({"dropout": 0.3}), None), gap=True)
    assert all("dropout" not in {operation.field for operation in patch.operations} for patch in known_good(fits))


def test_numbers_and_choices_of_the_model_builder_can_be_changed(moons):
    recipe = explicit(moons, SLOW)
    assert recipe.model == {"width": 16}
    assert builder_choices(moons) == {"kind": ("wide", "deep")}
    patched = [patch.apply(recipe) for patch in general(case_of(moons, recipe, None))]
    models = [item.model for item in patched if isinstance(item, Recipe)]
    assert {"kind": "deep"} in models
    assert {"width": 32} in models


def test_settings_outside_every_recommendation_are_reset_one_by_one_and_all_at_once(moons):
    odd = SLOW.replace({"clip_norm": 1e-4, "dropout": 0.9, "activation": "sigmoid"})
    patches = list(resets(case_of(moons, odd, None)))
    assert len(patches) == 4
    assert patches[0].apply(odd).flat() | {"dropout": None} == SLOW.flat() | {
        "dropout": None,
        "activation": "relu",
        "clip_norm": 1.0,
    }
    assert list(resets(case_of(moons, SLOW, None))) == []


def test_every_patch_of_the_book_applies_and_can_be_trained(make_task):
    images = torch.rand(24, 1, 8, 8), torch.arange(24) % 3

    class Conv(nn.Sequential):
        def __init__(self, width: int = 4, kind: Literal["a", "b"] = "a"):
            super().__init__(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 3))

    task = make_task(model=Conv, train=images, val=images, test=None)
    recipe = explicit(task, Recipe(epochs=1, batch_size=4, optimizer="sgd", schedule="step", l1=0.1, warmup_frac=0.9))
    case = case_of(task, recipe, None)
    patched = [patch.apply(recipe) for patch in [*resets(case), *known_good(case), *general(case)]]
    recipes = [item for item in patched if isinstance(item, Recipe)]
    assert len(recipes) > 15
    for changed in {recipe.key(): recipe for recipe in recipes}.values():
        assert changed.model_dump() != recipe.model_dump()
    from luthier.training.run import Run

    for changed in recipes:
        Run(task, changed)


def test_a_gap_between_training_and_validation_is_seen(moons, tmp_path):
    record = luthier.fit(moons, SLOW, folder=tmp_path / "r", console=False, tensorboard=False)
    assert not has_gap(moons, record)
    record.append({**record.rows[-1], "train_accuracy": 1.0, "val_accuracy": 0.8})
    assert has_gap(moons, record)


# judging


def test_an_effect_is_better_only_beyond_noise():
    assert Effect((0.01,), 0.01).verdict == "open"
    assert Effect((0.02, 0.02), 0.01).verdict == "better"
    assert Effect((-0.02, -0.02), 0.01).verdict == "worse"
    assert Effect((0.05,), 0.01).is_clear
    assert not Effect((0.03,), 0.01).is_clear
    assert Effect((0.5, -math.inf), 0.01).mean == -math.inf
    assert Effect((math.inf, 0.5), 0.01).verdict == "better"


def test_the_spread_moves_from_what_is_expected_to_what_is_seen():
    noise = Noise(0.01)
    assert noise.spread == 0.01
    for key in range(50):
        noise.learn(key, [0.0, 0.2])
    assert noise.spread == pytest.approx(math.sqrt(0.02), rel=0.03)
    before = noise.spread
    noise.learn(0, [0.0, 0.2])
    assert noise.spread == before
    noise.learn("failed", [0.0, -math.inf])
    assert noise.spread == before


def test_chance_and_curve_give_the_first_spread():
    assert chance_spread(0.5, 100) == 0.05
    assert chance_spread(1.0, 100) == 0.01
    assert curve_spread([1.0, 1.0, 1.0, 1.0]) == pytest.approx(0.02)
    assert curve_spread([3.0, 2.0, 1.0]) == pytest.approx(0.02)
    assert curve_spread([1.0, 2.0, 1.0, 2.0, 1.0]) > 0.4
    assert curve_spread([]) == 0.0


def test_trials_are_made_once_and_counted(moons, tmp_path):
    trials = Trials(moons, tmp_path, 100)
    first = trials.train(SLOW, 3)
    assert trials.train(SLOW, 3) is first
    assert trials.spent == first.steps == trials.cost(SLOW) == 40
    assert trials.affords(60)
    assert not trials.affords(61)
    assert not Trials(moons, tmp_path, 100, limit_s=0.0).affords(1)


# patients

MADE_HERE = ("spirals", "friedman", "signs", "digits")  # the others read fetched data


@pytest.mark.parametrize("name", [name for name in PATIENTS if name.startswith(MADE_HERE)])
def test_a_patient_is_its_host_with_another_recipe(name):
    patient = PATIENTS[name]
    sick, healthy = patient.make(), patient.host()
    assert TASKS[name].endswith(patient.make.__name__)
    assert sick.task.name == name
    assert sick.task.describe() == {**healthy.task.describe(), "name": name}
    assert sick.recipe.differences(healthy.recipe)


def test_no_host_serves_tuning_and_scoring():
    sides = {side: {item.host for item in PATIENTS.values() if item.side == side} for side in ("tuning", "scoring")}
    assert not sides["tuning"] & sides["scoring"]
    assert sum(item.side == "scoring" for item in PATIENTS.values()) >= 10
