"""Nine faults by somebody who had seen the stages and the other faults, but neither the guards nor their tests."""

from tests.faults.fault import (
    ALONE,
    BOUND,
    DRAWS,
    LEDGER,
    NOISE,
    ON_SCORES,
    ON_TRAINING,
    TRAINING,
    WHO,
    Fault,
    drawn,
    edit,
)

VOTING = ("tests/evolution/test_votes.py", "tests/evolution/test_evolve.py", "tests/contracts/test_user_level.py")
TWO_PROCESSES = "tests/contracts/test_two_processes.py::test_batches_of_a_release_are_the_same_in_both"
SEVERAL_DRAWS = "tests/contracts/test_one_run_audit.py::test_several_draws_of_an_image_give_away_no_more_than_one"
ALL_STAGES = "tests/contracts/test_nothing_else_leaves.py::test_what_is_not_private_is_the_same_for_other_images[all stages]"
ONE_VOTE = "tests/contracts/test_user_level.py::test_all_images_of_a_user_together_have_one_vote"
SPENDING = ("tests/privacy/test_spend_record.py", "tests/privacy/test_spends.py", "tests/release/test_spent_twice.py")
DRAWN = "drawn = poisson_batch(self.population, rate, self.secret(generator))"
AVERAGED = "_update_average(state, options.ema_decay)"
COUNTED = "{name: release for name, release in (told | named(earlier, unit)).items() if name[0] not in own}"
ONCE = COUNTED.replace("name: release", "release: name", 1)

UNSEEN = (
    # who takes part
    Fault(
        "an empty batch is drawn again",
        WHO,
        edit(
            "privacy/meter.py",
            DRAWN,
            f"{DRAWN}\n        while not len(drawn):\n            drawn = poisson_batch(self.population, rate, generator)",
        ),
        ("tests/privacy/test_poisson.py", *TRAINING),
    ),
    Fault(
        "each process draws a batch of its own",
        WHO,
        edit(
            "finetune/train.py",
            "meter.secret(training.processes.agree_on_generator(_draws(plan).secret(*names), device))",
            "meter.secret(_draws(plan).secret(*names))",
        ),
        TRAINING,
        (TWO_PROCESSES,),
    ),
    # what one unit adds
    Fault(
        "each of an image's pairs is clipped by itself",
        BOUND,
        edit("finetune/train.py", "multiplicity=options.noise_multiplicity,", "multiplicity=1,"),
        attacks=(*ON_TRAINING, SEVERAL_DRAWS),
    ),
    Fault(
        "as many images vote as there are users, whosever they are",
        BOUND,
        edit(
            "evolution/votes.py",
            "one_image_each(self.users, secret)[units]",
            "torch.randint(len(self.users), (len(units),), generator=secret)",
        ),
        VOTING,
        (ONE_VOTE,),
    ),
    Fault(
        "after an interruption a micro-batch of scores is added again",
        BOUND,
        edit("saliency/progress.py", "self.rows = min(start + starts.step, total)", "self.rows = start"),
        ("tests/saliency/test_progress.py", "tests/saliency/test_score.py"),
        ON_SCORES,
    ),
    # noise
    Fault(
        "half of a tensor's noise is minus the other half",
        NOISE,
        drawn(
            "half = draws.flatten()[: draws.numel() // 2]\n"
            "        draws = torch.cat([half, -half, draws.flatten()[2 * len(half) :]]).reshape(like.shape)"
        ),
        DRAWS,
    ),
    Fault(
        "the key of the noise has 16 random bits",
        NOISE,
        edit(
            "privacy/noise.py",
            "Cipher(AES256(os.urandom(32)), CTR(os.urandom(16)))",
            "Cipher(AES256(os.urandom(2) * 16), CTR(bytes(16)))",
        ),
        DRAWS,
    ),
    # nothing else leaves
    Fault(
        "the average leaves out steps of a high loss",
        ALONE,
        edit(
            "finetune/train.py",
            AVERAGED,
            f"if not state.log or report.loss <= sum(row['loss'] for row in state.log) / len(state.log):\n        {AVERAGED}",
        ),
        attacks=(*ON_TRAINING, ALL_STAGES),
    ),
    # the ledger
    Fault(
        "earlier releases of equal settings count as one",
        LEDGER,
        edit(
            "privacy/spend_record.py",
            f"return {COUNTED}",
            f"once = {ONCE}\n        return {{name: release for release, name in once.items()}}",
        ),
        SPENDING,
        (),
    ),
)
