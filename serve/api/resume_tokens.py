"""Resume tokens: a whole stream in about a kilobyte, sealed so that no client can read or change it.

    version     1 byte
    key id      4 bytes   the first of the key's SHA-256
    nonce      12 bytes
    sealed                AES-256-GCM-SIV (RFC 8452) of `_FIXED`'s fields, the logit biases, the stops and the state;
                          where symbols are not characters, `_FIXED`'s fields are followed by the position in the text,
                          and where the text is constrained, by `_CONSTRAINT`'s fields and the constraint

Nonces are random. With GCM-SIV, two equal nonces would reveal only whether two streams are equal, so any number of
servers may share a key for any length of time.
"""

import hashlib
import math
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from numpy.typing import NDArray

from rill.bundle import CONTEXT, Bundle
from rill.sampling import Sampling
from rill.serve.constraints.automaton import Automaton
from rill.serve.engine.types import Snapshot, StreamSpec
from rill.serve.errors import OtherModelError, StartError, TokenError

VERSION = 1
CONSTRAINED_VERSION = 2  # of tokens with a constraint: servers that know none refuse them by this, in a sentence
KEY_BYTES = 32
MOST_STOPS = 32  # keeps a token within 200 bytes more than the state, the stops and 12 bytes per bias

_HEADER = struct.Struct("<B4s12s")
_BOUND = 5  # bytes of the header that are authenticated together with the sealed part
# Model and numerics (the beginning of their SHA-256), expiry (Unix seconds, 0: never), seed, position, last symbol,
# temperature, top_k, top_p, min_p, flags, numbers of biases and stops,
# the index of the stop that may have begun, and how many of its characters.
_FIXED = struct.Struct("<16s8sQQQIfIffBIBBH")
_BIAS = struct.Struct("<If")
_LENGTH = struct.Struct("<H")
_TEXT_POSITION = struct.Struct("<Q")  # in code points
_CONSTRAINT = struct.Struct("<II")  # the state of its automaton, and the constraint's bytes
_INCLUDE_STOP, _CONSTRAINED = 1, 2  # flags


@dataclass(frozen=True)
class Resumption:
    """A stream that can be continued. `same_numerics`: its token is from a server whose texts have the same bits.

    `constraint` is as in a StreamSpec; `automaton` is made from it, if that has been done.
    """

    snapshot: Snapshot
    seed: int
    sampling: Sampling
    stops: tuple[str, ...]
    include_stop: bool
    same_numerics: bool
    constraint: bytes = b""
    automaton: Automaton | None = None


@dataclass(frozen=True)
class OpenToken:
    """A decrypted token."""

    _body: bytes

    @property
    def model_id(self) -> str:
        """Return the beginning of the model's id, 32 hex digits."""
        model: bytes = _FIXED.unpack_from(self._body)[0]
        return model.hex()

    def resumption(self, bundle: Bundle, numerics: str) -> Resumption:
        """Return the stream. Raises TokenError if it has expired, OtherModelError if it is not of this bundle.

        Its constraint, and the state of the automaton, are not checked here.
        """
        body = self._body
        model, made_with, expires, seed, position, last, temperature, top_k, top_p, min_p, *rest = _FIXED.unpack_from(
            body
        )
        flags, biases, stops, partial_stop, partial_chars = rest
        if expires and time.time() >= expires:
            raise TokenError("EXPIRED", "the resume token has expired; start again from the prompt")
        if model != bytes.fromhex(bundle.model_id)[:16]:
            raise OtherModelError(f"the resume token belongs to another model than {bundle.name!r}")
        at, text_position = _FIXED.size, 0
        if not bundle.vocabulary.are_characters:
            (text_position,) = _TEXT_POSITION.unpack_from(body, at)
            at += _TEXT_POSITION.size
        constraint, automaton_state = b"", 0
        if flags & _CONSTRAINED:
            automaton_state, length = _CONSTRAINT.unpack_from(body, at)
            at += _CONSTRAINT.size
            constraint = body[at : at + length]
            at += length
        logit_bias = dict(_BIAS.iter_unpack(body[at : at + biases * _BIAS.size]))
        at += biases * _BIAS.size
        lengths = [length for (length,) in _LENGTH.iter_unpack(body[at : at + stops * _LENGTH.size])]
        at += stops * _LENGTH.size
        texts = []
        for length in lengths:
            texts.append(body[at : at + length].decode())
            at += length
        shape = (len(bundle.vectors), bundle.layers, bundle.hidden)
        context = len(body) - 4 * bundle.context_length
        states = np.frombuffer(body[at:context], "<f4").reshape(shape)
        state: dict[str, NDArray[Any]] = {name: states[part] for part, (name, _) in enumerate(bundle.vectors)}
        if bundle.context_length:
            state[CONTEXT] = np.frombuffer(body, "<u4", offset=context).astype(np.int64)
        begun = texts[partial_stop][:partial_chars] if partial_chars else ""
        return Resumption(
            snapshot=Snapshot(position, last, state, begun, text_position, automaton_state),
            seed=seed,
            sampling=Sampling(temperature, top_k, top_p, min_p, logit_bias),
            stops=tuple(texts),
            include_stop=bool(flags & _INCLUDE_STOP),
            same_numerics=made_with == _short(numerics),
            constraint=constraint,
        )


