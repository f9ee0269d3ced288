"""A study in the terminal and as a report: key figures, hostile texts, numbers that are none, nothing finished."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from luthier.recipe import Recipe
from luthier.show.report import write_report
from luthier.show.report_data import best_over_time, curve
from luthier.show.terminal import TuneConsole
from luthier.tuning.edges import Edge
from luthier.tuning.function_search import Values
from luthier.tuning.importance import Importance
from luthier.tuning.space import choice, loguniform, uniform
from luthier.tuning.state import BASELINE, State
from luthier.tuning.study import Comparison, Study, Trial

HOSTILE = "</script><script>alert(1)</script><b>&\"'"
ECHARTS = files("luthier.show").joinpath("vendor", "echarts")


class FakeStudy:
    """What show/ reads of a study, as plain values."""

    def __init__(
        self,
        trials: list[Trial],
        comparison: Comparison | None = None,
        groups: dict[str, list[str]] | None = None,
        name: str = "toy",
    ) -> None:
        self.folder, self.name, self.metric, self.direction = Path("studies/toy"), name, "accuracy", "max"
        self.state = State(self.folder, {"task": {"metric": "accuracy", "direction": "max"}})
        self.objectives, self.front = {"accuracy": "max"}, list[Trial]()
        self.task = {"name": name}
        self.baseline = self.start = Recipe(lr=0.3)
        self.space = {"lr": loguniform(1e-4, 0.1), "dropout": uniform(0, 0.5), "schedule": choice("cosine", "step")}
        self.widened: dict[str, Any] = {}
        self.crowded: list[Any] = []
        self.groups, self.trials, self.comparison = groups, trials, comparison
        self.settings = {
            "sampler": "tpe",
            "strategy": "halving",
            "trials": 9,
            "budget_s": 60.0,
            "workers": 2,
            "seed": 0,
        }
        self.elapsed_s, self.ended = 42.0, "finished"

    full_values, _present = Study.full_values, Study._present

    def importances(self) -> list[Importance]:
        return [Importance("lr", 0.75, 0.01), Importance("dropout", 0.25, 0.3)]

    @property
    def best(self) -> Trial | None:
        finished = [trial for trial in self.trials if trial.state == "finished" and trial.kind == "search"]
        return max(finished, key=lambda trial: trial.value or 0.0, default=None)

    def recipe(self, number: int) -> Recipe:
        return self.baseline.replace(self.trials[number].values)

    def best_by_arm(self) -> dict[str, Trial]:
        finished = [trial for trial in self.trials if trial.state == "finished" and trial.arm != BASELINE]
        return {trial.arm: trial for trial in sorted(finished, key=lambda trial: trial.value or 0)}


def rows(values: list[float]) -> list[dict[str, Any]]:
    return [
        {"kind": "epoch", "step": 10 * n, "epoch": float(n), "examples": 160 * n, "time_s": float(n), "lr": 0.1}
        | {"train_loss": 1 - value, "val_loss": 1 - value, "val_accuracy": value}
        for n, value in enumerate(values, 1)
    ]


def trial(number: int, value: float | None, state: str = "finished", **changes: Any) -> Trial:
    values = {} if number == 0 else {"lr": 0.01 * number, "dropout": 0.1}
    made = Trial(
        number=number, kind="search", arm="baseline" if number == 0 else "all", values=values, seed=0, state=state,
        reason="", value=value, step=20, total_steps=20, time_s=2.0, started_s=3.0 * number, ended_s=3.0 * number + 2,
        rows=rows([0.5, value]) if value is not None else [], folder=Path("studies/toy/trials/0000"), of=None,
        scores={} if value is None else {"accuracy": value},
    )  # fmt: skip
    return replace(made, **changes)


def full_study(**changes: Any) -> Any:
    trials = [
        trial(0, 0.85),
        trial(1, 0.9462),
        trial(2, 0.7, "stopped", reason="outranked at step 10"),
        trial(3, None, "failed", reason=HOSTILE, rows=rows([math.nan, math.inf])),
        trial(4, 0.851, kind="repeat", values={}, of=0, seed=1),
    ]
    test = {"baseline": {"loss": 0.5, "accuracy": 0.8412}, "winner": {"loss": 0.2, "accuracy": 0.9377}}
    compared = Comparison("accuracy", "max", [0.85, 0.851], [0.9462, 0.9432], 0.0942, 0.09, 0.098, 1, test)
    options = {"trials": trials, "comparison": compared, "groups": {"all": ["lr", "dropout"]}}
    return FakeStudy(**{**options, **changes})


class Page(HTMLParser):
    """Visible text and script elements of a page, as a browser would split them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.texts: list[str] = []
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)
        elif self.inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0][1], parse_constant=pytest.fail)


