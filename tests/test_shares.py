"""Who has which tiles of a picture that several devices work off."""

import pytest

from fluxwatchd.engine.shares import OVERDUE, Board, Run, Share


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Who:
    device = "cpu"


def test_owner_and_helpers_take_runs_in_order_of_the_owners_size():
    share = Share(7, order="any")
    assert share.take_own(2) == Run(0, 2)
    assert share.take() == Run(2, 4)
    assert share.take_own(1) == Run(4, 5)
    assert share.take() == Run(5, 6) and share.take() == Run(6, 7)
    assert share.take() is None and not share.has_work


def test_tiles_are_done_without_a_gap_up_to_the_prefix():
    share = Share(4, order="any", done=1)
    own, helped, last = share.take_own(1), share.take(), share.take()
    share.finish(last, "last", Who)
    assert [(run, result) for run, result, _ in share.collect()] == [(last, "last")]
    assert (share.prefix, share.finished) == (1, 2)
    assert share.finish_own(own)
    assert (share.prefix, share.finished) == (2, 3)
    share.finish(helped, "helped", Who)
    assert share.finished == 3  # not collected yet
    share.collect()
    assert (share.prefix, share.finished) == (4, 4)


def test_what_a_helper_gives_back_is_the_next_to_be_done():
    share = Share(5, order="any")
    share.take_own(1)
    first, second = share.take(), share.take()
    share.give_back(second)
    share.give_back(first)
    assert share.has_work
    assert share.take_own(1) == first and share.take() == second
    share.give_back(first)  # the owner has it
    assert share.take() == Run(3, 4)


def test_an_overdue_run_is_done_by_the_owner_and_the_first_to_finish_counts():
    clock = Clock()
    share = Share(3, order="any", clock=clock)
    own, helped, other = share.take_own(1), share.take(), share.take()
    clock.now = 10
    share.finish_own(own)
    assert share.take_own(1) is None  # each has had no longer than the owner had
    clock.now = 10 * OVERDUE
    assert share.take_own(1) == helped and share.take_own(1) == other
    assert share.take_own(1) is None
    share.finish(helped, "late, and yet first", Who)
    assert not share.wanted(helped) and not share.finish_own(helped)
    assert share.finish_own(other)
    share.finish(other, "too late", Who)
    assert [run for run, _, _ in share.collect()] == [helped]
    assert share.finished == 3


def test_nothing_is_taken_of_what_is_dismissed_but_what_is_at_hand_is_still_wanted():
    share = Share(4, order="any")
    share.take_own(1)
    run = share.take()
    share.dismiss()
    assert share.take() is None and share.wanted(run)
    assert share.take_own(1) == Run(2, 3)
    share.close()
    assert not share.wanted(run)


def test_the_board_shows_what_there_is_to_do_until_it_is_over():
    rings = []
    board, share = Board(lambda: rings.append(1)), Share(3, order="any")
    with pytest.raises(KeyError), board.offer("a.png", share):
        assert board.open() == [("a.png", share)] and rings == [1]
        run = share.take()
        share.take_own(1), share.take_own(1)
        assert board.open() == []  # nothing is left
        share.give_back(run)
        assert board.open() == [("a.png", share)]
        run = share.take()
        raise KeyError
    assert board.open() == [] and not share.wanted(run)
