"""Films whose times are not as a textbook has them: each case has its policy and its note."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
import pytest
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame

from features.contracts import Clip
from features.errors import ClipError
from pipeline.decode.sampling import DecodedFrame, iter_chosen_frames
from tests.pipeline.videos import (
    frame_number,
    grey_frames,
    keep_first,
    remux,
    spoil,
    write_ogm,
    write_video,
)

Packets: TypeAlias = "list[Packet[Any]]"
Notes: TypeAlias = dict[str, float]

B_FRAMES = {"preset": "medium", "qp": "4", "g": "10", "bf": "3",
            "x264-params": "scenecut=0:b-adapt=0"}  # fmt: skip
FEW_KEYS = {"preset": "medium", "qp": "4", "g": "50", "bf": "0", "x264-params": "scenecut=0"}
NO_SEEKING_AHEAD = {"options": {"g": "10", "deadline": "realtime", "crf": "4", "b": "0"}}
RATE = 25


def read(
    path: Path, n_phases: int = 5, *, strict: bool = False, **part: float
) -> tuple[list[DecodedFrame], Notes]:
    """The chosen frames, and the notes."""
    clip = Clip(clip_id="a", path=path, label="", split="test", **part)  # type: ignore[arg-type]
    frames = iter_chosen_frames(clip, n_phases, strict=strict)
    chosen = []
    while True:
        try:
            chosen.append(next(frames))
        except StopIteration as end:
            return chosen, dict(end.value)


def numbers(frames: Iterable[DecodedFrame]) -> list[int]:
    """The number of the frame at each tick."""
    return [frame_number(frame.rgb.numpy()) for frame in frames for _ in frame.record.phases]


def join(target: Path, *parts: Path) -> Path:
    target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target


def write_parts(
    folder: Path, ending: str, lengths: Sequence[int] = (25, 25), **how: Any
) -> list[Path]:
    """Recordings whose frames count on from one to the next, and whose clocks do not."""
    frames = iter(grey_frames(sum(lengths)))
    return [
        write_video(folder / f"{i}{ending}", list(itertools.islice(frames, length)), **how)
        for i, length in enumerate(lengths)
    ]


JOINED: dict[str, tuple[str, dict[str, Any]]] = {
    "MPEG-TS": (".ts", {"options": B_FRAMES}),
    "MPEG-TS without B frames": (".ts", {"options": FEW_KEYS}),
    "MPEG-2 in MPEG-TS": (
        ".ts", {"codec": "mpeg2video", "options": {"qmin": "1", "qmax": "1", "bf": "2"}},
    ),
    "Matroska": (".mkv", {"options": B_FRAMES}),
    "WebM": (".webm", {"codec": "libvpx"} | NO_SEEKING_AHEAD),
}  # fmt: skip


@pytest.mark.parametrize(("ending", "how"), JOINED.values(), ids=JOINED)
def test_all_frames_of_joined_recordings_count_in(
    tmp_path: Path, ending: str, how: dict[str, Any]
) -> None:
    path = join(tmp_path / f"a{ending}", *write_parts(tmp_path, ending, **how))
    frames, notes = read(path)
    assert numbers(frames) == list(range(50))
    assert [frame.record.pts_s for frame in frames] == pytest.approx(np.arange(50) / RATE)
    assert notes == {"clock_restarts": 1}


@pytest.mark.parametrize("start", [5, 22, 25, 30, 47])
@pytest.mark.parametrize("ending", [".ts", ".mkv"])
def test_a_part_of_joined_recordings_is_that_of_the_whole(
    tmp_path: Path, ending: str, start: int
) -> None:
    parts = write_parts(tmp_path, ending, options=B_FRAMES)
    path = join(tmp_path / f"a{ending}", *parts)
    frames, _ = read(path, start_s=start / RATE, end_s=(start + 3) / RATE)
    assert numbers(frames) == list(range(start, start + 3))


def test_recordings_of_any_length_and_number_are_joined(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, ".ts", (20, 6, 18, 7), options=B_FRAMES)
    frames, notes = read(join(tmp_path / "a.ts", *parts))
    assert numbers(frames) == list(range(51))
    assert notes == {"clock_restarts": 3}


SECOND_FILMS: dict[str, tuple[str, dict[str, Any]]] = {
    "MP4": (".mp4", {}),
    "QuickTime": (".mov", {}),
    "FLV": (".flv", {}),
    "ASF": (".wmv", {"codec": "wmv2", "options": {"qmin": "1", "qmax": "1"}}),
}


@pytest.mark.parametrize(("ending", "how"), SECOND_FILMS.values(), ids=SECOND_FILMS)
def test_a_second_film_that_ffmpeg_passes_over_is_said(
    tmp_path: Path, ending: str, how: dict[str, Any]
) -> None:
    first, second = write_parts(tmp_path, ending, **how)
    path = join(tmp_path / f"a{ending}", first, second)
    with pytest.raises(ClipError, match=rf"second film .* from byte {first.stat().st_size} on"):
        read(path)
    frames, _ = read(path, end_s=0.8)  # the part that was asked for is there
    assert numbers(frames) == list(range(20))


def test_one_film_of_fragments_is_one(tmp_path: Path) -> None:
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    path = write_video(
        tmp_path / "a.mp4", grey_frames(50), options=FEW_KEYS, container_options=fragments
    )
    assert numbers(read(path)[0]) == list(range(50))


def test_a_second_recording_in_a_stream_of_its_own_is_said(tmp_path: Path) -> None:
    first = write_video(tmp_path / "1.ts", grey_frames(25))
    other = {"mpegts_start_pid": "700", "mpegts_pmt_start_pid": "600"}
    second = write_video(tmp_path / "2.ts", grey_frames(25), container_options=other)
    with pytest.raises(ClipError, match=r"ends after 1.00 s, at \d\d% of the file: a second reco"):
        read(join(tmp_path / "a.ts", first, second))


def test_sound_that_begins_late_in_a_broadcast_is_no_matter(tmp_path: Path) -> None:
    """PyAV may end with an IndexError where a stream appears that was not there at first."""
    first = write_video(tmp_path / "1.ts", [*grey_frames(25)] * 8, options=FEW_KEYS)
    second = write_video(tmp_path / "2.ts", grey_frames(25), options=FEW_KEYS, audio_s=1)
    frames, _ = read(join(tmp_path / "a.ts", first, second))
    assert numbers(frames) == list(range(25)) * 9


def delay(first: int, seconds: float) -> Callable[[Packets], Iterator[Packet[Any]]]:
    """The packets, all from one on later by this much."""

    def edit(packets: Packets) -> Iterator[Packet[Any]]:
        for i, packet in enumerate(packets):
            if i >= first and packet.pts is not None and packet.dts is not None:
                packet.pts += int(seconds / packet.time_base)
                packet.dts += int(seconds / packet.time_base)
            yield packet

    return edit


def test_frames_before_the_first_known_time_count_in(tmp_path: Path) -> None:
    """Times below 0 cannot be stored in Matroska: those packets tell none."""
    source = write_video(tmp_path / "source.mkv", grey_frames(50), options=FEW_KEYS)
    path = remux(source, tmp_path / "a.mkv", delay(0, -0.6), avoid_negative_ts="disabled")
    frames, _ = read(path)
    assert numbers(frames) == list(range(50))
    assert numbers(read(path, start_s=0.4, end_s=1.0)[0]) == list(range(10, 25))


def write_gap(folder: Path, ending: str, seconds: float) -> Path:
    """A film of 2 s that stops after one of them for some time."""
    how: dict[str, Any] = {"options": FEW_KEYS | {"g": "25"}}
    if ending == ".webm":
        how = {"codec": "libvpx"} | NO_SEEKING_AHEAD
    source = write_video(folder / f"source{ending}", grey_frames(50), **how)
    return remux(source, folder / f"a{ending}", delay(25, seconds))


def test_the_clock_of_a_broadcast_that_jumps_goes_on(tmp_path: Path) -> None:
    path = write_gap(tmp_path, ".ts", 600)
    frames, notes = read(path)
    assert numbers(frames) == list(range(50))
    assert [frame.record.pts_s for frame in frames] == pytest.approx(np.arange(50) / RATE)
    assert notes == {"clock_jumps": 1}
    assert numbers(read(path, start_s=1.2, end_s=1.32)[0]) == [30, 31, 32]


@pytest.mark.parametrize("ending", [".mkv", ".mp4", ".flv", ".avi", ".webm"])
def test_a_long_still_has_few_rows_and_keeps_its_time(tmp_path: Path, ending: str) -> None:
    path = write_gap(tmp_path, ending, 600)
    frames, notes = read(path)
    assert numbers(frames) == [*range(24), *[24] * 5, *range(25, 50)]
    later_s = [frame.record.pts_s for frame in frames if frame.record.pts_s > 1]
    assert later_s == pytest.approx(601 + np.arange(25) / RATE, abs=0.01)
    assert notes == pytest.approx({"still_s": 600.04}, rel=1e-4)
    assert numbers(read(path, start_s=601.2, end_s=601.32)[0]) == [30, 31, 32]


@pytest.mark.parametrize("ending", [".ts", ".mkv"])
def test_up_to_ten_seconds_a_still_is_film(tmp_path: Path, ending: str) -> None:
    frames, notes = read(write_gap(tmp_path, ending, 9), 1)
    assert numbers(frames) == [0, 5, 10, 15, 20, *[24] * 45, 25, 30, 35, 40, 45]
    assert notes == {}


def test_the_longest_still_is_given_out_in_pieces(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", grey_frames(2), times_s=[0, 9.9])
    frames, _ = read(path, 60)
    assert max(len(frame.record.phases) for frame in frames) == 256
    phases = [phase for frame in frames if frame.record.pts_s == 0 for phase in frame.record.phases]
    assert phases == [k % 60 for k in range(2970)]


def test_an_absurd_duration_takes_no_memory(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", grey_frames(5), options=FEW_KEYS)
    content = bytearray(path.read_bytes())
    at = content.index(b"stts") + 8
    assert struct.unpack(">III", content[at : at + 12])[:2] == (1, 5)
    content[at + 8 : at + 12] = struct.pack(">I", 2_000_000_000)
    path.write_bytes(content)
    frames, notes = read(path)
    assert len(numbers(frames)) <= 5 * 5
    assert notes["still_s"] > 1e5


def store_in_order(packets: Packets) -> Iterator[Packet[Any]]:
    """Times as AVI has them: they rise in the order in which frames are stored."""
    for i, packet in enumerate(packets):
        packet.pts = packet.dts = round(i / RATE / packet.time_base)
        yield packet


STORED_ORDER: dict[str, tuple[str, str]] = {
    "H.264 in MP4": ("libx264", ".mp4"),
    "H.264 in Matroska": ("libx264", ".mkv"),
    "H.264 in MPEG-TS": ("libx264", ".ts"),
    "H.264 in FLV": ("libx264", ".flv"),
    "MPEG-4 in Matroska": ("mpeg4", ".mkv"),
    "MPEG-2 in MPEG-TS": ("mpeg2video", ".ts"),
}


@pytest.mark.parametrize(("codec", "ending"), STORED_ORDER.values(), ids=STORED_ORDER)
def test_frames_get_the_times_of_their_order_on_screen(
    tmp_path: Path, codec: str, ending: str
) -> None:
    options = B_FRAMES if codec == "libx264" else {"qmin": "1", "qmax": "1", "bf": "2"}
    source = write_video(tmp_path / "source.mp4", grey_frames(50), codec=codec, options=options)
    path = remux(source, tmp_path / f"a{ending}", store_in_order)
    frames, notes = read(path)
    assert numbers(frames) == list(range(50))
    assert [frame.record.pts_s for frame in frames] == pytest.approx(np.arange(50) / RATE)
    assert notes == {"stored_order": 1}
    assert numbers(read(path, start_s=1.2, end_s=1.32)[0]) == [30, 31, 32]


def test_b_frames_that_come_late_are_put_in_order_too(tmp_path: Path) -> None:
    source = tmp_path / "source.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=B_FRAMES)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i, rgb in enumerate(grey_frames(50)):
            frame = VideoFrame.from_ndarray(rgb)
            if i < 40:  # as many as are not looked at ahead
                frame.pict_type = PictureType.P
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames, notes = read(remux(source, tmp_path / "a.mkv", store_in_order))
    found = numbers(frames)
    assert found[:40] == list(range(40))
    assert found[-5:] == list(range(45, 50))
    assert notes == {"stored_order": 1}


def test_empty_packets_show_the_frame_before(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.avi", grey_frames(30), codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(source)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    path = write_ogm(
        tmp_path / "a.ogm", [packet if i % 3 == 0 else b"" for i, packet in enumerate(packets)]
    )
    frames, notes = read(path)
    assert numbers(frames) == [i // 3 * 3 for i in range(30)]
    assert notes == {"repeated_frames": 20}
    assert numbers(read(path, start_s=0.4, end_s=0.6)[0]) == [9, 9, 12, 12, 12]


BETWEEN_KEYS: dict[str, tuple[str, str]] = {
    "VP8 in WebM": ("libvpx", ".webm"),
    "VP9 in WebM": ("libvpx-vp9", ".webm"),
    "VP9 in MP4": ("libvpx-vp9", ".mp4"),
    "VP8 in IVF": ("libvpx", ".ivf"),
    "H.264 in Matroska": ("libx264", ".mkv"),
    "H.264 in FLV": ("libx264", ".flv"),
}


@pytest.mark.parametrize(("codec", "ending"), BETWEEN_KEYS.values(), ids=BETWEEN_KEYS)
def test_a_film_that_begins_between_key_frames_starts_at_the_first_one_of(
    tmp_path: Path, codec: str, ending: str
) -> None:
    options = B_FRAMES | {"g": "20"}
    if codec != "libx264":
        options = {"deadline": "realtime", "crf": "4", "b": "0", "keyint_min": "20", "g": "20"}
    source = write_video(tmp_path / f"s{ending}", grey_frames(50), codec=codec, options=options)
    path = remux(source, tmp_path / f"a{ending}", lambda packets: packets[7:])
    with av.open(str(path)) as container:
        flags = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    n_skipped = flags.index(True)
    assert n_skipped > 0
    frames, notes = read(path)
    assert numbers(frames) == list(range(7 + n_skipped, 50))
    assert notes == {"skipped_start_frames": n_skipped}


def promise(content: bytes, name: bytes, at: int, form: str, factor: float) -> bytes:
    """Multiply a number that follows a name in a file's header."""
    at += content.index(name)
    size = struct.calcsize(form)
    (value,) = struct.unpack(form, content[at : at + size])
    more = value * factor if form.endswith("d") else int(value * factor)
    return content[:at] + struct.pack(form, more) + content[at + size :]


