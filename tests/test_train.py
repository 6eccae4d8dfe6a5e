"""A run compiles each of its programs once."""

from helpers.compilations import compilations_by_step


def test_a_run_compiles_its_steps_once(finished_run):
    """Of which the learning rate has two stairs; test_whole_recipe has four devices."""
    compiled = compilations_by_step(finished_run[2])
    # The first step, also where it was compiled ahead in another thread, and what its
    # log needs; the first evaluation; and then nothing more.
    start = compiled.pop(0)
    assert start.count("jit(create_state)") == start.count("jit(_fun)") == 1
    assert compiled == {5: ["jit(_fun)"]}
