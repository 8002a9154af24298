"""Makes the checksums of changed inputs right: a reader refuses others at the checksum, before its other code."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

_PNG = b"\x89PNG\r\n\x1a\n"
# Of what a member of a zip expands to, its checksum reads no more.
_MOST_BYTES = 1 << 20
_DEFLATED = 8


def sealed_png(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums of their content, as far as there are chunks."""
    image, place = bytearray(content), len(_PNG)
    while place + 12 <= len(image):
        (length,) = struct.unpack_from(">I", image, place)
        end = place + 8 + length
        if end + 4 > len(image):
            break
        struct.pack_into(">I", image, end, zlib.crc32(image[place + 4 : end]))
        place = end + 4
    return bytes(image)


def sealed_image(content: bytes) -> bytes:
    """:func:`sealed_png` of a PNG, and any other image as it is."""
    return sealed_png(content) if content.startswith(_PNG) else content


def sealed_zip(content: bytes) -> bytes:
    """A zip whose members have the checksums of their content, as far as its directory leads to them."""
    archive = bytearray(content)
    for entry in [found.start() for found in re.finditer(rb"PK\x01\x02", content)]:
        if entry + 46 > len(archive):
            continue
        method, size, whole = struct.unpack_from("<10xH8xII", archive, entry)
        (start,) = struct.unpack_from("<I", archive, entry + 42)
        if start + 30 > len(archive) or archive[start : start + 4] != b"PK\x03\x04":
            continue
        begin = start + 30 + sum(struct.unpack_from("<HH", archive, start + 26))
        body = bytes(archive[begin : begin + size])
        if method == _DEFLATED:
            try:
                body = zlib.decompressobj(-15).decompress(body, _MOST_BYTES)
            except zlib.error:
                continue
        else:
            body = sealed_image(body)
            archive[begin : begin + len(body)] = body
        checksum = zlib.crc32(body[:whole])
        for place in (entry + 16, start + 14):
            struct.pack_into("<I", archive, place, checksum)
    return bytes(archive)


def sealed_object(content: bytes) -> bytes:
    """A JSON object with the digest of its content; anything else as it is."""
    from trilemma.text_files import sealed

    try:
        value = json.loads(content)
        return json.dumps(sealed(value)).encode() if isinstance(value, dict) else content
    except (ValueError, RecursionError):
        return content


def sealed_objects(content: bytes) -> bytes:
    """:func:`sealed_object` of every line."""
    return b"\n".join(map(sealed_object, content.split(b"\n")))


def unpacked_headers(file: Path) -> list[bytes]:
    """The header of a file of tensors as JSON, with the JSON texts in it as values; and with the list of tensors."""
    tensors, _ = _split(file.read_bytes())
    texts = tensors.pop("__metadata__")
    metadata = {key: json.loads(text) if text[0] == "{" else text for key, text in texts.items()}
    # Sealing makes others.
    del metadata["digest"], metadata["tensors"]
    return [json.dumps(one).encode() for one in (metadata, {"metadata": metadata, "tensors": tensors})]


def with_header(content: bytes, file: Path) -> bytes:
    """A file of tensors with one of :func:`unpacked_headers`, the tensors of a sound file, and right digests."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from trilemma.files import with_digests

    tensors, body = _split(file.read_bytes())
    del tensors["__metadata__"]
    try:
        metadata = json.loads(content)
        if "tensors" in metadata:
            metadata, tensors = metadata["metadata"], metadata["tensors"]
        if isinstance(metadata, dict):
            metadata = {
                key: one if isinstance(one, str) else json.dumps(one) for key, one in metadata.items()
            }
        content = json.dumps({"__metadata__": metadata, **tensors}).encode()
        metadata = with_digests(metadata, load(_joined(content, body)))
        content = json.dumps({"__metadata__": metadata, **tensors}).encode()
    # Not a header of tensors, which the reader has to find too.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, SafetensorError):
        pass
    return _joined(content, body)


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:end])
    return header, content[end:]


def _joined(header: bytes, tensors: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + tensors
