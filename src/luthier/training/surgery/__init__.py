"""Surgery on any `nn.Module` tree: dropout, normalisation, activation and initialisation, in place."""

from __future__ import annotations

from luthier.training.surgery.activations import ACTIVATIONS, Activation
from luthier.training.surgery.inits import INITS
from luthier.training.surgery.norms import NORMS
from luthier.training.surgery.operate import operate
from luthier.training.surgery.report import Change, Refusal, Report

__all__ = ["ACTIVATIONS", "INITS", "NORMS", "Activation", "Change", "Refusal", "Report", "operate"]
