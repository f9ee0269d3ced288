"""check: an examination of a task before a long training, in at most a minute."""
