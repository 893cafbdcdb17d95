"""Small helpers without domain knowledge.

In and out: files, errors, progress, randomness, checked models.
Open `checked` first: every setting and record is one.
"""
