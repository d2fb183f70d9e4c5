"""What nobody needs is not decoded, and what is chosen stays the same, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pipeline.decode.timeline
from features.contracts import Clip
from pipeline.decode.sampling import ChosenFrame, iter_chosen_frames
from pipeline.decode.skipping import NalSyntax, Needs, Role, Ticks, read_nal_syntax
from pipeline.decode.timeline import Timeline
from tests.videos import ONE_THREAD, write_video


def moving_frames(n_frames: int) -> list[NDArray[np.uint8]]:
    """Noise that moves, brightens and is cut, so that every frame differs and refers to others."""
    rng = np.random.default_rng(1)
    scenes = rng.integers(0, 200, (3, 100, 160, 3), dtype=np.uint8)
    return [scenes[i // 17 % 3, i % 40 : i % 40 + 48, i % 80 : i % 80 + 64] + i % 50
            for i in range(n_frames)]  # fmt: skip


def assert_same(
    path: Path, monkeypatch: pytest.MonkeyPatch, n_phases: int = 1, **part: float
) -> float:
    """Returns the share of frames that were decoded."""
    clip = Clip(clip_id="a", path=path, label="", split="test", **part)  # type: ignore[arg-type]
    n_decoded = []

    def choose() -> list[ChosenFrame]:
        n_decoded.append(0)
        return list(iter_chosen_frames(clip, n_phases))

    timed = Timeline._timed

    def counted(self: Any, frames: Any) -> Any:
        for found in timed(self, frames):
            n_decoded[-1] += 1
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(Timeline, "_timed", counted)
        found = choose()
        patch.setattr(pipeline.decode.timeline, "read_nal_syntax", lambda *_: None)
        expected = choose()
    assert [(f.pts_s, f.phases) for f in found] == [(f.pts_s, f.phases) for f in expected]
    assert all(torch.equal(a.rgb, b.rgb) for a, b in zip(found, expected, strict=True))
    return n_decoded[0] / n_decoded[1]


def x264(**settings: object) -> dict[str, Any]:
    text = ":".join(f"{k.replace('_', '-')}={v}" for k, v in settings.items())
    return {"options": {"preset": "fast", "crf": "20", "x264-params": text}}


def x265(**settings: object) -> dict[str, Any]:
    text = ":".join(f"{k.replace('_', '-')}={v}" for k, v in settings.items())
    return {
        "codec": "libx265",
        "options": {"preset": "fast", "x265-params": f"{ONE_THREAD}:{text}"},
    }


UNEVEN_S = list(np.cumsum(np.random.default_rng(2).choice([0.01, 0.04, 0.15, 0.5], 90)))
VIDEOS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "B frames that others refer to": ("a.mp4", x264(bframes=3), True),
    "many B frames, none referred to": ("a.mp4", x264(bframes=7, b_pyramid="none"), True),
    "a fixed pattern of many B frames": ("a.mkv", x264(bframes=16, b_adapt=0), True),
    "open groups": ("a.mp4", x264(bframes=3, keyint=12, open_gop=1), True),
    "short groups without B frames": ("a.mp4", x264(bframes=0, keyint=8, scenecut=0), True),
    "one long group without B frames": ("a.mp4", x264(bframes=0, scenecut=0), False),
    "periodic intra refresh": ("a.mp4", x264(bframes=2, intra_refresh=1, keyint=20), True),
    "several slices": ("a.mp4", x264(bframes=3, slices=3), True),
    "interlaced": ("a.mp4", x264(bframes=3, tff=1), False),
    "30000/1001 fps": ("a.mp4", x264(bframes=3) | {"fps": 30000 / 1001}, True),
    "7 fps": ("a.mp4", x264(bframes=3) | {"fps": 7}, False),
    "3 fps": ("a.mp4", x264(bframes=3) | {"fps": 3}, False),
    "uneven times": ("a.mp4", x264(bframes=3) | {"times_s": UNEVEN_S}, True),
    "uneven times in Matroska": ("a.mkv", x264(bframes=3) | {"times_s": UNEVEN_S}, True),
    "fragments": (
        "a.mp4",
        x264(bframes=3) | {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
        True,
    ),
    "a sound track": ("a.mkv", x264(bframes=3) | {"audio_s": 3.0}, True),
    "HEVC": ("a.mp4", x265(bframes=4, keyint=30), True),
    "HEVC in open groups": ("a.mkv", x265(bframes=4, keyint=12, open_gop=1), True),
    "HEVC in temporal layers": ("a.mp4", x265(bframes=4, temporal_layers=1, keyint=30), True),
    "HEVC of 10 bits": ("a.mp4", x265(bframes=4) | {"pix_fmt": "yuv420p10le"}, True),
    "a container whose times are made up": ("a.avi", x264(bframes=3), False),
    "MPEG-TS": ("a.ts", x264(bframes=3), False),
    "another codec": ("a.webm", {"codec": "libvpx-vp9"}, False),
}


@pytest.mark.parametrize(("name", "how", "spares"), VIDEOS.values(), ids=VIDEOS)
def test_the_chosen_frames_stay_the_same_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    how: dict[str, Any],
    spares: bool,
) -> None:
    path = write_video(tmp_path / name, moving_frames(90), **how)
    share = assert_same(path, monkeypatch)
    assert share < 1 if spares else share == 1
    assert_same(path, monkeypatch, 3)
    for start_s, end_s in ((0.1, 0.3), (0.77, 1.6), (1.9, 2.3), (2.6, 99.0)):
        assert_same(path, monkeypatch, start_s=start_s, end_s=end_s)


def test_frames_stamped_as_they_are_stored_are_all_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = write_video(tmp_path / "right.mp4", moving_frames(90), **x264(bframes=3))
    wrong = tmp_path / "wrong.mp4"
    with av.open(str(right)) as source, av.open(str(wrong), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream, packet.pts = stream, packet.dts
                target.mux(packet)
    assert assert_same(wrong, monkeypatch) == 1


def test_up_to_the_start_only_what_is_referred_to_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(
        tmp_path / "a.mp4", moving_frames(90), **x264(bframes=0, keyint=10, scenecut=0)
    )
    assert assert_same(path, monkeypatch, start_s=0.45, end_s=0.5) < 0.5


TICKS = Ticks(start_s=10.0, rate_hz=5.0, end_s=11.0)
TIMES: dict[str, tuple[float, float, bool]] = {
    "between two ticks": (10.01, 10.19, False),
    "up to a tick, within the tolerance": (10.01, 10.2, True),
    "from a tick on": (10.2, 10.24, True),
    "across a tick": (10.39, 10.43, True),
    "before the first": (9.0, 9.9, False),
    "before and across the first": (9.9, 10.1, True),
    "after the end": (11.05, 11.1, True),
    "the last of the file": (10.01, np.inf, True),
}


@pytest.mark.parametrize(("from_s", "to_s", "expected"), TIMES.values(), ids=TIMES)
def test_a_tick_is_met(from_s: float, to_s: float, expected: bool) -> None:
    assert TICKS.meet(from_s, to_s) is expected


S, R, L, U = Role.START, Role.REFERENCE, Role.LEAF, Role.UNKNOWN
COMING: dict[str, tuple[list[tuple[float, Role]], bool]] = {
    "a leaf between two ticks": ([(10.04, L), (10.08, R)], False),
    "a leaf at a tick": ([(10.2, L), (10.24, R)], True),
    "a leaf, nothing known after it": ([(10.04, L)], True),
    "a leaf, the next not known to be shown": ([(10.04, L), (10.08, U), (10.3, R)], True),
    "a reference": ([(10.04, R), (10.08, R), (10.12, L)], True),
    "a reference before a new start": ([(10.04, R), (10.08, R), (10.12, S)], False),
    "the same, but one between is seen": ([(10.14, R), (10.18, R), (10.22, S)], True),
    "the same, but one between is unknown": ([(10.04, R), (10.08, U), (10.12, S)], True),
    "an unknown one": ([(10.04, U), (10.08, S)], True),
}


@pytest.mark.parametrize(("coming", "expected"), COMING.values(), ids=COMING)
def test_needed_is(coming: list[tuple[float, Role]], expected: bool) -> None:
    assert Needs().is_needed(TICKS, coming) is expected


PACKETS: dict[str, tuple[NalSyntax, bytes, Role]] = {
    "H.264 IDR": (NalSyntax(codec="h264", n_length_bytes=4), b"\0\0\0\2\x65\1", S),
    "H.264 P": (NalSyntax(codec="h264", n_length_bytes=4), b"\0\0\0\2\x41\1", R),
    "H.264 b": (NalSyntax(codec="h264", n_length_bytes=4), b"\0\0\0\2\x01\1", L),
    "H.264 b of two slices": (NalSyntax(codec="h264", n_length_bytes=1), b"\2\x01\1\2\x01\1", L),
    "H.264 b and P": (NalSyntax(codec="h264", n_length_bytes=1), b"\2\x01\1\2\x41\1", U),
    "H.264 b and information": (NalSyntax(codec="h264", n_length_bytes=1), b"\2\6\1\2\1\1", L),
    "H.264 b with parameters": (NalSyntax(codec="h264", n_length_bytes=1), b"\2\x68\1\2\x01\1", U),
    "H.264 cut off": (NalSyntax(codec="h264", n_length_bytes=1), b"\5\x01\1", U),
    "nothing": (NalSyntax(codec="h264", n_length_bytes=4), b"", U),
    "HEVC IDR": (NalSyntax(codec="hevc", n_length_bytes=1), b"\2\x28\1", S),
    "HEVC open start": (NalSyntax(codec="hevc", n_length_bytes=1), b"\2\x2a\1", R),
    "HEVC trailing N": (NalSyntax(codec="hevc", n_length_bytes=1), b"\2\x00\1", L),
    "HEVC trailing N of a layer below the top": (
        NalSyntax(codec="hevc", n_length_bytes=1, top_layer=1), b"\2\x00\1", R,
    ),
    "HEVC trailing R": (NalSyntax(codec="hevc", n_length_bytes=1), b"\2\x02\1", R),
}  # fmt: skip


@pytest.mark.parametrize(("syntax", "packet", "role"), PACKETS.values(), ids=PACKETS)
def test_the_role_is_read_of(syntax: NalSyntax, packet: bytes, role: Role) -> None:
    assert syntax.read_role(packet) is role


@given(packet=st.binary(max_size=40), n_length_bytes=st.integers(1, 4), hevc=st.booleans())
def test_any_bytes_have_a_role(packet: bytes, n_length_bytes: int, hevc: bool) -> None:
    syntax = NalSyntax(codec="hevc" if hevc else "h264", n_length_bytes=n_length_bytes)
    assert syntax.read_role(packet) in Role


@pytest.mark.parametrize(
    ("codec", "container", "extradata"),
    [
        ("h264", "mov,mp4,m4a", None),
        ("h264", "mov,mp4,m4a", b"\0\0\0\1\x67\x42"),
        ("h264", "avi", b"\1\x42\0\x1e\xff"),
        ("hevc", "mov,mp4,m4a", bytes([1] + [0] * 22)),
        ("vp9", "matroska,webm", b"\1\x42\0\x1e\xff"),
    ],
)
def test_packets_that_cannot_be_read_are_left_alone(
    codec: str, container: str, extradata: bytes | None
) -> None:
    assert read_nal_syntax(codec, container, extradata) is None
