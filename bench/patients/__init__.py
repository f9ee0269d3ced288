"""Sick patients: small PyTorch programs with a known fault, and healthy ones, on which the doctor is scored.

`case` says what a patient is; `tuning` holds those that rules may be tuned on, `scoring` those that nobody looks at one
by one; `harness` trains and scores them; `naive` is the baseline of published thresholds.
"""
