"""Inputs for fuzzing, from a `random.Random`: near what is right, on the edges of what is allowed, or beyond."""

import json

from rill.vocabulary import UNKNOWN

_BYTES = [b"", b"\0", b"\xff" * 9 + b"\x01", b"\xff" * 8, b"\x80" * 10, b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\1\0\0\0"]
_CHARACTERS = "ab é\n\0\r\u2028\ufeff\ufffd漢😀\U0010ffff"
_WHOLE = [0, 1, -1, 2, 31, 32, 33, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63, 2**64 - 1, 2**64]
_FLOATS = [0.0, -0.0, 1.0, 0.5, -1.0, 1e-45, 1e-50, 3.4028234663852886e38, float("inf"), float("-inf"), float("nan")]


def mutated(random, data, others):
    """`data` with a few changes: bits, bytes, pieces taken out, put in, repeated, or taken from others."""
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        at = random.randint(0, len(data))
        end = min(at + random.choice((0, 1, 2, 8, 64)), len(data))
        match random.randrange(6):
            case 0 if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
            case 1:
                data = data[:at] + data[end:]
            case 2:
                data = data[:at] + random.choice(_BYTES) + data[end:]
            case 3:
                data = data[:at] + data[at:end] * random.choice((2, 3, 50)) + data[end:]
            case 4:
                other = random.choice(others)
                data = data[:at] + other[random.randint(0, len(other)) :]
            case _:
                data = data[:at] + bytes(random.randrange(256) for _ in range(4)) + data[end:]
    return data[:65_536]


def text(random, most=8, characters=_CHARACTERS):
    return "".join(random.choice(characters) for _ in range(random.randint(0, most)))


def message(random, kind, tokens=(b"",)):
    """A message with values that are on the edge of what they may be, or beyond."""
    made = kind()
    for field in kind.DESCRIPTOR.fields:
        if random.random() < 0.6:
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            for _ in range(random.randint(0, 3)):
                key = random.choice((*"ab é\n", "", "ab", "漢", UNKNOWN, "😀" * 2000))
                made.logit_bias[key] = random.choice(_FLOATS)
        elif field.message_type:
            part = message(random, field.message_type._concrete_class, tokens)
            if field.is_repeated:
                getattr(made, field.name).append(part)
            else:
                getattr(made, field.name).CopyFrom(part)
        elif field.is_repeated:
            values = [_value(random, field, tokens) for _ in range(random.choice((1, 2, 33)))]
            getattr(made, field.name).extend(values)
        else:
            setattr(made, field.name, _value(random, field, tokens))
    return made


def _value(random, field, tokens):
    kind = type(field)
    match field.type:
        case kind.TYPE_STRING:
            most = 3000 if random.random() < 0.02 else 8
            return text(random, most, "ab é\n" if random.random() < 0.8 else _CHARACTERS)
        case kind.TYPE_BYTES:
            values = tokens
        case kind.TYPE_BOOL:
            values = (False, True)
        case kind.TYPE_FLOAT | kind.TYPE_DOUBLE:
            values = _FLOATS
        case kind.TYPE_ENUM:
            values = (0, 1, 2, 3, 99, -1)
        case _:
            signed = field.type in (kind.TYPE_INT32, kind.TYPE_INT64)
            bits = 32 if field.type in (kind.TYPE_INT32, kind.TYPE_UINT32) else 64
            least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
            values = (*(value for value in _WHOLE if least <= value <= most), random.randint(least, most))
    return random.choice(values)


def mutated_json(random, value):
    """A copy of `value` with a value of another kind somewhere in it, or one more, or one less."""
    if isinstance(value, dict | list) and value and random.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = random.choice(keys)
        changed = value.copy()
        match random.randrange(6):
            case 0:
                del changed[key]
            case 1 if isinstance(value, dict):
                changed[random.choice((text(random), *value))] = _json_value(random)
            case 1:
                changed.insert(key, random.choice((changed[key], _json_value(random))))
            case _:
                changed[key] = mutated_json(random, value[key])
        return changed
    return _json_value(random)


def _json_value(random):
    deep = "deep"
    for _ in range(random.choice((0, 1, 2, 3))):
        deep = random.choice(([deep], {"a": deep}))
    words = (text(random), "a", "é", "\ud800", "a" * 70, "-inf", "gru", "tag", "state_h")
    return random.choice((None, True, False, random.choice(_WHOLE), random.choice(_FLOATS), random.choice(words), deep))


def json_bytes(random, value):
    """As a file has it; now and then with what JSON's own rules forbid, or nested as deep as a reader can follow."""
    written = json.dumps(value, ensure_ascii=random.random() < 0.5).encode(errors="surrogatepass")
    if random.random() < 0.01:
        depth = random.randint(900, 1000)
        inner = b"[" * depth + b"]" * depth
        at = random.choice([at for at, byte in enumerate(written) if byte in b'0"[{'] or [0])
        written = written[:at] + inner + random.choice((b"", written[at:], b"}"))
    return written
