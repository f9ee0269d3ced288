"""Built-in tasks, and loading of tasks by reference. Importing this package does not import torch."""

from luthier.tasks.subjects import TASKS, Subject, as_subject, load

__all__ = ["TASKS", "Subject", "as_subject", "load"]