PROMISES: dict[str, tuple[str, dict[str, Any], list[tuple[bytes, int, str]]]] = {
    "FLV": ("a.flv", {"codec": "flv"}, [(b"duration\0", 9, ">d")]),
    "Matroska": ("a.mkv", {}, [(b"\x44\x89\x88", 3, ">d")]),
    "AVI": ("a.avi", {"codec": "mpeg4"}, [(b"avih", 24, "<I"), (b"strh", 40, "<I")]),
}


@pytest.mark.parametrize(("name", "how", "numbers_at"), PROMISES.values(), ids=PROMISES)
@pytest.mark.parametrize("factor", [2, 1e6])
def test_a_film_shorter_than_its_header_promises_is_kept_if_the_file_is_whole(
    tmp_path: Path,
    name: str,
    how: dict[str, Any],
    numbers_at: list[tuple[bytes, int, str]],
    factor: float,
) -> None:
    path = write_video(tmp_path / name, grey_frames(50), **how)
    content = path.read_bytes()
    for place in numbers_at:
        content = promise(content, *place, factor)
    path.write_bytes(content)
    frames, notes = read(path)
    assert numbers(frames) == list(range(50))
    assert notes == pytest.approx({"missing_s": 2 * (factor - 1)}, rel=0.05)
    keep_first(path, 0.95)
    with pytest.raises(ClipError, match=r"breaks off after \d\.\d\d s of .* \(truncated\?\)"):
        read(path)


