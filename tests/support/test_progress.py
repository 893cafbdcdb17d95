from dpsapf.support.progress import track


def test_every_item_comes_once_and_nothing_is_printed_without_a_terminal(capsys):
    assert list(track(range(3), "work", "step", 5, 2)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