def page_of(source: Any, tmp_path: Path) -> str:
    return write_report(source, tmp_path / "report.html").read_text()


def test_the_report_tells_the_key_figures(tmp_path: Path) -> None:
    text = Page(page_of(full_study(), tmp_path)).text
    assert "Changing lr and dropout took validation accuracy from 85.05% to 94.47%" in text
    for figure in ("+9.42 points", "95% interval 9.00 to 9.80 over 2 seeds: certain", "93.77%", "84.12%", "0.01"):
        assert figure in text
    assert "luthier.fit(task, luthier.Recipe.load('studies/toy/trials/0000/recipe.json'))" in text
    study = full_study()
    study.settings["reference"] = "toy.py:task"
    assert "luthier fit toy.py:task --recipe studies/toy" in Page(page_of(study, tmp_path)).text
    assert re.search(r"lr\s*75%\s*clear\s*dropout\s*25%\s*within chance", text)


def test_a_target_is_told_and_curves_of_single_readings_are_not_drawn(tmp_path: Path) -> None:
    study = full_study()
    study.settings["target"], study.ended = 0.94, "target"
    page = page_of(study, tmp_path)
    assert "until 94.00%, reached" in page
    assert "of all trials over optimizer steps" in page
    short = full_study(trials=[replace(each, rows=each.rows[:1]) for each in full_study().trials])
    assert "Learning curves" not in page_of(short, tmp_path)


def test_the_data_holds_every_search_trial(tmp_path: Path) -> None:
    data = Page(page_of(full_study(), tmp_path)).data
    assert [each["number"] for each in data["trials"]] == [0, 1, 2, 3]
    assert [each["role"] for each in data["trials"]] == ["baseline", "winner", "", ""]
    assert data["trials"][1]["curve"]["val_accuracy"] == [0.5, 0.9462]
    assert data["best"] == [[2.0, 0.85], [5.0, 0.9462], [42.0, 0.9462]]
    assert [axis["path"] for axis in data["space"]] == ["lr", "dropout", "schedule"]


def test_options_of_the_same_text_are_told_apart(tmp_path: Path) -> None:
    trials = [trial(0, 0.8), trial(1, 0.9, values={"n": None}), trial(2, 0.7, values={"n": "none"})]
    study = full_study(trials=trials, comparison=None)
    study.baseline, study.start = None, Values({"n": None})
    study.space = {"n": choice(None, "none", 1, "1", "a")}
    data = Page(page_of(study, tmp_path)).data
    assert data["space"][0]["options"] == ["None", "'none'", "1", "'1'", "a"]
    assert [each["values"]["n"] for each in data["trials"]] == ["None", "None", "'none'"]


