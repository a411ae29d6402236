"""Video files, read back by the library that players are made of."""

from __future__ import annotations

from io import BytesIO

import av
import numpy as np
import pytest

from lightx2v.media.video import encode_video
from lightx2v.types import Size, Video


def quarters(frames: int, size: Size) -> np.ndarray:
    """Red, green, blue and white, and a bar that moves."""
    pixels = np.zeros((frames, size.height, size.width, 3), np.uint8)
    rows, columns = size.height // 2, size.width // 2
    for row, column, colour in ((0, 0, (255, 0, 0)), (0, 1, (0, 255, 0)), (1, 0, (0, 0, 255)), (1, 1, (255,) * 3)):
        pixels[:, row * rows :, column * columns :] = colour
    for frame in range(frames):
        pixels[frame, :4, frame : frame + 4] = 128
    return pixels


@pytest.mark.parametrize("frames", [1, 2, 17, 161])
@pytest.mark.parametrize("rate", [16, 24])
def test_a_file_that_can_be_read_back(frames: int, rate: int) -> None:
    size = Size(80, 48)
    video = Video(quarters(frames, size), rate)
    data = encode_video(video)
    with av.open(BytesIO(data)) as container:
        (stream,) = container.streams
        read = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (size.width, size.height, rate)
        assert container.duration == pytest.approx(frames / rate * 1e6, abs=2000)
    assert len(read) == frames
    inner = (slice(None), slice(8, 20), slice(44, 76))
    assert np.abs(np.stack(read)[inner].astype(int) - video.pixels[inner]).max() <= 8
    assert data.index(b"moov") < data.index(b"mdat"), "it plays while it arrives"


def test_the_same_bytes_for_the_same_video() -> None:
    video = Video(quarters(9, Size(64, 64)), 16)
    assert encode_video(video) == encode_video(video)
