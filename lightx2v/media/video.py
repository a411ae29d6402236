"""Video files: H.264 in MP4, as every browser plays it."""

from __future__ import annotations

from io import BytesIO

import av
from av.video.reformatter import ColorRange, Colorspace

from lightx2v.core import Video

OPTIONS = {"crf": "18", "preset": "medium", "mbtree": "0"}
"""x264's options: visually lossless, at the usual effort, without the macroblock tree. The tree now and then encodes
the first frame of the same pictures differently while other processes are busy (libx264 in av 18.1)."""

INDEX_NBYTES, INDEX_NBYTES_PER_FRAME = 4096, 64
"""Bytes reserved for the file's index. It comes before the frames, so that the file plays while it arrives."""


def encode_video(video: Video) -> bytes:
    """The MP4 file of a video."""
    buffer, index = BytesIO(), INDEX_NBYTES + INDEX_NBYTES_PER_FRAME * len(video.pixels)
    with av.open(buffer, "w", format="mp4", options={"moov_size": str(index)}) as container:
        stream = container.add_stream("libx264", rate=video.rate, options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = video.size.width, video.size.height, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU709, ColorRange.MPEG
        for pixels in video.pixels:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            converted = frame.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(converted))
        container.mux(stream.encode())
    return buffer.getvalue()
