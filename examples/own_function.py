"""Tune a training function of one's own: a small network on 8x8 digits, in plain PyTorch."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import luthier

EPOCHS = 9
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
train_rows, val_rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split([1400, 397])


def train(trial):
    torch.manual_seed(trial.seed)
    params = trial.params
    hidden = nn.Linear(64, params["width"])
    model = nn.Sequential(hidden, nn.ReLU(), nn.Dropout(params["dropout"]), nn.Linear(params["width"], 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=params["lr"])
    begin = 0
    if state := trial.restore():  # None at the first time
        begin = state["epoch"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for epoch in range(begin, EPOCHS):
        model.train()
        for rows in train_rows[torch.randperm(len(train_rows))].split(params["batch_size"]):
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(images[val_rows]).argmax(1) == labels[val_rows]).float().mean()
        trial.save({"epoch": epoch + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()})
        trial.report(accuracy, step=epoch + 1)  # the trial may pause here, and go on later from what was saved


study = luthier.tune(
    train,
    space={
        "lr": luthier.loguniform(1e-4, 1e-1),
        "batch_size": luthier.choice(16, 32, 64),
        "width": luthier.integers(16, 128, log=True),
        "dropout": luthier.uniform(0, 0.5),
    },
    steps=EPOCHS,
    metric="accuracy",
    trials=20,
)
print(study.best.value, study.best.params)
