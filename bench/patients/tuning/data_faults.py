"""Faults of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patients.case import Case
from patients.tuning.hosts import (
    CANCER,
    CONV_F,
    DEEP,
    DIGITS,
    DIGITS_F,
    FASHION,
    FRIEDMAN,
    FRIEDMAN_F,
    GROUPS,
    SERIES_F,
    TOKENS_F,
    TOKENS_HOST,
    WAVES,
    FunctionalMLP,
    HandRNN,
    TokenNet,
    cancer,
    cancer_raw,
    cnn,
    digit_images,
    digits,
    divided,
    fashion,
    fashion_raw,
    friedman,
    friedman_raw,
    mlp,
    series,
    tokens,
    waves,
)
from patients.tuning.loop import Split


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(77 + seed)


# ---- not finite


def missing_values(seed: int) -> Split:
    """A table with a few empty cells, read as NaN."""
    s = cancer(seed)
    x = s.x.clone()
    x[torch.rand(x.shape, generator=generator(seed)) < 0.0005] = math.nan
    return s._replace(x=x)


def standardised_constants(seed: int) -> Split:
    """Digits divided by the spread of each pixel: the corner pixels never change, 0 / 0."""
    s = digits(seed)
    mean, std = s.x.mean(0), s.x.std(0)
    return s._replace(x=(s.x - mean) / std, x_val=(s.x_val - mean) / std)


def log_of_zero(seed: int) -> Split:
    """A feature is taken to the log, and some of its values are 0: -inf."""
    s = friedman(seed)
    x = s.x.clone()
    x[:, 0] = torch.log((x[:, 0] + 1.5).clamp(min=0))
    return s._replace(x=x)


# ---- scale


def raw_cancer(seed: int) -> Split:
    x, y = cancer_raw()
    return divided(x, y.float().unsqueeze(1), 400, seed)


def raw_pixels(seed: int) -> Split:
    x, y = fashion_raw()
    return divided(x, y, 1500, seed)


def mixed_units(seed: int) -> Split:
    """One column in metres, one in milligrams."""
    s = friedman(seed)
    scale = torch.ones(10)
    scale[4], scale[7] = 3000.0, 400.0
    return s._replace(x=s.x * scale, x_val=s.x_val * scale)


def kelvin(seed: int) -> Split:
    """Temperatures in kelvin: the spread is small against the mean."""
    s = series(seed)
    return s._replace(x=s.x * 10 + 290, x_val=s.x_val * 10 + 290)


def prices(seed: int) -> Split:
    """Targets in units of money."""
    x, y = friedman_raw(seed)
    return divided((x - x.mean(0)) / x.std(0), (y * 20_000).unsqueeze(1), 1200, seed)


def big_offset(seed: int) -> Split:
    """Targets around 1,000 that vary by 10."""
    s = series(seed)
    return s._replace(y=s.y * 10 + 1000, y_val=s.y_val * 10 + 1000)


# ---- order


def by_class(split: Split) -> Split:
    order = torch.argsort(split.y.flatten(), stable=True)
    return split._replace(x=split.x[order], y=split.y[order])


# ---- labels


def fraud(seed: int) -> Split:
    """Two overlapping clouds, 2.5% of the examples in the second."""
    g = generator(seed)
    n = 2400
    y = (torch.rand(n, generator=g) < 0.025).long()
    x = torch.randn(n, 8, generator=g)
    x[:, :3] += 1.1 * y.unsqueeze(1)
    return divided(x, y, 1800, seed)


def one_class_dominates(seed: int) -> Split:
    """Waves: 94% of one form, under more noise."""
    s = waves(seed, n=5000)
    x, y = torch.cat((s.x, s.x_val)), torch.cat((s.y, s.y_val))
    keep = (y == 0) | (torch.rand(len(y), generator=generator(seed)) < 0.022)
    x, y = x[keep], y[keep]
    x = x + 0.8 * torch.randn(x.shape, generator=generator(seed))
    return divided(x, y, len(x) * 3 // 4, seed)


def noisy(split: Split, share: float, classes: int, seed: int) -> Split:
    """A share of the labels of both parts is drawn anew."""

    def of(y: Tensor, salt: int) -> Tensor:
        g = generator(seed + salt)
        wrong = torch.rand(y.shape, generator=g) < share
        return torch.where(wrong, torch.randint(0, classes, y.shape, generator=g).to(y.dtype), y)

    return split._replace(y=of(split.y, 0), y_val=of(split.y_val, 1))


def noisy_digits(seed: int) -> Split:
    return noisy(digits(seed), 0.4, 10, seed)


def noisy_fashion(seed: int) -> Split:
    return noisy(fashion(seed), 0.45, 10, seed)


def noisy_tokens(seed: int) -> Split:
    return noisy(tokens(seed), 0.45, GROUPS, seed)


def shifted_lines(seed: int) -> Split:
    """Sentences and labels read from two files, one with a header line: off by one."""
    s = tokens(seed)
    return s._replace(y=s.y.roll(1), y_val=s.y_val.roll(1))


def shuffled_apart(seed: int) -> Split:
    """Images are shuffled, their labels are not."""
    s = digit_images(seed)
    order = torch.randperm(len(s.x), generator=generator(seed))
    return s._replace(x=s.x[order])


def misread_columns(seed: int) -> Split:
    """A table sorted by name after its targets had been taken out."""
    s = friedman(seed)
    return s._replace(y=s.y[torch.randperm(len(s.y), generator=generator(seed))], y_val=s.y_val.roll(7, 0))


def truncated_labels(seed: int) -> Split:
    """Probabilities made integers: all labels become 0."""
    s = cancer(seed)
    return s._replace(y=(s.y * 0.9).long().float(), y_val=(s.y_val * 0.9).long().float())


def argmax_of_ids(seed: int) -> Split:
    """argmax over class ids that never were one-hot: always 0."""
    s = fashion(seed)
    return s._replace(y=s.y.view(-1, 1).argmax(1), y_val=s.y_val.view(-1, 1).argmax(1))


def constant_target(seed: int) -> Split:
    """The column of the target was read wrongly: it holds one value."""
    s = friedman(seed)
    return s._replace(y=torch.full_like(s.y, 0.37), y_val=torch.full_like(s.y_val, 0.37))


# ---- leaks


def target_among_features(seed: int) -> Split:
    """The table's label column stays among the features."""
    s = cancer(seed)

    def of(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat((x[:, :-1], y), 1)

    return s._replace(x=of(s.x, s.y), x_val=of(s.x_val, s.y_val))


def val_inside_train(seed: int) -> Split:
    """Trained on the whole table, from which the validation part was copied."""
    s = fashion(seed)
    return s._replace(x=torch.cat((s.x, s.x_val)), y=torch.cat((s.y, s.y_val)))


def repeated_rows(seed: int) -> Split:
    """Rows were repeated to balance classes before the split: the copies fall on both sides."""
    x, y = friedman_raw(seed, n=200)
    x, y = (x - x.mean(0)) / x.std(0), ((y - y.mean()) / y.std()).unsqueeze(1)
    return divided(x.repeat(8, 1), y.repeat(8, 1), 1200, seed)


def target_in_window(seed: int) -> Split:
    """Windows that reach one value too far: the last input is the target."""
    s = series(seed)

    def of(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat((x[:, 1:], y.unsqueeze(2)), 1)

    return s._replace(x=of(s.x, s.y), x_val=of(s.x_val, s.y_val))


# ---- training and validation differ


def val_not_scaled(seed: int) -> Split:
    """Validation pixels were not divided."""
    s = digits(seed)
    return s._replace(x_val=s.x_val * 16)


def val_inverted(seed: int) -> Split:
    """Clothes are white on black in training, black on white in validation."""
    s = fashion(seed)
    return s._replace(x_val=-s.x_val)


def val_scaled_by_itself(seed: int) -> Split:
    """Training is standardised; validation is scaled to 0-1."""
    s = friedman(seed)
    low, high = s.x_val.min(0).values, s.x_val.max(0).values
    return s._replace(x_val=(s.x_val - low) / (high - low))


# ---- inputs that say nothing


def all_unknown(seed: int) -> Split:
    """The vocabulary was built from another text: every token is 'unknown'."""
    s = tokens(seed)
    return s._replace(x=torch.full_like(s.x, 1), x_val=torch.full_like(s.x_val, 1))


def divided_as_integers(seed: int) -> Split:
    """uint8 pixels divided by 255 as whole numbers: (almost) all are 0."""
    x, y = fashion_raw()
    return divided((x.to(torch.uint8) // 255).float(), y, 1500, seed)


def multi_label(seed: int) -> Split:
    """Four independent labels of a table."""
    g = generator(seed)
    x = torch.randn(1600, 12, generator=g)
    w = torch.randn(12, 4, generator=torch.Generator().manual_seed(5))
    y = (x @ w + 0.5 * torch.randn(1600, 4, generator=g) > 0).float()
    return divided(x, y, 1200, seed)


def few(make: Callable[[int], Split], n: int) -> Callable[[int], Split]:
    def of(seed: int) -> Split:
        s = make(seed)
        return s._replace(x=s.x[:n], y=s.y[:n])

    return of


def noisy_few(seed: int) -> Split:
    x, y = friedman_raw(seed, n=600, noise=2.0)
    x = (x - x.mean(0)) / x.std(0)
    return divided(x, ((y - y.mean()) / y.std()).unsqueeze(1), 60, seed)


# Labels that belong to other examples cannot be told from labels that cannot be learnt: both names are true.
MISALIGNED = ("degenerate_labels",)


adam = torch.optim.Adam

CASES: tuple[Case, ...] = (
    CANCER.sick("nan_input", "empty-cells", data=missing_values),
    DIGITS.sick("nan_input", "constant-pixels-standardised", data=standardised_constants),
    FRIEDMAN_F.sick("nan_input", "log-of-zero", data=log_of_zero),
    CANCER.sick("unnormalised_input", "raw-table", data=raw_cancer),
    FASHION.sick(
        "unnormalised_input",
        "raw-pixels",
        data=raw_pixels,
        model=lambda: cnn(8, norm=False),
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    ),
    FRIEDMAN_F.sick("unnormalised_input", "mixed-units", data=mixed_units),
    SERIES_F.sick("unnormalised_input", "kelvin", data=kelvin),
    FRIEDMAN.sick("unscaled_target", "prices", data=prices, optimizer=partial(adam, lr=2e-3)),
    SERIES_F.sick("unscaled_target", "offset", data=big_offset),
    DIGITS_F.sick("unshuffled_data", "sorted-by-class", data=lambda s: by_class(digits(s)), shuffle=False, epochs=8),
    CONV_F.sick("unshuffled_data", "folder-order", data=lambda s: by_class(digit_images(s)), shuffle=False),
    FRIEDMAN.sick("unshuffled_data", "sorted-by-target", data=lambda s: by_class(friedman(s)), shuffle=False),
    DIGITS.sick(
        "class_imbalance",
        "fraud",
        data=fraud,
        model=lambda: mlp((8, 32, 2)),
        optimizer=partial(adam, lr=1e-3),
        epochs=8,
    ),
    WAVES.sick("class_imbalance", "one-form-dominates", data=one_class_dominates, epochs=6),
    DIGITS_F.sick("label_noise", "forty-percent", data=noisy_digits),
    FASHION.sick("label_noise", "forty-five-percent", data=noisy_fashion),
    TOKENS_HOST.sick("label_noise", "forty-five-percent", data=noisy_tokens),
    TOKENS_F.sick("label_misaligned", "off-by-one", data=shifted_lines, accepts=MISALIGNED),
    CONV_F.sick("label_misaligned", "shuffled-apart", data=shuffled_apart, accepts=MISALIGNED),
    FRIEDMAN.sick("label_misaligned", "sorted-apart", data=misread_columns, accepts=MISALIGNED),
    CANCER.sick("degenerate_labels", "truncated", data=truncated_labels),
    FASHION.sick("degenerate_labels", "argmax-of-ids", data=argmax_of_ids),
    FRIEDMAN_F.sick("degenerate_labels", "constant-target", data=constant_target),
    CANCER.sick("data_leakage", "target-among-features", data=target_among_features),
    FASHION.sick("data_leakage", "val-inside-train", data=val_inside_train),
    FRIEDMAN.sick("data_leakage", "copies-on-both-sides", data=repeated_rows),
    SERIES_F.sick("data_leakage", "target-in-window", data=target_in_window),
    DIGITS.sick("train_val_mismatch", "val-not-scaled", data=val_not_scaled),
    FASHION.sick("train_val_mismatch", "val-inverted", data=val_inverted),
    FRIEDMAN_F.sick("train_val_mismatch", "val-scaled-by-itself", data=val_scaled_by_itself),
    TOKENS_HOST.sick("constant_output", "all-unknown-tokens", data=all_unknown),
    FASHION.sick("constant_output", "integer-division", data=divided_as_integers, model=lambda: cnn(8, norm=False)),
    TOKENS_F.sick(
        "constant_output",
        "pooled-over-batch",
        model=lambda: TokenNet(pool=lambda h: h.mean((0, 1), keepdim=False).expand(len(h), -1)),
    ),
    # fit
    FASHION.sick("overfitting", "hundred-images", data=few(fashion, 100), epochs=60, batch_size=25),
    FRIEDMAN.sick("overfitting", "sixty-noisy-rows", data=noisy_few, batch_size=20, epochs=130),
    TOKENS_HOST.sick(
        "overfitting",
        "few-sentences",
        data=few(tokens, 40),
        model=lambda: TokenNet(dim=48, dropout=0.0),
        epochs=110,
        batch_size=20,
    ),
    DIGITS.sick(
        "underfitting",
        "two-units",
        model=lambda: mlp((64, 2, 10), nn.Tanh),
        optimizer=partial(adam, lr=0.02),
    ),
    FRIEDMAN_F.sick("underfitting", "one-unit", model=lambda: FunctionalMLP((10, 1, 1), torch.tanh)),
    DEEP.sick("underfitting", "two-units", model=lambda: mlp((2, 2, 1), nn.Tanh), epochs=40),
    SERIES_F.sick("underfitting", "one-state", model=lambda: HandRNN(1)),
    DIGITS.sick("too_few_epochs", "two", epochs=2, optimizer=partial(adam, lr=1e-3)),
    FRIEDMAN.sick("too_few_epochs", "two", epochs=2, optimizer=partial(torch.optim.SGD, lr=0.01)),
    TOKENS_HOST.sick("too_few_epochs", "two", epochs=2),
    # loss and task
    DIGITS.sick(
        "wrong_loss",
        "mse-on-class-ids",
        model=lambda: mlp((64, 64, 32, 1)),
        score="none",
        loss=lambda o, y: F.mse_loss(o.squeeze(1), y.float()),
    ),
    CANCER.sick("wrong_loss", "cross-entropy-of-one-score", loss=nn.CrossEntropyLoss()),
    DIGITS_F.sick(
        "wrong_loss",
        "softmax-for-multi-label",
        data=multi_label,
        model=lambda: FunctionalMLP((12, 32, 4)),
        score="labels",
        loss=lambda o, y: -(F.log_softmax(o, 1) * y).sum(1).mean(),
    ),
    CONV_F.sick(
        "wrong_loss",
        "l1-on-one-hot",
        loss=lambda o, y: F.l1_loss(o, F.one_hot(y, 10).float()),
    ),
)
