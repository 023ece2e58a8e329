"""Chunk buffers against a plain reference that goes through the environments one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policies import chunks

LENGTH = 16


def target_of(env, born):
    """Action i of the chunk that environment `env` got in step `born`: unlike any other."""
    return 4096.0 * env + LENGTH * born + np.arange(LENGTH)


def renew(buffers, new_episode, slots, horizon, born):
    """What the host does in one control step; gives the buffers, how many passes, and who was renewed in which."""
    buffers = chunks.drop(buffers, jnp.asarray(new_episode))
    waiting = int(buffers.used_up.sum())
    renewed = []
    for i in range(-(-waiting // slots)):
        envs = np.asarray(chunks.choose(buffers, jnp.asarray(new_episode), slots))
        targets = np.stack([np.repeat(target_of(e, born)[:, None], 6, 1) for e in envs])
        limits = chunks.first_limits(i * slots + jnp.arange(slots), waiting, len(new_episode), horizon)
        buffers = chunks.store(buffers, jnp.asarray(envs), jnp.asarray(targets), limits)
        renewed.append((envs, np.asarray(limits)))
    return buffers, renewed


def simulate(num_envs, horizon, resets):
    """Run the buffers for the given resets bool [step, env]; checks each executed action; gives passes per step."""
    slots = chunks.slots(num_envs, horizon)
    buffers = chunks.no_chunks(num_envs, LENGTH)
    born, executed, limit = np.full(num_envs, -1), np.zeros(num_envs, int), np.zeros(num_envs, int)
    episode_start = np.zeros(num_envs, int)
    passes = []
    for step, new in enumerate(resets):
        episode_start[new] = step
        buffers, renewed = renew(buffers, new, slots, horizon, step)
        for envs, limits in renewed:
            assert len(set(envs)) == slots
            born[envs], executed[envs], limit[envs] = step, 0, limits
        buffers, target = chunks.execute(buffers)
        for env in range(num_envs):
            assert born[env] >= episode_start[env], "an action from before the reset"
            assert executed[env] < limit[env] <= horizon and limit[env] >= 1
            np.testing.assert_array_equal(target[env], target_of(env, born[env])[executed[env]])
        executed += 1
        passes.append(len(renewed))
    return np.array(passes)


@pytest.mark.parametrize("seed", range(8))
def test_never_an_action_from_before_the_reset_whatever_the_resets(seed):
    random = np.random.default_rng(seed)
    num_envs, horizon = int(random.integers(1, 40)), int(random.integers(1, LENGTH + 1))
    resets = random.random((50, num_envs)) < random.choice([0.0, 0.02, 0.3, 1.0])
    resets |= (random.random(50) < 0.1)[:, None]  # mass resets among them
    simulate(num_envs, horizon, resets)


def test_in_steady_state_one_pass_a_step_is_enough():
    random = np.random.default_rng(0)
    resets = random.random((100, 320)) < 1 / 200
    passes = simulate(320, 16, resets)
    assert passes[0] == -(-320 // 23)  # all start empty
    assert (passes[1:] == 1).mean() > 0.9 and passes[1:].max() <= 2  # more only where many resets meet


def test_a_mass_reset_costs_one_step_and_is_not_repeated_a_horizon_later():
    resets = np.zeros((80, 160), bool)
    resets[30] = True
    passes = simulate(160, 16, resets)
    assert passes[30] > 5
    assert np.delete(passes, [0, 30]).max() == 1


def test_phases_are_spread_after_a_common_start():
    num_envs, horizon = 160, 16
    slots = chunks.slots(num_envs, horizon)
    buffers, renewed = renew(chunks.no_chunks(num_envs, LENGTH), np.ones(num_envs, bool), slots, horizon, 0)
    limits = np.asarray(buffers.limit)
    assert np.bincount(limits)[1:].tolist() == [num_envs // horizon] * horizon
    assert len(renewed) == -(-num_envs // slots)


def test_a_few_more_than_the_slots_are_hardly_shortened():
    num_envs, horizon = 160, 16
    buffers = chunks.no_chunks(num_envs, LENGTH).replace(limit=jnp.where(jnp.arange(num_envs) < 14, 0, horizon))
    buffers, renewed = renew(buffers, np.zeros(num_envs, bool), chunks.slots(num_envs, horizon), horizon, 0)
    assert len(renewed) == 2
    limits = np.asarray(buffers.limit)[:14]
    assert sorted(limits, reverse=True) == [horizon] * 10 + [horizon - 1] * 4
    assert (np.asarray(buffers.limit)[14:] == horizon).all()  # those renewed early run their full length


def test_new_episodes_go_before_used_up_chunks_and_these_before_old_ones():
    buffers = chunks.Chunks(
        targets=jnp.zeros((5, LENGTH, 6)), position=jnp.array([3, 16, 9, 0, 12]), limit=jnp.array([16, 16, 16, 0, 16])
    )
    new = jnp.array([False, False, False, True, False])
    assert chunks.choose(buffers, new, 5).tolist() == [3, 1, 4, 2, 0]


def test_an_unused_chunk_with_one_action_left_is_still_older_than_a_used_up_one():
    buffers = chunks.Chunks(
        targets=jnp.zeros((3, LENGTH, 6)), position=jnp.array([15, 16, 4]), limit=jnp.array([16, 16, 4])
    )
    assert set(chunks.choose(buffers, jnp.zeros(3, bool), 2).tolist()) == {1, 2}


def test_dropped_chunks_are_used_up_even_if_nothing_of_them_was_executed():
    fresh = chunks.store(
        chunks.no_chunks(3, LENGTH), jnp.arange(3), jnp.ones((3, LENGTH, 6)), jnp.array([LENGTH, 5, LENGTH])
    )
    assert not fresh.used_up.any()
    dropped = chunks.drop(fresh, jnp.array([True, False, False]))
    assert dropped.used_up.tolist() == [True, False, False]
    assert dropped.limit.tolist() == [0, 5, LENGTH]


def test_a_single_environment_executes_its_chunks_whole():
    passes = simulate(1, 16, np.zeros((65, 1), bool))
    assert passes[::16].tolist() == [1] * 5 and passes.sum() == 5


def test_nobody_executes_more_than_the_horizon():
    buffers = chunks.no_chunks(6, LENGTH)
    longest = 0
    for step in range(40):
        buffers, _ = renew(buffers, np.zeros(6, bool), 1, 4, step)
        buffers, _ = chunks.execute(buffers)
        longest = max(longest, int(buffers.position.max()))
    assert longest == 4


@pytest.mark.parametrize(("num_envs", "horizon", "expected"), [(2048, 16, 148), (1, 16, 1), (10, 1, 10), (100, 8, 15)])
def test_slots(num_envs, horizon, expected):
    assert chunks.slots(num_envs, horizon) == expected


def test_execute_inside_jit_gives_the_next_action():
    buffers = chunks.store(
        chunks.no_chunks(2, LENGTH), jnp.array([1, 0]), jnp.arange(2 * LENGTH * 6.0).reshape(2, LENGTH, 6), 16
    )
    step = jax.jit(chunks.execute)
    buffers, first = step(buffers)
    buffers, second = step(buffers)
    np.testing.assert_array_equal(first[1], np.arange(6.0))
    np.testing.assert_array_equal(second[1], np.arange(6.0) + 6)


@pytest.mark.parametrize(("num_envs", "slots", "passes"), [(1, 1, 1), (256, 256, 1), (257, 129, 2), (1024, 256, 4)])
def test_slots_where_all_are_renewed_together(num_envs, slots, passes):
    assert chunks.whole_slots(num_envs) == slots and -(-num_envs // slots) == passes


@pytest.mark.parametrize("limit", [1, 9, LENGTH])
def test_a_chunk_that_is_used_up_gives_its_last_action_again(limit):
    targets = jnp.arange(LENGTH * 6.0).reshape(1, LENGTH, 6)
    buffers = chunks.store(chunks.no_chunks(1, LENGTH), jnp.array([0]), targets, limit)
    for _ in range(limit):
        buffers, last = chunks.execute(buffers)
    for _ in range(2):
        buffers, again = chunks.execute(buffers)
        np.testing.assert_array_equal(again, last)
        np.testing.assert_array_equal(again, targets[:, limit - 1])
        assert buffers.position[0] == limit and bool(buffers.used_up[0])


def test_an_index_outside_of_a_chunk_means_its_first_or_last_action():
    targets = jnp.arange(2 * LENGTH * 6.0).reshape(2, LENGTH, 6)
    buffers = chunks.store(chunks.no_chunks(2, LENGTH), jnp.arange(2), targets, jnp.array([LENGTH, LENGTH]))
    for index, inside in ((-1, 0), (0, 0), (LENGTH - 1, LENGTH - 1), (LENGTH, LENGTH - 1)):
        np.testing.assert_array_equal(
            chunks.action(buffers, jnp.array([index, 3])), [targets[0, inside], targets[1, 3]]
        )


def test_no_index_reaches_beyond_a_chunk():
    buffers = chunks.no_chunks(2, LENGTH)
    _, target = chunks.execute(buffers)  # nothing was ever stored
    assert np.isfinite(target).all()
    assert np.isfinite(chunks.action(buffers, jnp.array([-1, LENGTH]))).all()