def test_the_front_is_drawn_and_told(tmp_path: Path) -> None:
    found = [trial(0, 0.85), trial(1, 0.9), trial(2, 0.7)]
    sizes = [5_000.0, 9_000.0, 7_000.0]
    trials = [replace(t, scores={"accuracy": t.value, "parameters": n}) for t, n in zip(found, sizes, strict=True)]
    compared = Comparison("accuracy", "max", [0.85], [0.9], 0.05, 0.01, 0.09, 1, None, {"parameters": (5_000, 9_000)})
    study = full_study(trials=trials, comparison=compared)
    study.objectives, study.front = {"accuracy": "max", "parameters": "min"}, [trials[1], trials[0]]
    study.state = State(study.folder, {**study.state.description, "objectives": study.objectives})
    html = page_of(study, tmp_path)
    page = Page(html)
    assert 'data-chart="front:parameters"' in html
    assert (page.data["front"], [cost["name"] for cost in page.data["costs"]]) == ([1, 0], ["parameters"])
    assert page.data["trials"][2]["scores"] == {"accuracy": 0.7, "parameters": 7000}
    output = io.StringIO()
    console = TuneConsole(Console(file=output, width=160))
    console.started(study)
    console.finished(study)
    told = output.getvalue()
    assert "for the highest validation accuracy, lowest parameters" in told
    assert re.search(r"The front: .*\n.*\n#1 +90.00% +9,000 .*\n#0 +85.00% +5,000 +the baseline", told)
    assert re.search(r"\nparameters +5,000 +9,000", told)


def test_numbers_that_are_none_are_left_out_of_charts(tmp_path: Path) -> None:
    failed = Page(page_of(full_study(), tmp_path)).data["trials"][3]
    assert failed["value"] is None
    assert failed["curve"].get("val_accuracy") is None
    assert curve(rows([0.5, math.nan]), ["val_accuracy"], 100)["val_accuracy"] == [0.5, None]


def test_every_ended_trial_says_why_and_what_was_widened(tmp_path: Path) -> None:
    study = full_study()
    study.widened = {"lr": loguniform(1e-4, 0.4)}
    study.crowded = [Edge("dropout", study.space["dropout"], "upper", (1, 3, 0))]
    study.trials[1] = replace(study.trials[1], reason="all 2 epochs trained", source="known-good settings")
    told = Page(page_of(study, tmp_path)).text
    for words in ("finished: all 2 epochs trained", "stopped: outranked at step 10", "(known-good settings)"):
        assert words in told
    assert "Widened during the search, where the best trials lay at the end of a range: lr" in told
    narrow = "Range too narrow? the best trials (#1, #3, #0) lie at the upper end of dropout 0..0.5"
    assert narrow in told
    output = io.StringIO()
    TuneConsole(Console(file=output, width=200)).finished(study)
    assert narrow.lower() in output.getvalue()


def test_texts_cannot_break_out(tmp_path: Path) -> None:
    html = page_of(full_study(name=HOSTILE), tmp_path)
    page = Page(html)
    assert [attrs.get("type") for attrs, _ in page.scripts] == ["application/json", None, None]
    assert "<script>alert" not in html
    assert HOSTILE in page.text


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    html = page_of(full_study(), tmp_path)
    own = html.replace(ECHARTS.joinpath("echarts.min.js").read_text(), "")
    assert len(own) < len(html) / 4
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}|@import|url\(|<link|\ssrc=", own)


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial(0, None, "running", ended_s=None, rows=[])],
        [trial(0, None, "waiting", started_s=None, ended_s=None), trial(1, None, "failed", reason="out of memory")],
        [trial(0, math.nan, "failed", rows=rows([math.nan]))],
    ],
    ids=["no trial", "one running", "only failed", "nan"],
)
def test_a_study_without_a_result_says_so(tmp_path: Path, trials: list[Trial]) -> None:
    study: Any = FakeStudy(trials)
    page = Page(page_of(study, tmp_path))
    assert "No trial of toy has finished yet." in page.text
    assert page.data["best"] == []
    output = io.StringIO()
    console = TuneConsole(Console(file=output))
    console.started(study)
    console.finished(study)
    assert "No trial of toy has finished yet." in output.getvalue()


