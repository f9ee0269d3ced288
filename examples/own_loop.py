"""Watch a loop of one's own: a network with a fault that trains all the same."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import luthier


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(64, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        return F.softmax(self.out(F.relu(self.hidden(x))), dim=1)  # the fault: cross_entropy applies it again


torch.manual_seed(0)
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
train, val = torch.randperm(len(images)).split([1400, 397])
model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

with luthier.watch(model, optimizer) as watch:
    for _ in range(10):
        for rows in train[torch.randperm(len(train))].split(32):
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss, inputs=images[rows], targets=labels[rows])
        with torch.no_grad():
            outputs = model(images[val])
        watch.metrics(val_loss=F.cross_entropy(outputs, labels[val]))
print(watch.diagnose())
