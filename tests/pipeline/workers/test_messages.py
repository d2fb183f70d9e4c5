"""Messages arrive whole; one that is not whole yet holds up nobody."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest

from pipeline.workers.channel import Channel


def test_a_message_that_is_not_whole_yet_is_not_waited_for() -> None:
    near, far = socket.socketpair()
    with far:
        sender, receiver = Channel(far), Channel(near)
        sender.send("whole")
        whole = near.recv(1000)
        far.sendall(whole + whole[:-1])
        assert receiver.receive_arrived() == ["whole"]
        assert receiver.receive_arrived() == []
        far.sendall(whole[-1:])
        assert receiver.receive_arrived() == ["whole"]
        receiver.close()


def test_large_messages_of_several_threads_do_not_mix() -> None:
    near, far = socket.socketpair()
    sender, receiver = Channel(far), Channel(near)
    arrays = [np.full(500_000, i) for i in range(4)]
    threads = [threading.Thread(target=sender.send, args=(array,)) for array in arrays]
    for thread in threads:
        thread.start()
    received = [receiver.receive() for _ in arrays]
    for thread in threads:
        thread.join()
    assert all((array == array[0]).all() for array in received)
    assert sorted(array[0] for array in received) == [0, 1, 2, 3]
    sender.close()
    receiver.close()


def test_what_was_sent_before_the_end_still_arrives() -> None:
    near, far = socket.socketpair()
    sender, receiver = Channel(far), Channel(near)
    sender.send("last word")
    sender.close()
    assert receiver.receive_arrived() == ["last word"]
    with pytest.raises(EOFError):
        receiver.receive_arrived()
    receiver.close()
