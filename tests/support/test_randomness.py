from dpsapf.support.randomness import child_seed, numpy_generator, torch_generator


def test_child_seeds_depend_on_every_name():
    seeds = {child_seed(0), child_seed(1), child_seed(0, "a"), child_seed(0, "a", 1), child_seed(0, "a", 2), child_seed(0, "b")}
    assert len(seeds) == 6 and all(0 <= seed < 2**63 for seed in seeds)
    assert child_seed(0, "a", 1) == child_seed(0, "a", 1)


def test_generators_leave_the_global_state_alone():
    import numpy
    import torch

    before = torch.get_rng_state(), numpy.random.get_state()[1].copy()  # noqa: NPY002
    torch.randn(3, generator=torch_generator(0, "x"))
    numpy_generator(0, "x").normal(size=3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == numpy.random.get_state()[1]).all()  # noqa: NPY002