class ResumeTokens:
    """Seals and opens resume tokens, which are valid for `ttl` seconds; 0: forever.

    The first of `keys`, 32 bytes each, encrypts; all decrypt. Raises StartError if OpenSSL is too old for the cipher.
    """

    def __init__(self, keys: Sequence[bytes], ttl: float) -> None:
        self._ttl = ttl
        try:
            self._keys = {hashlib.sha256(key).digest()[:4]: AESGCMSIV(key) for key in keys}
        except UnsupportedAlgorithm:
            raise StartError("resume tokens need OpenSSL 3.2 or newer: install cryptography's own wheel") from None
        self._first = next(iter(self._keys))

    def seal(self, bundle: Bundle, numerics: str, spec: StreamSpec | Resumption, snapshot: Snapshot) -> bytes:
        """Return the token of a stream that is at `snapshot`."""
        sampling = spec.sampling
        fixed = _FIXED.pack(
            bytes.fromhex(bundle.model_id)[:16],
            _short(numerics),
            math.ceil(time.time() + self._ttl) if self._ttl else 0,
            spec.seed,
            snapshot.position,
            snapshot.token,
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.min_p,
            _INCLUDE_STOP * spec.include_stop | _CONSTRAINED * bool(spec.constraint),
            len(sampling.logit_bias),
            len(spec.stops),
            next((at for at, stop in enumerate(spec.stops) if stop.startswith(snapshot.partial_stop)), 0),
            len(snapshot.partial_stop),
        )
        if not bundle.vocabulary.are_characters:
            fixed += _TEXT_POSITION.pack(snapshot.text_position)
        if spec.constraint:
            fixed += _CONSTRAINT.pack(snapshot.automaton_state, len(spec.constraint)) + spec.constraint
        biases = [_BIAS.pack(symbol, bias) for symbol, bias in sampling.logit_bias.items()]
        stops = [stop.encode() for stop in spec.stops]
        lengths = [_LENGTH.pack(len(stop)) for stop in stops]
        states = [snapshot.state[name].astype("<f4").tobytes() for name, _ in bundle.vectors]
        if bundle.context_length:
            states.append(snapshot.state[CONTEXT].astype("<u4").tobytes())
        version = CONSTRAINED_VERSION if spec.constraint else VERSION
        header = _HEADER.pack(version, self._first, os.urandom(12))
        body = b"".join([fixed, *biases, *lengths, *stops, *states])
        return header + self._keys[self._first].encrypt(header[_BOUND:], body, header[:_BOUND])

    def open(self, token: bytes) -> OpenToken:
        """Decrypt a token. Raises TokenError if it is damaged or forged, or the key is missing."""
        if len(token) <= _HEADER.size or token[0] not in (VERSION, CONSTRAINED_VERSION):
            raise TokenError("INVALID", "this is not a resume token of this version")
        _, key_id, nonce = _HEADER.unpack_from(token)
        if key_id not in self._keys:
            raise TokenError("INVALID", "the resume token was made with a key that this server lacks")
        try:
            return OpenToken(self._keys[key_id].decrypt(nonce, token[_HEADER.size :], token[:_BOUND]))
        except InvalidTag:
            raise TokenError("INVALID", "the resume token is damaged or forged") from None


def read_key(path: str) -> bytes:
    """Read the key in a file: exactly 32 raw bytes. Raises StartError."""
    try:
        key = Path(path).read_bytes()
    except OSError as error:
        raise StartError(f"--resume-key-file {path}: {error.strerror}") from None
    if len(key) != KEY_BYTES:
        raise StartError(
            f"--resume-key-file {path} has {len(key)} bytes; a key has exactly {KEY_BYTES}: head -c 32 /dev/urandom"
        )
    return key


@cache
def _short(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:8]
