import pytest

from dpsapf.support.errors import MOST_LINES, Mistakes, UserError, UserErrors, one_of


def test_an_error_is_one_line_with_key_value_and_remedy():
    assert str(UserError("size", 9, "must be at most 8")) == "size = 9: must be at most 8"


def test_several_errors_are_a_line_each():
    both = UserErrors([UserError("a", 1, "x"), UserError("b", 2, "y")])
    assert str(both) == "a = 1: x\nb = 2: y" and isinstance(both, UserError) and both.key == "a"


def test_the_nearest_name_is_suggested_if_one_is_near():
    assert one_of("epsilonn", ["epsilon", "seed"]) == "must be one of epsilon, seed; did you mean epsilon?"
    assert one_of("zzz", ["epsilon", "seed"]) == "must be one of epsilon, seed"


def test_mistakes_are_collected_and_told_together():
    mistakes = Mistakes()
    mistakes.tell()
    with mistakes.noting():
        raise UserErrors([UserError("a", 1, "x"), UserError("b", 2, "y")])
    with mistakes.noting():
        raise UserError("c", 3, "z")
    with mistakes.noting():
        pass
    with pytest.raises(UserErrors, match="^a = 1: x\nb = 2: y\nc = 3: z$"):
        mistakes.tell()


def test_another_error_is_not_collected():
    with pytest.raises(ZeroDivisionError), Mistakes().noting():
        1 / 0  # noqa: B018 - the error is what is wanted


@pytest.mark.parametrize("count", [MOST_LINES, MOST_LINES + 1, 500])
def test_of_many_mistakes_the_first_of_each_kind_and_all_of_rare_kinds_are_told(count):
    """What one key mends may come a thousand times; what has to be mended by hand must not be lost behind it."""
    common = [UserError(f"common{place}", 0, "set a key") for place in range(count - 4)]
    rare = [UserError(f"rare{place}", 0, "by hand") for place in range(3)]
    mistakes = Mistakes([*common, *rare, UserError("single", 0, "alone")])
    with pytest.raises(UserErrors) as error:
        mistakes.tell()
    lines = str(error.value).splitlines()
    assert lines[:1] == ["common0 = 0: set a key"] and all(f"rare{place} = 0: by hand" in lines for place in range(3))
    assert "single = 0: alone" in lines and len(error.value.errors) == count
    assert len(lines) == min(count, MOST_LINES) + (count > MOST_LINES)
    assert (lines[-1] == f"and {count - MOST_LINES} more") == (count > MOST_LINES)