def test_a_whole_asf_file_shorter_than_its_header_promises_is_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.wmv", grey_frames(50), codec="wmv2", options={"qscale": "2"})
    properties = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
    path.write_bytes(promise(path.read_bytes(), properties, 64, "<Q", 2))
    frames, notes = read(path)
    assert numbers(frames) == list(range(50))
    assert notes["missing_s"] > 2
    keep_first(path, 0.98)
    with pytest.raises(ClipError, match=r"breaks off after \d\.\d\d s of .* \(truncated\?\)"):
        read(path)


def damage(*places: int) -> Callable[[Packets], Iterator[Packet[Any]]]:
    """The packets, some of them spoilt."""
    return lambda packets: (
        spoil(packet) if i in places else packet for i, packet in enumerate(packets)
    )


def write_damaged(folder: Path, codec: str, ending: str, *places: int) -> Path:
    options = {"libx264": FEW_KEYS, "mpeg4": {"g": "1", "qmin": "1", "qmax": "2"}}.get(codec)
    source = write_video(folder / f"s{ending}", grey_frames(50), codec=codec, options=options)
    return remux(source, folder / f"a{ending}", damage(*places))


@pytest.mark.parametrize(
    ("codec", "ending"),
    [("libx264", ".mp4"), ("libx264", ".mkv"), ("mpeg4", ".avi"), ("libvpx", ".webm")],
)
def test_over_a_damaged_packet_the_frame_before_stays_on_screen(
    tmp_path: Path, codec: str, ending: str
) -> None:
    path = write_damaged(tmp_path, codec, ending, 30)
    frames, notes = read(path)
    shown = numbers(frames)
    assert len(shown) == 50
    assert shown[:31] == [*range(30), 29]
    assert notes == pytest.approx({"damaged_packets": 1, "lost_s": 0.04})
    with pytest.raises(ClipError, match=r"damaged after 1\.20 s, and strict"):
        read(path, strict=True)


