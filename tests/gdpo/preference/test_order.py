"""The order of the groups in training: whole epochs, each shuffled and with a stored noise."""

from gdpo.preference.order import group_at, noise_index, training_seed


def test_every_epoch_has_every_group_once_in_another_order() -> None:
    visits = [group_at(3, position, 5) for position in range(15)]
    epochs = [[index for index, epoch in visits if epoch == e] for e in range(3)]
    assert [epoch for _, epoch in visits] == [0] * 5 + [1] * 5 + [2] * 5
    assert [sorted(order) for order in epochs] == [list(range(5))] * 3
    assert epochs[0] != epochs[1] and epochs[1] != epochs[2]


def test_the_order_depends_on_seed_and_position_alone() -> None:
    forwards = [group_at(3, position, 50) for position in range(120)]
    backwards = [group_at(3, position, 50) for position in reversed(range(120))]
    assert forwards == backwards[::-1]
    assert forwards != [group_at(4, position, 50) for position in range(120)]


def test_a_repeat_is_another_training_that_begins_with_another_noise() -> None:
    assert training_seed(3, 0) == 3
    assert len({training_seed(3, repeat) for repeat in range(4)}) == 4
    assert [noise_index(epoch, 0, 2) for epoch in range(3)] == [0, 1, 0]
    assert [noise_index(epoch, 1, 2) for epoch in range(3)] == [1, 0, 1]
