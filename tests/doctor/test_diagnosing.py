"""Roots before consequences."""

from dataclasses import replace
from random import Random

import pytest
import torch

import luthier
from luthier.doctor.diagnosing import CAUSES, diagnose, explains, order
from luthier.doctor.findings import Finding, NotSeen
from luthier.doctor.symptoms import EARLY, SYMPTOMS
from luthier.doctor.vitals import Steps, Vitals


def finding(symptom, certainty=0.8, severity="warning", onset=None):
    return Finding(symptom, severity, "because", certainty=certainty, onset=onset)


def names(findings):
    return [item.symptom for item in findings]


def test_a_root_comes_before_what_it_causes_and_carries_it():
    found = order([finding("dead_relu", 0.9, "critical", 12), finding("lr_too_high", 0.8, "critical", 3)])
    assert names(found) == ["lr_too_high", "dead_relu"]
    assert names(found[0].consequences) == ["dead_relu"]


def test_an_effect_that_was_there_long_before_is_a_root_of_its_own():
    found = order([finding("dead_relu", 0.9, "critical", 0), finding("lr_too_high", 0.8, "critical", 60)])
    assert names(found) == ["dead_relu", "lr_too_high"]
    assert found[0].consequences == ()


def test_inputs_that_are_all_the_same_come_before_the_units_that_they_leave_dead():
    constant = replace(finding("constant_output", 0.95, "critical", 0), numbers={"distinct": 1})
    assert names(order([finding("dead_relu", 0.8, "critical", 3), constant])) == ["constant_output", "dead_relu"]
    answers = finding("constant_output", 0.8, "critical", 3)
    assert names(order([answers, finding("dead_relu", 0.8, "critical", 3)])) == ["dead_relu", "constant_output"]


@pytest.mark.parametrize("born", ["exploding_activation", "saturated_activation"])
def test_no_step_made_what_was_there_before_the_first_one(born):
    for onset, first in ((0, born), (3, "lr_too_high")):
        found = [finding("lr_too_high", 0.65, "critical", 1), finding(born, 0.85, onset=onset)]
        assert names(order(found))[0] == first


def test_a_gradient_that_was_huge_before_the_first_step_is_not_of_its_size():
    found = [finding("lr_too_high", 0.8, "critical", 1), finding("exploding_gradient", 0.6, onset=0)]
    assert names(order(found))[0] == "exploding_gradient"


def test_a_gain_that_flattens_units_before_any_step_makes_the_first_steps_too_large():
    found = order([finding("lr_too_high", 0.9, "critical", 1), finding("saturated_activation", 0.8, "critical", 0)])
    assert names(found[0].consequences) == ["lr_too_high"]


@pytest.mark.parametrize("grown", ["exploding_gradient", "exploding_activation"])
def test_what_explodes_does_not_learn(grown):
    found = order([finding("no_learning", 0.5, onset=0), finding(grown, 0.85, onset=0)])
    assert names(found[0].consequences) == ["no_learning"]


def test_chains_hang_under_their_root():
    found = order([finding("no_learning", 0.5), finding("vanishing_gradient", 0.8), finding("bad_init", 0.8, onset=0)])
    assert names(found) == ["bad_init", "vanishing_gradient", "no_learning"]
    assert names(found[0].consequences) == ["vanishing_gradient", "no_learning"]


def test_of_findings_that_explain_each_other_in_a_ring_none_is_lost_and_the_first_leads():
    grown, huge = finding("exploding_activation", 0.7, "critical", 1), finding("exploding_gradient", 0.6, onset=0)
    found = order([grown, huge, finding("lr_too_high", 0.85, "critical", 1), finding("nan_inf", 0.6, "critical", 2)])
    assert names(found)[0] == "exploding_gradient"
    assert sorted(names(found[0].consequences)) == ["exploding_activation", "lr_too_high", "nan_inf"]


def test_no_finding_is_ever_lost():
    lot = Random(0)
    for _ in range(300):
        seen = lot.sample(sorted(CAUSES), 6)
        found = [finding(name, lot.choice((0.5, 0.7, 0.9)), onset=lot.choice((None, 0, 1, 40))) for name in seen]
        assert sorted(names(order(found))) == sorted(seen)


def test_what_was_seen_directly_is_named_before_what_was_inferred():
    found = order([finding("overfitting", 0.6, "warning"), finding("missing_zero_grad", 1.0, "critical")])
    assert names(found)[0] == "missing_zero_grad"


def test_infos_come_last_and_explain_nothing():
    found = order([finding("lr_too_high", 1.0, "info"), finding("dead_relu", 0.5)])
    assert names(found) == ["dead_relu", "lr_too_high"]
    assert found[0].consequences == ()


@pytest.mark.parametrize("one", sorted(CAUSES))
def test_two_findings_never_explain_each_other(one):
    for other in CAUSES[one]:
        first, second = finding(one), finding(other)
        assert not (explains(first, second) and explains(second, first))


def test_every_id_in_the_tables_is_a_symptom():
    assert set(CAUSES) <= set(SYMPTOMS)
    assert set().union(*CAUSES.values()) <= set(SYMPTOMS)
    assert set(EARLY) <= set(SYMPTOMS)


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_rules_answer_to_empty_and_half_filled_vitals(symptom):
    for vitals in (Vitals(), Vitals(steps=Steps((0, 1), (1.0, 0.5), (0.1, 0.1), (0.0, 0.0), (0.0, 0.0)))):
        answer = SYMPTOMS[symptom](vitals)
        assert isinstance(answer, (list, NotSeen))


def test_an_optimizer_of_an_earlier_model_is_named_though_it_steps_nothing_that_is_watched():
    new, old = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(old.parameters(), lr=0.1)
    with luthier.watch(new, optimizer) as watched:
        for _ in range(5):
            new(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    assert names(watched.diagnose().findings) == ["stale_optimizer"]


def test_silence_is_not_health():
    diagnosis = diagnose(Vitals())
    assert diagnosis.healthy == ()
    assert set(diagnosis.not_seen) == set(SYMPTOMS)


def test_a_rule_that_fails_says_so_and_costs_nothing_else(monkeypatch):
    def broken(_):
        raise KeyError("weight")

    rules = {"plateau": broken, "overfitting": lambda _: [finding("overfitting")]}
    monkeypatch.setattr("luthier.doctor.diagnosing.SYMPTOMS", rules)
    diagnosis = diagnose(Vitals(steps=Steps((0,), (1.0,), (0.1,), (0.0,), (0.0,))))
    assert names(diagnosis.findings) == ["overfitting"]
    assert "KeyError" in diagnosis.not_seen["plateau"]
    assert "plateau" not in diagnosis.healthy