def test_what_was_outranked_is_counted_and_not_listed() -> None:
    waiting = [trial(number, 0.5, "stopped", step=4, reason="outranked") for number in (1, 2, 3)]
    study = FakeStudy([trial(0, 0.6), waiting[0], *(replace(each, may_return=True) for each in waiting[1:])])
    output = io.StringIO()
    console = TuneConsole(Console(file=output, width=200))
    console.started(FakeStudy([]))  # type: ignore[arg-type]
    for each in study.trials:
        console.trial(each)
    study.ended = "interrupted"
    console.finished(study)  # type: ignore[arg-type]
    assert re.findall(r"^ *#(\d)  stopped", output.getvalue(), re.M) == ["1"]
    assert "\n2 of 4 trials were outranked: a call with larger totals may go on" in output.getvalue()
    assert "\ninterrupted, the same call goes on · 4 trials in 42.0 s" in output.getvalue()


def test_an_interrupt_is_answered_at_once_and_once() -> None:
    output = io.StringIO()
    console = TuneConsole(Console(file=output, width=200))
    for doing in ("search", "stopping", "stopping"):
        console.progress({"doing": doing})
    assert re.findall(r"^stopping: .* Ctrl-C again leaves at once$", output.getvalue(), re.M) == [
        output.getvalue().strip()
    ]


@pytest.mark.parametrize(
    ("budget", "elapsed_s", "start", "repeats", "told"),
    [
        ({"budget_s": 60.0}, 20.0, BASELINE, 3, "the budget beside the retraining of winner and baseline ·"),
        ({"budget_s": 60.0}, 20.0, "all", 3, "the budget beside the retraining of the winner ·"),
        ({"budget_s": None, "budget": "300 epochs"}, 20.0, "all", 0, "the budget ·"),
        ({"budget_s": 60.0}, 58.0, BASELINE, 3, None),
    ],
)
def test_a_study_that_ends_before_its_time_says_why(
    budget: dict[str, Any], elapsed_s: float, start: str, repeats: int, told: str | None
) -> None:
    study: Any = FakeStudy([trial(0, 0.6, arm=start)])
    study.state.trials = study.trials
    study.ended, study.elapsed_s = "budget", elapsed_s
    study.settings = {**study.settings, **budget, "repeats": repeats}
    output = io.StringIO()
    TuneConsole(Console(file=output, width=200)).finished(study)
    words = re.search(r"no further trial fits into (.* ·) 1 trial in", output.getvalue())
    assert (words and words[1]) == told


def test_the_baseline_that_holds_is_told_and_marked(tmp_path: Path) -> None:
    test = {"baseline": {"accuracy": 0.8}, "winner": {"accuracy": 0.7}}
    behind = Comparison(
        "accuracy",
        "max",
        [0.85, 0.86],
        [0.83, 0.82],
        -0.03,
        -0.05,
        -0.01,
        1,
        test,
    )
    study = full_study(comparison=behind)
    html = page_of(study, tmp_path)
    page = Page(html)
    assert page.data["compared"] == "best other trial"
    assert "Best other trial and baseline stand out" in page.text
    assert "No trial is shown to beat the baseline" in page.text
    assert not re.search("[Ww]inner", page.text)
    assert "The best of all, 94.62%, is the ceiling of this space." in page.text


def test_the_ceiling_of_a_space_is_its_own(tmp_path: Path) -> None:
    study = full_study(trials=[trial(0, 0.97), trial(1, 0.9), trial(2, 0.91)])
    assert "The best of all, 91.00%, is the ceiling of this space." in Page(page_of(study, tmp_path)).text
    output = io.StringIO()
    TuneConsole(Console(file=output, width=200)).finished(study)
    assert "ceiling of this space: 91.00%" in output.getvalue()


def test_a_single_seed_is_one_seed() -> None:
    compared = Comparison("accuracy", "max", [0.85], [0.9], 0.05, math.nan, math.nan, 1, None)
    output = io.StringIO()
    TuneConsole(Console(file=output, width=160)).finished(full_study(comparison=compared))
    assert "validation accuracy, 1 seed " in output.getvalue()


