"""The serving graphs of a bundle, as sessions of ONNX Runtime."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rill.bundle import CONSTRAINED_VARIANTS, CONTEXT, NGRAMS, VARIANTS, Bundle, Variant, vocabulary_metadata
from rill.serve.engine.devices import CUDA, providers_of
from rill.serve.engine.graph_safety import require_self_contained
from rill.serve.errors import StartError

MAX_ROWS = 64  # of a round on a CPU: with more rows a character costs as much
CUDA_BATCHES = (1, 8, 64, 256)
LONGEST_ERROR = 500  # characters
Values = Mapping[str, ort.OrtValue]
NO_TABLES: Values = {}
# Inputs that only the constrained graphs have, with their sizes.
AUTOMATA: Mapping[str, tuple[list[int | str], str]] = {
    "automaton": (["any"], "int64"),
    "allowed": (["any", "vocab"], "float"),
    "transitions": (["any"], "int64"),
    "continues": (["any", 1], "float"),
    "reads": (["any", 1], "bool"),
}


class Decoder:
    """The serving graphs of one bundle, loaded on one device, of which ONNX Runtime may use `memory` bytes (0: all).

    The graphs are run with `batch_sizes` only, or with any if there are none. A round gains nothing from more than
    `max_rows` rows; `warm_up` are the numbers of rows to run at the start. Raises StartError if the device cannot serve
    the bundle.
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
        # A GPU's kernels are chosen by shape, and a stream's bits must not depend on how many others there are.
        self._batch_sizes = batch_sizes or (CUDA_BATCHES if provider == CUDA else ())
        self.max_rows = self._batch_sizes[-1] if self._batch_sizes else MAX_ROWS
        self.warm_up = self._batch_sizes or (1, 8, MAX_ROWS)
        self._states = [name for name, _ in bundle.states]
        # One copy on the device for all graphs; on the CPU it is the bundle's own.
        self._constants = {}
        if bundle.ngrams:
            values = np.asarray(bundle.ngrams_values)
            self._constants[NGRAMS] = ort.OrtValue.ortvalue_from_numpy(values, self.device, device_id)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._outputs: dict[str, tuple[str, ...]] = {}  # of each graph, beside the states
        self.has_constrained = bool(bundle.constrained)  # bundles of earlier versions have no such graphs
        graphs = {**bundle.graphs, **bundle.constrained}
        for variant in VARIANTS + (CONSTRAINED_VARIANTS if self.has_constrained else ()):
            key = variant.key
            if key not in graphs:
                raise StartError(f"bundle {bundle.name!r} has no graph {key!r}: export it again")
            session = _session(graphs[key], provider, device_id, threads, memory, bundle.name)
            _require_fit(session, bundle, variant)
            self._sessions[key], self._outputs[key] = session, _outputs_of(variant)

    def padding(self, rows: int) -> int:
        """How many rows to add for a batch size that the graphs are run with."""
        for size in self._batch_sizes:
            if rows <= size:
                return size - rows
        return -rows % self._batch_sizes[-1] if self._batch_sizes else 0

    def run(
        self, variant: str, feeds: Mapping[str, NDArray[Any]], states: Values, tables: Values = NO_TABLES
    ) -> tuple[dict[str, NDArray[Any]], dict[str, ort.OrtValue]]:
        """Run a serving graph; return its outputs and the states after it.

        `rill.export.graphs.serving` lists the inputs; a constrained graph has `tables` among them. Outputs are on the
        host, [time, batch, ...], by name; states and tables are on the device.
        """
        session = self._sessions[variant]
        binding = session.io_binding()
        for name, values in feeds.items():
            binding.bind_cpu_input(name, values)
        for name in self._states:
            binding.bind_ortvalue_input(name, states[name])
        for name, value in self._constants.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in tables.items():
            binding.bind_ortvalue_input(name, value)
        names = self._outputs[variant]
        for name in names:
            binding.bind_output(name, "cpu")
        for name in self._states:
            binding.bind_output(f"next_{name}", self.device, self.device_id)
        session.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        after = dict(zip(self._states, outputs[len(names) :], strict=True))
        return {name: value.numpy() for name, value in zip(names, outputs, strict=False)}, after