def test_over_a_damaged_last_packet_the_frame_before_stays_on_screen(tmp_path: Path) -> None:
    frames, notes = read(write_damaged(tmp_path, "libx264", ".mp4", 49))
    assert numbers(frames) == [*range(49), 48]
    assert notes["damaged_packets"] == 1


def test_damage_in_a_frame_that_no_tick_shows_is_noted(tmp_path: Path) -> None:
    source = write_video(tmp_path / "s.mp4", grey_frames(50), options=B_FRAMES)

    def is_spare(packet: Packet[Any]) -> bool:
        """No other frame refers to it (H.264's nal_ref_idc), and it is on screen at no tick."""
        return not bytes(packet)[4] & 0x60 and round(packet.pts * packet.time_base * RATE) % 5 == 2

    def damage_one(packets: Packets) -> Iterator[Packet[Any]]:
        return damage(next(i for i, packet in enumerate(packets) if is_spare(packet)))(packets)

    path = remux(source, tmp_path / "a.mp4", damage_one)
    frames, notes = read(path, n_phases=1)
    assert numbers(frames) == list(range(0, 50, 5))
    assert notes == pytest.approx({"damaged_packets": 1, "lost_s": 0.04})


def test_a_film_with_much_damage_is_refused_after_the_frames_before(tmp_path: Path) -> None:
    path = write_damaged(tmp_path, "libx264", ".mp4", *range(10, 40))
    frames = iter_chosen_frames(Clip(clip_id="a", path=path, label="", split="test"), 5)
    assert numbers(itertools.islice(frames, 9)) == list(range(9))
    with pytest.raises(ClipError, match=r"breaks off or is damaged after 0\.40 s: more than 1 s"):
        list(frames)


def test_damage_outside_of_the_part_is_no_matter(tmp_path: Path) -> None:
    path = write_damaged(tmp_path, "mpeg4", ".mp4", *range(10, 40))
    frames, notes = read(path, end_s=0.32)
    assert numbers(frames) == list(range(8))
    assert notes == {}
