from dpsapf.support.provenance import git_commit, provenance


def test_provenance_names_versions():
    record = provenance()
    assert record["versions"]["opacus"] and record["python"].startswith("3.")


def test_the_commit_is_twelve_digits_or_unknown():
    assert git_commit() is None or len(git_commit().removesuffix("+dirty")) == 12
