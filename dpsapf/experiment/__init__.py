"""What an experiment is, and what its stages leave for each other.

In: config/*.yaml.
Out: checked settings, runs with their ids and paths, the records' models. Open `runs` first, then `settings` and `stages`.
"""