def test_a_gain_within_noise_is_no_success(tmp_path: Path) -> None:
    study = full_study()
    study.comparison = replace(study.comparison, low=-0.01)
    assert "No trial is shown to beat the baseline" in Page(page_of(study, tmp_path)).text


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    thinned = curve(rows([n / 1000 for n in range(1000)]), ["val_accuracy"], 50)
    assert len(thinned["step"]) <= 50
    assert thinned["step"][-1] == 10_000


def test_lower_is_better_for_a_loss() -> None:
    study = full_study()
    study.direction = "min"
    assert [value for _, value in best_over_time(study)] == [0.85, 0.7, 0.7]


def test_the_vendored_library_is_the_official_file() -> None:
    expected, name = ECHARTS.joinpath("SHA256").read_text().split()
    assert sha256(ECHARTS.joinpath(name).read_bytes()).hexdigest() == expected
    assert f'version="{ECHARTS.joinpath("VERSION").read_text().strip()}"' in ECHARTS.joinpath(name).read_text()
    assert {"LICENSE", "NOTICE"} <= {path.name for path in ECHARTS.iterdir()}


def test_a_pipe_gets_one_line_per_ended_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    study = full_study()
    ended, study.trials = study.trials, []
    output = io.StringIO()
    console = TuneConsole(Console(file=output, width=200, markup=False))
    console.trial(replace(ended[0], state="paused"))  # tidying, before the start
    console.started(study)
    for each in ended:
        console.trial(replace(each, state="running", value=None))
        console.trial(each)
        console.progress({"elapsed_s": 3.0, "doing": "search"})
    text = output.getvalue()
    assert "\x1b" not in text
    lines = [line for line in text.splitlines() if line.lstrip().startswith("#")]
    assert [line.split()[0] for line in lines] == ["#0", "#1", "#2", "#3", "#4"]
    assert [line.endswith("best so far") for line in lines] == [True, True, False, False, False]
    assert HOSTILE in lines[3]
    assert "(outranked at step 10)" in lines[2]
    console.widened({"lr": loguniform(1e-4, 0.4)})
    assert "range widened: lr 0.0001..0.4 log" in output.getvalue()


def test_a_budget_in_epochs_is_told(tmp_path: Path) -> None:
    output, study = io.StringIO(), full_study()
    study.settings |= {"budget": "300 epochs", "budget_s": None}
    console = TuneConsole(Console(file=output, width=160))
    console.started(study)
    assert "9 trials, at most 300 epochs" in output.getvalue()
    console.progress({"spent": "120 of 300 epochs"})
    console.console.print(console._view())
    assert "120 of 300 epochs" in output.getvalue()
    assert "at most 300 epochs" in write_report(study, tmp_path / "report.html").read_text()


def test_the_result_is_told() -> None:
    output = io.StringIO()
    study = full_study()
    console = TuneConsole(Console(file=output, width=160))
    console.started(study)
    console.finished(study)
    text = output.getvalue()
    for figure in (
        "+9.42 points, 95% interval 9.00 to 9.80 over 2 seeds: certain",
        "84.12%",
        "93.77%",
        "ceiling of this space: 94.62%",
        "94.47% ± 0.21",
    ):
        assert figure in text
    assert re.search(r"lr +0\.3 +0\.01", text)


def test_a_terminal_gets_a_live_view_and_the_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    study = full_study()
    study.trials[2] = replace(study.trials[2], state="running")
    output = io.StringIO()
    console = TuneConsole(Console(file=output, width=160, force_terminal=True))
    console.started(study)
    console.progress({"elapsed_s": 20.0, "doing": "repeats"})
    text = output.getvalue()
    assert "5 trials: 3 finished, 1 running, 1 failed" in text
    assert "best 94.62% (#1)" in text
    assert "0:20 elapsed, 0:40 left" in text
    console.finished(study)
    assert output.getvalue().rindex("\x1b[?25h") > output.getvalue().rindex("\x1b[?25l")
