"""A diagnosis in words: one calm line when healthy, else the root first; coloured, plain and as JSON alike."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from luthier.doctor.findings import Diagnosis, Finding, Remedy
from luthier.doctor.remedies import REMEDIES, prescribe
from luthier.doctor.wording import from_json, text_of, to_json
from luthier.errors import LuthierError
from luthier.show.diagnosis_layout import lay_out, named, patch_text
from luthier.show.diagnosis_terminal import STYLES, print_diagnosis

NOT_SEEN = {
    "label_noise": "no targets were seen: pass targets= to watch.step",
    "class_imbalance": "no targets were seen: pass targets= to watch.step",
    "input_bottleneck": "too few steps were timed",
}
DEAD = Finding("dead_relu", "critical", "93% of the units give zero.", ("0.93 dead at step 20",), ("fc1",), 14, 0.8)
ROOT = prescribe(
    Finding(
        "lr_too_high",
        "critical",
        "Each step changes the weights by 35% of their size.",
        ("update-to-weight ratio 0.35 at step 1", "the loss rose from 2.31 at step 0 to 410 at step 12"),
        ("blocks.0", "blocks.1", "head"),
        1,
        0.8,
        {"lr": 0.5, "update_ratio": 0.35},
        (DEAD,),
        source="Smith 2017",
    )
)
OTHER = prescribe(Finding("unshuffled_data", "warning", "Batches hold one class each.", onset=0, certainty=1.0))
NOTE = prescribe(Finding("too_few_epochs", "info", "The loss was still falling by 3% per epoch."))
SICK = Diagnosis((ROOT, OTHER, DEAD, NOTE), ("nan_inf", "bad_init"), NOT_SEEN, "300 steps, 28 looks")


def test_a_healthy_training_is_one_line():
    healthy = Diagnosis(healthy=tuple(f"s{i}" for i in range(46)), not_seen=NOT_SEEN)
    assert text_of(healthy) == "healthy: 46 checks in order, 3 could not look (no targets were seen)"
    assert text_of(replace(healthy, not_seen={})) == "healthy: 46 checks in order"
    noted = text_of(replace(healthy, findings=(NOTE,)))
    assert noted.endswith("; worth knowing: too_few_epochs")
    assert len(noted.splitlines()) == 1


def test_silence_is_not_called_healthy():
    assert text_of(Diagnosis(not_seen=NOT_SEEN)).startswith("not examined: nothing could be looked at")
    assert text_of(Diagnosis()).startswith("not examined")
    few = text_of(Diagnosis(healthy=("nan_inf",), not_seen=NOT_SEEN))
    assert few.startswith("nothing wrong in what could be seen: 1 check in order, 3 could not look")


def test_the_root_comes_first_with_everything_about_it():
    text = text_of(SICK)
    lines = text.splitlines()
    assert lines[0] == "CRITICAL  lr_too_high  in blocks.0, blocks.1, head, from step 1, measured"
    pieces = [
        "Each step changes",
        "Evidence",
        "* update-to-weight ratio 0.35 at step 1",
        "Because of it",
        "* dead_relu in fc1 from step 14: 93%",
        "What to do",
        "1. Lower the learning rate from 0.5",
        "+ optimizer",
        "recipe: lr x 0.01",
        "Source: Smith 2017",
        "WARNING  unshuffled_data  from the start, seen directly",
        "shuffle=True",
        "Worth knowing",
        "too_few_epochs",
        "In order: 2 checks.",
        "Could not look for label_noise, class_imbalance: no targets",
        "Could not look for input_bottleneck",
        "300 steps, 28 looks",
    ]
    places = [text.find(piece) for piece in pieces]
    assert -1 not in places
    assert places == sorted(places)


def test_a_consequence_is_told_once_under_its_root():
    assert text_of(SICK).count("dead_relu") == 1
    alone = replace(SICK, findings=(DEAD,))
    assert text_of(alone).splitlines()[0].startswith("CRITICAL  dead_relu")


def test_consequences_of_consequences_hang_below_them():
    constant = Finding("constant_output", "critical", "All answers are equal.", where=("head",), onset=22)
    chained = replace(ROOT, consequences=(replace(DEAD, consequences=(constant,)),))
    text = text_of(replace(SICK, findings=(chained, DEAD, constant)))
    dead, last = (next(line for line in text.splitlines() if name in line) for name in ("dead_relu", "constant_output"))
    assert len(last) - len(last.lstrip()) > len(dead) - len(dead.lstrip())
    assert text.count("constant_output") == 1


def test_the_worst_comes_before_what_is_only_worth_knowing():
    assert text_of(replace(SICK, findings=(NOTE, OTHER))).splitlines()[0].startswith("WARNING  unshuffled_data")


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("symptom", sorted(REMEDIES))
def test_every_symptom_fits_its_width_and_keeps_code_whole(symptom, width):
    where = tuple(f"encoder.layers.{i}.self_attention" for i in range(9))
    finding = prescribe(Finding(symptom, "warning", "Word " * 60, ("number " * 40,), where, 1234567, 0.5))
    code = {line.strip() for remedy in finding.remedies for line in remedy.code.splitlines()}
    for line in text_of(Diagnosis((finding,)), width).splitlines():
        assert len(line) <= width or line.strip() in code


def test_str_is_the_plain_text():
    assert str(SICK) == text_of(SICK)


def test_the_terminal_says_the_same_as_the_plain_text():
    out = io.StringIO()
    print_diagnosis(SICK, Console(file=out, width=100, no_color=True))
    printed = [" ".join(line.replace("•", "*").split()) for line in out.getvalue().splitlines()]
    assert printed == [" ".join(line.split()) for line in text_of(SICK).splitlines()]


def test_the_terminal_has_colours_and_every_role_a_style():
    out = io.StringIO()
    print_diagnosis(SICK, Console(file=out, width=100, force_terminal=True, color_system="standard"))
    assert "\x1b[" in out.getvalue()
    roles = {span.role for diagnosis in (SICK, Diagnosis()) for line in lay_out(diagnosis) for span in line}
    assert roles <= set(STYLES)


def test_markup_in_findings_stays_text():
    out = io.StringIO()
    odd = Diagnosis((Finding("nan_inf", "critical", "layer [bold]x[/bold] failed."),))
    print_diagnosis(odd, Console(file=out, width=100))
    assert "[bold]x[/bold]" in out.getvalue()


def test_json_and_back():
    again = from_json(to_json(SICK))
    assert again == SICK
    assert text_of(again) == text_of(SICK)
    assert again.findings[0].remedies[0].patch == ROOT.remedies[0].patch


def test_json_keeps_what_is_not_finite_and_says_whether_healthy():
    odd = Diagnosis((Finding("nan_inf", "critical", "It is lost.", numbers={"loss": float("inf")}),))
    assert '"is_healthy": false' in to_json(odd)
    assert from_json(to_json(odd)) == odd


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"findings": 3}', '{"findings": [{}], "healthy": [], "not_seen": {}}']
)
def test_other_json_is_refused(text):
    with pytest.raises(LuthierError, match="expected a diagnosis"):
        from_json(text)


def test_versions_of_the_json():
    written = to_json(SICK)
    assert from_json(written.replace('"version": 1,', "")) == SICK
    with pytest.raises(LuthierError, match="got 7: a later Luthier wrote it"):
        from_json(written.replace('"version": 1', '"version": 7'))


def test_places_and_patches_in_few_words():
    assert named(["a"]) == "a"
    assert named(["encoder", "decoder", "head"], room=20) == "encoder and 2 more"
    assert named(["encoder", "decoder", "head"], room=60) == "encoder, decoder, head"
    augment = prescribe(Finding("overfitting", "warning", "It is learnt by heart.")).remedies[0]
    assert patch_text(augment.patch) == "augment = affine"


def test_a_finding_without_anything_but_its_cause_can_be_told():
    bare = Diagnosis((Finding("plateau", "warning", "It stands still.", remedies=(Remedy("Wait."),)),))
    text = text_of(bare)
    assert text.splitlines()[0] == "WARNING  plateau  likely"
    assert "1. Wait." in text
