from dpsapf.support.errors import UserError, UserErrors, one_of


def test_an_error_is_one_line_with_key_value_and_remedy():
    assert str(UserError("size", 9, "must be at most 8")) == "size = 9: must be at most 8"


def test_several_errors_are_a_line_each():
    both = UserErrors([UserError("a", 1, "x"), UserError("b", 2, "y")])
    assert str(both) == "a = 1: x\nb = 2: y" and isinstance(both, UserError) and both.key == "a"


def test_the_nearest_name_is_suggested_if_one_is_near():
    assert one_of("epsilonn", ["epsilon", "seed"]) == "must be one of epsilon, seed; did you mean epsilon?"
    assert one_of("zzz", ["epsilon", "seed"]) == "must be one of epsilon, seed"