def _outputs_of(variant: Variant) -> tuple[str, ...]:
    """The outputs of a serving graph beside the states."""
    logprobs = ("logprobs", "top_tokens", "top_logprobs") if variant.logprobs else ()
    return ("tokens", *(("automata",) if variant.constrained else ()), *logprobs)


def _session(graph: bytes, provider: str, device_id: int, threads: int, memory: int, name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # ONNX Runtime keeps a pattern for every combination of shapes, and rounds have thousands of them.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # its errors are raised with the same text, and are logged in our format
    if provider == CUDA:
        # A node that silently falls back to the CPU would cost two copies a step: refuse the graph.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # Otherwise the first bytes decide, and another format would evade `require_self_contained`.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    require_self_contained(graph, name)
    try:
        session = ort.InferenceSession(graph, options, providers=providers_of(provider, device_id, memory))
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base
        raise StartError(
            f"bundle {name!r} cannot be loaded by ONNX Runtime {ort.__version__}: {one_line(error)}"
        ) from None
    if session.get_providers()[0] != provider:
        raise StartError(f"ONNX Runtime did not give bundle {name!r} the {provider}; see its messages above")
    return session


def one_line(error: Exception) -> str:
    """A message of ONNX Runtime, which may quote a graph: on one line, without control characters, and shortened."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return text if len(text) <= LONGEST_ERROR else text[:LONGEST_ERROR] + "…"


def _require_fit(session: ort.InferenceSession, bundle: Bundle, variant: Variant) -> None:
    """Raise StartError unless a serving graph has the states and the vocabulary of the bundle."""

    def misfit(problem: str) -> StartError:
        return StartError(f"bundle {bundle.name!r}: graph {variant.key!r} {problem}; export it again")

    inputs, outputs = (
        {value.name: value for value in values} for values in (session.get_inputs(), session.get_outputs())
    )

    def require(where: str, values: Mapping[str, Any], shape: Sequence[int | str], dtype: str) -> None:
        value = values.get(where)
        if value is None or list(value.shape) != list(shape) or value.type != f"tensor({dtype})":
            raise misfit(f"has no {where} of shape {list(shape)}")

    for name, shape in bundle.states:
        for where, values in ((name, inputs), (f"next_{name}", outputs)):
            require(where, values, shape, "int64" if name == CONTEXT else "float")
    if bundle.ngrams:
        require(NGRAMS, inputs, bundle.ngrams_shape, "float")
    elif NGRAMS in inputs:
        raise misfit("has n-gram tables that the manifest lacks")
    if extra := {name for name in inputs if name.startswith((CONTEXT, "state_"))} - {name for name, _ in bundle.states}:
        raise misfit(f"has states that the manifest lacks: {', '.join(sorted(extra))}")
    needed = {"token", "steps", "uniforms", "temperature", *(AUTOMATA if variant.constrained else ["forced"])}
    if missing := needed - inputs.keys() | set(_outputs_of(variant)) - outputs.keys():
        raise misfit(f"is not a serving graph of this version: it has no {', '.join(sorted(missing))}")
    if variant.constrained:
        for name, (sizes, dtype) in AUTOMATA.items():
            expected_sizes = [len(bundle.vocabulary) if size == "vocab" else size for size in sizes]
            found = [size if isinstance(size, int) else "any" for size in inputs[name].shape]
            if found != expected_sizes or inputs[name].type != f"tensor({dtype})":
                raise misfit(f"has no {name} of shape {expected_sizes}")
    described = session.get_modelmeta().custom_metadata_map
    expected = vocabulary_metadata(bundle.vocabulary)
    keys = {"rill.vocabulary", "rill.tokenizer", "rill.start_symbol", "rill.end_symbols"}
    if {key: described[key] for key in keys & described.keys()} != expected:
        raise misfit("has a different vocabulary from the manifest")
