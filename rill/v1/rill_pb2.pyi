from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_DRAINING: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_DRAINING: FinishReason

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "seed", "logit_bias", "constraint")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    logit_bias: _containers.ScalarMap[str, float]
    constraint: Constraint
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., logit_bias: _Optional[_Mapping[str, float]] = ..., constraint: _Optional[_Union[Constraint, _Mapping]] = ...) -> None: ...

class Constraint(_message.Message):
    __slots__ = ("regex", "choices", "json_schema", "terminator")
    class Choices(_message.Message):
        __slots__ = ("text",)
        TEXT_FIELD_NUMBER: _ClassVar[int]
        text: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, text: _Optional[_Iterable[str]] = ...) -> None: ...
    REGEX_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    TERMINATOR_FIELD_NUMBER: _ClassVar[int]
    regex: str
    choices: Constraint.Choices
    json_schema: str
    terminator: str
    def __init__(self, regex: _Optional[str] = ..., choices: _Optional[_Union[Constraint.Choices, _Mapping]] = ..., json_schema: _Optional[str] = ..., terminator: _Optional[str] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("model", "prompt", "resume_token", "max_chars", "sampling", "stop", "include_stop", "logprobs", "resume_every", "chars_per_second", "seeds")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MAX_CHARS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    RESUME_EVERY_FIELD_NUMBER: _ClassVar[int]
    CHARS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt: str
    resume_token: bytes
    max_chars: int
    sampling: Sampling
    stop: _containers.RepeatedScalarFieldContainer[str]
    include_stop: bool
    logprobs: int
    resume_every: int
    chars_per_second: float
    seeds: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., prompt: _Optional[str] = ..., resume_token: _Optional[bytes] = ..., max_chars: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., stop: _Optional[_Iterable[str]] = ..., include_stop: bool = ..., logprobs: _Optional[int] = ..., resume_every: _Optional[int] = ..., chars_per_second: _Optional[float] = ..., seeds: _Optional[_Iterable[int]] = ...) -> None: ...

