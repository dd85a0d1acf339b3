"""ONNX Runtime: which device, which session, and what a text's bits depend on."""

import json
from collections.abc import Mapping
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from rill.bundle import Bundle
from rill.serve.engine.devices import CUDA, providers_of
from rill.serve.engine.graph_safety import require_self_contained
from rill.serve.engine.rows import VARIANTS
from rill.serve.errors import StartError

MAX_ROWS = 64  # rows of a round on a CPU: with more, a character costs as much
CUDA_BATCHES = (1, 8, 64, 256)
LONGEST_ERROR = 500  # characters
MADE = ("tokens", "logprobs", "top_tokens", "top_logprobs")  # outputs of a serving graph, all but the first of one only


class Decoder:
    """The serving graphs of one bundle, loaded on one device, whose memory ONNX Runtime may use up to `memory` bytes.

    `batch_sizes` are those that the graphs are run with; without any, all are. A round beyond `max_rows` rows gains
    nothing; `warm_up` are the numbers of rows that are run at start. Raises StartError if the bundle cannot be served
    there.
    """

    def __init__(
        self,
        bundle: Bundle,
        provider: str,
        device_id: int = 0,
        threads: int = 1,
        memory: int = 0,
        batch_sizes: tuple[int, ...] = (),
    ) -> None:
        if bundle.labels:
            raise StartError(
                f"bundle {bundle.name!r} is a tagger: it labels symbols, has no decode graph and cannot stream text"
            )
        if provider == CUDA and bundle.precision != "fp32":
            raise StartError(
                f"bundle {bundle.name!r} is {bundle.precision}, which runs on the CPU only: use --device cpu"
            )
        self.provider, self.device_id = provider, device_id
        self.device = "cuda" if provider == CUDA else "cpu"
        # Kernels are chosen by shape on a GPU: a stream's bits must not depend on how many others there are.
        self._batch_sizes = batch_sizes or (CUDA_BATCHES if provider == CUDA else ())
        self.max_rows = self._batch_sizes[-1] if self._batch_sizes else MAX_ROWS
        self.warm_up = self._batch_sizes or (1, 8, MAX_ROWS)
        self._states = [name for name, _ in bundle.states]
        self._sessions = {}
        for key in VARIANTS:
            if key not in bundle.graphs:
                raise StartError(f"bundle {bundle.name!r} has no graph {key!r}: export it again")
            session = _session(bundle.graphs[key], provider, device_id, threads, memory, bundle.name)
            _require_fit(session, bundle, key)
            self._sessions[key] = session

    def padding(self, rows: int) -> int:
        """How many rows are missing to a batch size that the graphs are run with."""
        for size in self._batch_sizes:
            if rows <= size:
                return size - rows
        return -rows % self._batch_sizes[-1] if self._batch_sizes else 0

    def run(
        self, variant: str, feeds: Mapping[str, NDArray[Any]], states: Mapping[str, ort.OrtValue]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, ort.OrtValue]]:
        """One call of a serving graph (`export/graphs/serving.py` lists its inputs): what it made, and the states.

        What it made is [time, batch, ...], by name. States are on the device before and after, [layers, batch, hidden].
        """
        session = self._sessions[variant]
        binding = session.io_binding()
        for name, values in feeds.items():
            binding.bind_cpu_input(name, values)
        for name in self._states:
            binding.bind_ortvalue_input(name, states[name])
        made = MADE[: None if variant == "decode_logprobs" else 1]
        for name in made:
            binding.bind_output(name, "cpu")
        for name in self._states:
            binding.bind_output(f"next_{name}", self.device, self.device_id)
        session.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        after = dict(zip(self._states, outputs[len(made) :], strict=True))
        return {name: value.numpy() for name, value in zip(made, outputs, strict=False)}, after


def _session(graph: bytes, provider: str, device_id: int, threads: int, memory: int, name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Patterns are kept for every combination of shapes ever seen, and rounds have thousands of them.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    if provider == CUDA:
        # A node that fell back to the CPU would cost two copies a step, and nobody would see it: refuse it.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # Found by its first bytes otherwise, and what is looked for in ONNX models would not be in that one.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    require_self_contained(graph, name)
    try:
        session = ort.InferenceSession(graph, options, providers=providers_of(provider, device_id, memory))
    except Exception as error:  # ONNX Runtime's own exceptions share no narrower base
        raise StartError(
            f"bundle {name!r} cannot be loaded by ONNX Runtime {ort.__version__}: {one_line(error)}"
        ) from None
    if session.get_providers()[0] != provider:
        raise StartError(f"ONNX Runtime did not give bundle {name!r} the {provider}; see its messages above")
    return session


def one_line(error: Exception) -> str:
    """What ONNX Runtime says, which may quote a graph: without line ends and control characters, and not too long."""
    said = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return said if len(said) <= LONGEST_ERROR else said[:LONGEST_ERROR] + "…"


def _require_fit(session: ort.InferenceSession, bundle: Bundle, key: str) -> None:
    """Raise StartError unless a serving graph is one of this bundle's model: its states and its vocabulary."""

    def refuse(what: str) -> StartError:
        return StartError(f"bundle {bundle.name!r}: graph {key!r} {what}; export it again")

    inputs, outputs = (
        {value.name: value for value in values} for values in (session.get_inputs(), session.get_outputs())
    )
    for name, shape in bundle.states:
        for where, values in ((name, inputs), (f"next_{name}", outputs)):
            if where not in values or list(values[where].shape) != list(shape) or values[where].type != "tensor(float)":
                raise refuse(f"has no {where} of shape {list(shape)}")
    if pairs := {name for name in inputs if name.startswith("state_")} - {name for name, _ in bundle.states}:
        raise refuse(f"has states that the manifest lacks: {', '.join(sorted(pairs))}")
    if missing := {"token", "forced", "steps", "uniforms", "temperature"} - inputs.keys() | {"tokens"} - outputs.keys():
        raise refuse(f"is no serving graph of this version: it has no {', '.join(sorted(missing))}")
    vocabulary = session.get_modelmeta().custom_metadata_map.get("rill.vocabulary", "null")
    try:
        is_the_same = json.loads(vocabulary) == list(bundle.vocabulary.symbols)
    except (ValueError, RecursionError):
        is_the_same = False
    if not is_the_same:
        raise refuse("has another vocabulary than the manifest")
