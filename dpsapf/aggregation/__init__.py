"""Many runs become tables.

In: every record of a run (`collect`), then every run's metrics.json (`aggregate`).
Out: metrics.json; runs.csv, summary.csv, selections.csv. Open `aggregate` first: it says what a row is.
"""