class CharLogprob(_message.Message):
    __slots__ = ("character", "logprob", "alternatives")
    class Alternative(_message.Message):
        __slots__ = ("character", "logprob")
        CHARACTER_FIELD_NUMBER: _ClassVar[int]
        LOGPROB_FIELD_NUMBER: _ClassVar[int]
        character: str
        logprob: float
        def __init__(self, character: _Optional[str] = ..., logprob: _Optional[float] = ...) -> None: ...
    CHARACTER_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    character: str
    logprob: float
    alternatives: _containers.RepeatedCompositeFieldContainer[CharLogprob.Alternative]
    def __init__(self, character: _Optional[str] = ..., logprob: _Optional[float] = ..., alternatives: _Optional[_Iterable[_Union[CharLogprob.Alternative, _Mapping]]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_chars", "generated_chars", "queued_seconds", "first_char_seconds", "total_seconds", "matches")
    PROMPT_CHARS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_CHARS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHAR_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    prompt_chars: int
    generated_chars: int
    queued_seconds: float
    first_char_seconds: float
    total_seconds: float
    matches: bool
    def __init__(self, prompt_chars: _Optional[int] = ..., generated_chars: _Optional[int] = ..., queued_seconds: _Optional[float] = ..., first_char_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ..., matches: bool = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("index", "text", "finish_reason", "chars", "logprob", "matches")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    CHARS_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    finish_reason: FinishReason
    chars: int
    logprob: float
    matches: bool
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., chars: _Optional[int] = ..., logprob: _Optional[float] = ..., matches: bool = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("text", "position", "resume_token", "finish_reason", "seed", "logprobs", "usage", "text_position", "symbol_lengths", "samples")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TEXT_POSITION_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    text: str
    position: int
    resume_token: bytes
    finish_reason: FinishReason
    seed: int
    logprobs: _containers.RepeatedCompositeFieldContainer[CharLogprob]
    usage: Usage
    text_position: int
    symbol_lengths: _containers.RepeatedScalarFieldContainer[int]
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    def __init__(self, text: _Optional[str] = ..., position: _Optional[int] = ..., resume_token: _Optional[bytes] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., seed: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[CharLogprob, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., text_position: _Optional[int] = ..., symbol_lengths: _Optional[_Iterable[int]] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ...) -> None: ...

class InteractRequest(_message.Message):
    __slots__ = ("open", "feed", "generate", "pause", "update", "snapshot")
    class Open(_message.Message):
        __slots__ = ("model", "resume_token", "sampling")
        MODEL_FIELD_NUMBER: _ClassVar[int]
        RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
        SAMPLING_FIELD_NUMBER: _ClassVar[int]
        model: str
        resume_token: bytes
        sampling: Sampling
        def __init__(self, model: _Optional[str] = ..., resume_token: _Optional[bytes] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ...) -> None: ...
    class Generate(_message.Message):
        __slots__ = ("max_chars", "stop", "include_stop", "logprobs", "chars_per_second")
        MAX_CHARS_FIELD_NUMBER: _ClassVar[int]
        STOP_FIELD_NUMBER: _ClassVar[int]
        INCLUDE_STOP_FIELD_NUMBER: _ClassVar[int]
        LOGPROBS_FIELD_NUMBER: _ClassVar[int]
        CHARS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
        max_chars: int
        stop: _containers.RepeatedScalarFieldContainer[str]
        include_stop: bool
        logprobs: int
        chars_per_second: float
        def __init__(self, max_chars: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., include_stop: bool = ..., logprobs: _Optional[int] = ..., chars_per_second: _Optional[float] = ...) -> None: ...
    class Pause(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Snapshot(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FEED_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    open: InteractRequest.Open
    feed: str
    generate: InteractRequest.Generate
    pause: InteractRequest.Pause
    update: Sampling
    snapshot: InteractRequest.Snapshot
    def __init__(self, open: _Optional[_Union[InteractRequest.Open, _Mapping]] = ..., feed: _Optional[str] = ..., generate: _Optional[_Union[InteractRequest.Generate, _Mapping]] = ..., pause: _Optional[_Union[InteractRequest.Pause, _Mapping]] = ..., update: _Optional[_Union[Sampling, _Mapping]] = ..., snapshot: _Optional[_Union[InteractRequest.Snapshot, _Mapping]] = ...) -> None: ...

class InteractResponse(_message.Message):
    __slots__ = ("opened", "fed", "output", "paused", "snapshot")
    class Opened(_message.Message):
        __slots__ = ("seed", "model_id")
        SEED_FIELD_NUMBER: _ClassVar[int]
        MODEL_ID_FIELD_NUMBER: _ClassVar[int]
        seed: int
        model_id: str
        def __init__(self, seed: _Optional[int] = ..., model_id: _Optional[str] = ...) -> None: ...
    class Fed(_message.Message):
        __slots__ = ("chars", "logprob")
        CHARS_FIELD_NUMBER: _ClassVar[int]
        LOGPROB_FIELD_NUMBER: _ClassVar[int]
        chars: int
        logprob: float
        def __init__(self, chars: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...
    class Paused(_message.Message):
        __slots__ = ("position",)
        POSITION_FIELD_NUMBER: _ClassVar[int]
        position: int
        def __init__(self, position: _Optional[int] = ...) -> None: ...
    class Snapshot(_message.Message):
        __slots__ = ("resume_token", "position")
        RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
        POSITION_FIELD_NUMBER: _ClassVar[int]
        resume_token: bytes
        position: int
        def __init__(self, resume_token: _Optional[bytes] = ..., position: _Optional[int] = ...) -> None: ...
    OPENED_FIELD_NUMBER: _ClassVar[int]
    FED_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    opened: InteractResponse.Opened
    fed: InteractResponse.Fed
    output: GenerateResponse
    paused: InteractResponse.Paused
    snapshot: InteractResponse.Snapshot
    def __init__(self, opened: _Optional[_Union[InteractResponse.Opened, _Mapping]] = ..., fed: _Optional[_Union[InteractResponse.Fed, _Mapping]] = ..., output: _Optional[_Union[GenerateResponse, _Mapping]] = ..., paused: _Optional[_Union[InteractResponse.Paused, _Mapping]] = ..., snapshot: _Optional[_Union[InteractResponse.Snapshot, _Mapping]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("model", "resume_token", "text", "top_logprobs", "include_end", "as_prompt", "texts")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_END_FIELD_NUMBER: _ClassVar[int]
    AS_PROMPT_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    resume_token: bytes
    text: str
    top_logprobs: int
    include_end: bool
    as_prompt: bool
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., resume_token: _Optional[bytes] = ..., text: _Optional[str] = ..., top_logprobs: _Optional[int] = ..., include_end: bool = ..., as_prompt: bool = ..., texts: _Optional[_Iterable[str]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("position", "logprobs", "total", "top", "totals", "model_id")
    class Total(_message.Message):
        __slots__ = ("chars", "logprob", "bits_per_char", "perplexity", "resume_token")
        CHARS_FIELD_NUMBER: _ClassVar[int]
        LOGPROB_FIELD_NUMBER: _ClassVar[int]
        BITS_PER_CHAR_FIELD_NUMBER: _ClassVar[int]
        PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
        RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
        chars: int
        logprob: float
        bits_per_char: float
        perplexity: float
        resume_token: bytes
        def __init__(self, chars: _Optional[int] = ..., logprob: _Optional[float] = ..., bits_per_char: _Optional[float] = ..., perplexity: _Optional[float] = ..., resume_token: _Optional[bytes] = ...) -> None: ...
    class TextTotal(_message.Message):
        __slots__ = ("chars", "logprob", "error")
        CHARS_FIELD_NUMBER: _ClassVar[int]
        LOGPROB_FIELD_NUMBER: _ClassVar[int]
        ERROR_FIELD_NUMBER: _ClassVar[int]
        chars: int
        logprob: float
        error: str
        def __init__(self, chars: _Optional[int] = ..., logprob: _Optional[float] = ..., error: _Optional[str] = ...) -> None: ...
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    position: int
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    total: ScoreResponse.Total
    top: _containers.RepeatedCompositeFieldContainer[CharLogprob]
    totals: _containers.RepeatedCompositeFieldContainer[ScoreResponse.TextTotal]
    model_id: str
    def __init__(self, position: _Optional[int] = ..., logprobs: _Optional[_Iterable[float]] = ..., total: _Optional[_Union[ScoreResponse.Total, _Mapping]] = ..., top: _Optional[_Iterable[_Union[CharLogprob, _Mapping]]] = ..., totals: _Optional[_Iterable[_Union[ScoreResponse.TextTotal, _Mapping]]] = ..., model_id: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "model_id", "cell", "layers", "hidden", "vocabulary_size", "precision", "provider", "streamable", "state_bytes", "numerics", "vocabulary", "tokenizer", "start_symbol", "end_symbols", "ngrams")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    CELL_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    STREAMABLE_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    START_SYMBOL_FIELD_NUMBER: _ClassVar[int]
    END_SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    NGRAMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    model_id: str
    cell: str
    layers: int
    hidden: int
    vocabulary_size: int
    precision: str
    provider: str
    streamable: bool
    state_bytes: int
    numerics: str
    vocabulary: _containers.RepeatedScalarFieldContainer[str]
    tokenizer: str
    start_symbol: str
    end_symbols: _containers.RepeatedScalarFieldContainer[str]
    ngrams: int
    def __init__(self, name: _Optional[str] = ..., model_id: _Optional[str] = ..., cell: _Optional[str] = ..., layers: _Optional[int] = ..., hidden: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., precision: _Optional[str] = ..., provider: _Optional[str] = ..., streamable: bool = ..., state_bytes: _Optional[int] = ..., numerics: _Optional[str] = ..., vocabulary: _Optional[_Iterable[str]] = ..., tokenizer: _Optional[str] = ..., start_symbol: _Optional[str] = ..., end_symbols: _Optional[_Iterable[str]] = ..., ngrams: _Optional[int] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "streams_running", "streams_waiting", "streams_parked", "draining", "max_streams")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    STREAMS_WAITING_FIELD_NUMBER: _ClassVar[int]
    STREAMS_PARKED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    streams_running: int
    streams_waiting: int
    streams_parked: int
    draining: bool
    max_streams: int
    def __init__(self, models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ..., streams_running: _Optional[int] = ..., streams_waiting: _Optional[int] = ..., streams_parked: _Optional[int] = ..., draining: bool = ..., max_streams: _Optional[int] = ...) -> None: ...
