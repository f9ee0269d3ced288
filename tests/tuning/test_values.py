"""Values of a space come back as they were given: in the function, in the study, after a restart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.errors import LuthierError
from luthier.files import from_json, from_stored, to_json, to_stored
from luthier.tuning.samplers import SAMPLERS
from luthier.tuning.space import choice, fixed, space_from_json, space_to_json, uniform
from luthier.tuning.study import Study
from luthier.tuning.tune import tune

NESTED = [(1, [2, (3, "a")]), [(), []], None, True, 0.5, "tuple", {"tuple": (1,), "other": [2]}]


@pytest.mark.parametrize("value", NESTED)
def test_lists_and_tuples_survive_a_file(value: Any) -> None:
    assert from_stored(from_json(to_json(to_stored(value)))) == value


def test_a_space_in_a_file_keeps_its_options() -> None:
    space = {"layers": choice((64, 64), [128], ((3, 3), [2])), "other": fixed([(1,), 2])}
    read = space_from_json(from_json(to_json(space_to_json(space))))
    assert read == space
    assert repr(read) == repr(space)


def test_a_list_and_a_tuple_are_one_option() -> None:
    layers = choice([64, 64], (128, np.int64(3)))
    assert layers.options == ([64, 64], (128, 3))
    assert layers.contains((64, 64))
    assert layers.own([128, 3]) == (128, 3)
    assert layers.own((64, 64)) == [64, 64]
    assert hash(layers) == hash(choice((64, 64), [128, 3]))
    with pytest.raises(LuthierError, match=r"must differ, got \(1, 2\) twice in \[\[1, 2\], \(1, 2\)\]"):
        choice([1, 2], (1, 2))


def test_an_option_is_the_callers_own_no_more() -> None:
    given = [64, 64]
    layers = choice(given, [128])
    given.append(32)
    assert layers.options == ([64, 64], [128])


SPACE: Any = {
    "layers": choice((64, 64), (128,), (32, 32, 32)),
    "kernels": choice([3, 3], [5, 5]),
    "sizes": fixed(((1, 2), [3])),
    "lr": uniform(0, 1),
}


def looking() -> Any:
    def look(trial: Any) -> float:
        (trial.folder / "told").write_text(repr({name: trial.params[name] for name in ("layers", "kernels", "sizes")}))
        return len(trial.params["layers"]) + float(trial.params["lr"])

    return look


@pytest.mark.parametrize("sampler", ["auto", "grid", *(name for name in SAMPLERS if name != "grid")])
def test_options_are_told_as_given(tmp_path: Path, sampler: str) -> None:
    call: Any = {"space": SPACE, "workers": 1, "folder": tmp_path, "sampler": sampler}
    first = tune(looking(), trials=4, first=[{"layers": [128], "kernels": (5, 5)}], **call)
    again = tune(looking(), trials=12, **call)
    for study in (first, again, Study.open(tmp_path)):
        for trial in study.trials:
            shown = {name: trial.params[name] for name in ("layers", "kernels", "sizes")}
            assert (trial.folder / "told").read_text() == repr(shown)
            assert [type(shown[name]) for name in ("layers", "kernels", "sizes")] == [tuple, list, tuple]
            assert SPACE["layers"].options.count(shown["layers"]) == 1
    assert first.trials[0].params["layers"] == (128,)
    assert study.table()[0]["params.layers"] == (128,)


def test_a_start_is_told_as_the_space_has_it(tmp_path: Path) -> None:
    start = {"layers": [64, 64], "kernels": (3, 3), "sizes": [[1, 2], [3]], "lr": 0.5}
    call: Any = {"space": SPACE, "workers": 1, "folder": tmp_path, "start": start}
    groups = {"wide": ["layers"], "rate": ["lr"]}
    tune(looking(), trials=2, groups=groups, **call)
    study = tune(looking(), trials=5, groups=groups, **call)
    for trial in [*study.trials, *Study.open(tmp_path).trials]:
        shown = {name: trial.params[name] for name in ("layers", "kernels", "sizes")}
        assert (trial.folder / "told").read_text() == repr(shown)
        assert shown["kernels"] == [3, 3]
        assert shown["sizes"] == ((1, 2), [3])
