"""The command line: one sub-command per stage, one rule per sub-command.

In: words, or what the Snakefile asks for (`rules`).
Out: one call of one public function. Open `commands` first: it is the table of contents.
"""
