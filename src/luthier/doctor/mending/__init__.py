"""Mending: try the prescribed patches, keep what is shown to help. The entry is `luthier.doctor.mend`.

`rounds` is the loop, `trials` trains within a budget, `candidates` says what to try, `judging` what is noise.
"""
