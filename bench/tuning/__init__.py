"""Search against search: Luthier and its peers, each with the same time on the same two cores.

What every contender gets
- A fresh process. The clock begins before its interpreter starts, so start-up counts; it ends after the same seconds.
- The same tensors in the same split, standardised, memory-mapped from .npy files that were written before.
- Two cores: two processes with one torch thread each, but for the tutorial, which is one process and leaves torch's
  threads at their default.
- Readings of the whole validation part after each epoch (Luthier's own way in: whenever its schedule of rungs says).
- For its winner, which is what it calls its best itself (that of its best reading for all but ours, which goes by the
  smoothed curves of trials over their full budget): four retrainings with fresh seeds over all epochs, outside the
  search's time. Of each the weights of the best epoch by validation count; the test data are read with these, after
  everything else, and steer nothing.

Contenders
- `luthier`: a user's `luthier.tune(task, budget=...)`. Derived space, schedules and doctor included. The network is one
  that the tutorial's space holds too (two hidden layers of 128 units), its size is not searched. `repeats=1` instead
  of 3: seconds for proof are seconds not searched, and the others do not prove either. No test reading.
- `luthier-engine`: the same engine with the shared training function and space, so that nothing but scheduling,
  sampling and overhead differs from the engines below.
- `optuna-tutorial`: Optuna's PyTorch example (optuna-examples, pytorch/pytorch_simple.py): TPE and median pruner at
  their defaults, one process, DataLoader at its default settings, batches of 128, 10 epochs, its own space. Kinder to
  it than the original: tensors are in memory and standardised (the original decodes images one by one). Accuracy is on
  the whole validation part, as for all others. Networks for images and texts are built in the example's style.
- `optuna-best`: two processes on one journal file, TPE with `multivariate` and `constant_liar`, Hyperband.
- `ray-asha`: Ray Tune, ASHA, actors reused, data in the object store, loggers off, random search as in ASHA's paper.
  `ray-asha-optuna`: the same with Ray's OptunaSearch (TPE).
- `one-epoch-top-k`: random configurations for one epoch each until half of the time is over, then the best ones are
  trained on from there, best first, each if its whole training still fits.
- `random`: random configurations, each over all epochs.

Hyperband and ASHA reduce by 3 from one epoch on (Optuna's default; Ray's own, 4, would leave one rung less). All
engines but the tutorial share one training function (`training.Training`: plain torch, batches selected from memory,
fused optimizers) and one space (`spaces.space_of`), without any schedule.
"""
