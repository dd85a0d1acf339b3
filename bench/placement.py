"""Show where ONNX Runtime runs each node of a bundle's graphs: a node on another device costs copies at every step.

    python -m rill.bench.placement bundles/shakespeare --device cuda

Prints a line for each serving graph; the exit status is 1 if a node or a copy is not on the device.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort

from rill.bundle import FILES, BundleError, read_bundle
from rill.serve.engine.devices import choose_device, providers_of
from rill.serve.errors import StartError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rill.bench.placement", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="a bundle folder")
    parser.add_argument("--device", default="cuda", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        bundle = read_bundle(options.bundle)
        provider, device_id = choose_device(options.device)
    except (BundleError, StartError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    elsewhere = 0
    for key, graph in {**bundle.graphs, **bundle.constrained}.items():
        if key == "model":  # it is not served
            continue
        nodes, copies = placement_of(graph, provider, device_id)
        elsewhere += nodes.total() - nodes[provider] + copies
        counts = ", ".join(f"{count} on {name}" for name, count in nodes.items())
        print(f"{FILES[key]}: {counts}; {copies} copies")
    return 1 if elsewhere else 0


def placement_of(graph: bytes, provider: str, device_id: int) -> tuple[Counter[str], int]:
    """Count the nodes of each execution provider, and the copies between devices that are added."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session = ort.InferenceSession(graph, options, providers=providers_of(provider, device_id, 0))
        optimized = onnx.load(options.optimized_model_filepath)
    nodes: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] += len(part.get_nodes())
    return nodes, sum(node.op_type.startswith("Memcpy") for node in _nodes(optimized.graph))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


if __name__ == "__main__":
    sys.exit(main())
