"""The scoring half: programs that rules were not tuned on. Only totals over them are looked at.

Each module holds one host, a healthy program, and what people do to it; `program` is the loop they share.
"""

from patients.case import Case
from patients.scoring import (
    cancer_mlp,
    demand_gru,
    digits_autoencoder,
    digits_resnet,
    fashion_cnn,
    friedman_mlp,
    mnist_mlp,
    own_attention,
    tags_mlp,
    tokens_attention,
    waves_lstm,
    wine_mlp,
)

_HOSTS = (
    cancer_mlp,
    demand_gru,
    digits_autoencoder,
    digits_resnet,
    fashion_cnn,
    friedman_mlp,
    mnist_mlp,
    own_attention,
    tags_mlp,
    tokens_attention,
    waves_lstm,
    wine_mlp,
)

CASES: tuple[Case, ...] = tuple(case for host in _HOSTS for case in host.CASES)
