"""The doctor inside trainables of Ray Tune."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.doctor.verdicts import diagnosis_of
from luthier.errors import LuthierError
from luthier.integrations.ray import findings_of, stop_when_critical, trial_folder, watch_trial


def trainable(config: dict[str, Any]) -> None:
    import torch
    from ray import tune
    from torch import nn

    torch.manual_seed(0)
    x, y = torch.randn(256, 8), torch.randn(256, 1)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"])
    with watch_trial(model, optimizer, nn.functional.mse_loss) as watch:
        for epoch in range(4):
            for i in range(0, 256, 32):
                loss = nn.functional.mse_loss(model(x[i : i + 32]), y[i : i + 32])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step(loss, inputs=x[i : i + 32], targets=y[i : i + 32])
            tune.report({"epoch": epoch, "loss": loss.item(), **findings_of(watch)})


@pytest.mark.filterwarnings("default")  # Ray Tune's own, of which there are some
def test_findings_are_in_the_results_and_stop_the_sick(ray_here: None, tmp_path: Path) -> None:
    from ray import tune

    tuner = tune.Tuner(
        lambda config: trainable(config),
        param_space={"lr": tune.grid_search([0.01, 1e4])},
        run_config=tune.RunConfig(storage_path=str(tmp_path), stop=stop_when_critical, verbose=0),
    )
    results = tuner.fit()
    assert not results.errors
    well, sick = sorted(results, key=lambda result: result.config["lr"])
    assert well.metrics["luthier/critical"] == 0
    assert well.metrics["epoch"] == 3
    assert "nan_inf" in sick.metrics["luthier/findings"]
    assert sick.metrics["epoch"] < 3
    for result in results:
        assert (Path(result.path) / "vitals.jsonl").stat().st_size > 0


def test_the_diagnosis_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch_trial(model, optimizer, folder=tmp_path) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            optimizer.step()
            watch.step(loss)
    assert findings_of(watch)["luthier/critical"] == 0
    assert json.loads((tmp_path / "findings.json").read_text())["is_healthy"]
    assert diagnosis_of(tmp_path).is_healthy


def test_outside_a_trial_it_says_so(monkeypatch: Any) -> None:
    with pytest.raises(LuthierError, match="expects to run in a trial of Ray Tune"):
        trial_folder()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LuthierError, match=r"pip install 'ray\[tune\]'"):
        trial_folder()
