"""Malicious bundles: their checksums are right, but their content is not what Rill exports."""

import gc
import json
import os
import string
from dataclasses import replace

import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper
from random_models import save_bundle

from rill.bundle import MANIFEST, BundleError, model_id, read_bundle
from rill.export.write import manifest_of, write_bundle
from rill.serve.config import ServerConfig
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.devices import CPU
from rill.serve.engine.graph_safety import require_self_contained
from rill.serve.errors import StartError
from rill.serve.operate.server import model_maker


def external(location="secret", name="w"):
    """Return a tensor whose data is in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[8])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def constant(tensor):
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR, t=tensor))
    return node


def branches(*nodes, initializers=()):
    """Return an If node with these in both branches."""
    output = helper.make_tensor_value_info("c", TensorProto.UINT8, None)
    graph = helper.make_graph([*nodes], "branch", [], [output], list(initializers))
    return helper.make_node("If", ["condition"], ["out"], then_branch=graph, else_branch=graph)


def sparse(tensor):
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    return onnx.SparseTensorProto(values=tensor, indices=indices, dims=[64])


def with_initializer(model):
    model.graph.initializer.append(external())


def with_an_initializer_of_a_branch(model):
    model.graph.node.append(branches(helper.make_node("Identity", ["w"], ["c"]), initializers=[external()]))


def with_a_constant(model):
    model.graph.node.append(constant(external(name="")))


def with_a_constant_far_down(model):
    model.graph.node.append(branches(branches(branches(constant(external(name=""))))))


def with_a_constant_of_a_function(model):
    function = helper.make_function("f", "F", [], ["c"], [constant(external(name=""))], model.opset_import)
    model.functions.append(function)


def with_sparse_data(model):
    model.graph.sparse_initializer.append(sparse(external()))


def with_training(model):
    model.training_info.add().initialization.initializer.append(external())


def with_an_address(model):
    model.graph.initializer.append(external("*/_ORT_MEM_ADDR_/*"))


@pytest.mark.parametrize(
    "change",
    [
        with_initializer,
        with_an_initializer_of_a_branch,
        with_a_constant,
        with_a_constant_far_down,
        with_a_constant_of_a_function,
        with_sparse_data,
        with_training,
        with_an_address,
    ],
)
@pytest.mark.parametrize("graph", ["decode", "decode_top_k"])
def test_graphs_that_take_data_from_files_are_refused(tiny, change, graph):
    model = onnx.load_from_string(tiny.graphs[graph])
    change(model)
    hostile = replace(tiny, graphs={**tiny.graphs, graph: model.SerializeToString()})
    with pytest.raises(StartError, match="'tiny': a graph takes data from other files, which is refused"):
        Decoder(hostile, CPU)


def test_a_tensor_in_two_halves_is_one(tiny):
    """Protobuf merges two occurrences of a singular field; the last one alone looks harmless."""
    attribute = AttributeProto(name="value", type=AttributeProto.TENSOR, t=external(name=""))
    harmless = AttributeProto(t=TensorProto(name="x")).SerializeToString()
    node = helper.make_node("Constant", [], ["c"]).SerializeToString()
    field = attribute.SerializeToString() + harmless
    node += b"\x2a" + varint(len(field)) + field
    assert onnx.NodeProto.FromString(node).attribute[0].t.data_location == TensorProto.EXTERNAL
    graph = b"\x0a" + varint(len(node)) + node
    with pytest.raises(StartError, match="takes data from other files"):
        require_self_contained(b"\x3a" + varint(len(graph)) + graph, "x")


def varint(number):
    return number.to_bytes(1) if number < 128 else (number & 127 | 128).to_bytes(1) + varint(number >> 7)


@pytest.mark.parametrize("data", [b"", b"ORTM", b"\x18\x00\x00\x00ORTM" + bytes(100), b"\xff" * 100, b"\x3a\xff"])
def test_bytes_that_are_not_an_onnx_model_are_refused(tiny, data):
    with pytest.raises(StartError, match="'tiny'") as caught:
        Decoder(replace(tiny, graphs={**tiny.graphs, "decode": data}), CPU)
    assert "\n" not in str(caught.value)


def test_unknown_operators_are_refused(tiny):
    model = onnx.load_from_string(tiny.graphs["decode"])
    model.graph.node.append(helper.make_node("Evil\x1b[31m\n", ["token"], ["x"], domain="evil"))
    model.opset_import.append(helper.make_opsetid("evil", 1))
    with pytest.raises(StartError, match=r"'tiny' cannot be loaded by ONNX Runtime .* not a registered") as caught:
        Decoder(replace(tiny, graphs={**tiny.graphs, "decode": model.SerializeToString()}), CPU)
    assert str(caught.value).isprintable()


def test_vocabularies_in_graphs_must_be_lists(tiny):
    for text in ("[" * 100_000, "{", "null"):
        model = onnx.load_from_string(tiny.graphs["decode"])
        next(entry for entry in model.metadata_props if entry.key == "rill.vocabulary").value = text
        with pytest.raises(StartError, match="a different vocabulary"):
            Decoder(replace(tiny, graphs={**tiny.graphs, "decode": model.SerializeToString()}), CPU)


async def test_a_graph_that_needs_too_much_memory_is_one_error(tiny):
    """Whether ONNX Runtime allocates the memory when it loads the graph or when it runs it."""
    model = onnx.load_from_string(tiny.graphs["decode"])
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [2**50])
    model.graph.initializer.append(shape)
    zeros = helper.make_node("ConstantOfShape", ["shape"], ["zeros"])
    model.graph.node.extend([zeros, helper.make_node("ReduceSum", ["zeros"], ["sum"])])
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, None))
    hostile = replace(tiny, graphs={**tiny.graphs, "decode": model.SerializeToString()})
    with pytest.raises(StartError, match=r"'tiny' cannot be (loaded|run)"):
        model_maker(ServerConfig([], max_streams=8), print)(hostile)


def written(bundle, folder):
    """Write the bundle to disk, with right checksums."""
    whole = replace(bundle, model_id=model_id(bundle.graphs, bundle.vocabulary))
    write_bundle(whole, manifest_of(whole, {}, {}), folder)
    return folder


def test_the_server_reports_it_in_one_sentence(tmp_path, tiny, run_command):
    model = onnx.load_from_string(tiny.graphs["decode_logprobs"])
    with_initializer(model)
    graphs = {**tiny.graphs, "decode_logprobs": model.SerializeToString()}
    folder = written(replace(tiny, graphs=graphs), tmp_path / "hostile")
    assert read_bundle(folder)
    done = run_command("rill.serve", folder, "--port", 0)
    assert done.returncode == 2
    assert "error: bundle 'tiny': a graph takes data from other files" in done.stderr
    assert "Traceback" not in done.stderr


# ---- files


@pytest.fixture
def folder(tmp_path, tiny_run):
    save_bundle(tiny_run, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("name", [MANIFEST, "decode.onnx"])
def test_links_out_of_the_bundle_are_refused(folder, name):
    file = folder / name
    file.rename(folder.parent / name)
    file.symlink_to(folder.parent / name)
    with pytest.raises(BundleError, match=f"{name} is a link to a file outside the bundle"):
        read_bundle(folder)


def test_links_within_the_bundle_and_to_it_are_followed(folder):
    """Mounted volumes contain such links."""
    (folder / "data").mkdir()
    for name in (MANIFEST, "decode.onnx"):
        (folder / name).rename(folder / "data" / name)
        (folder / name).symlink_to(f"data/{name}")
    link = folder.with_name("current")
    link.symlink_to(folder)
    assert read_bundle(link).name == "tiny"


@pytest.mark.parametrize("name", [MANIFEST, "decode.onnx"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
def test_special_files_are_refused_and_never_read(folder, name, kind):
    file = folder / name
    file.unlink()
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
        case "device":
            file.symlink_to("/dev/zero")
        case "loop":
            file.symlink_to(name)
    with pytest.raises(BundleError, match=f"{name}") as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "size"), [(MANIFEST, 2**30), ("decode.onnx", 2**31)])
def test_excessively_large_files_are_not_read(folder, name, size):
    os.truncate(folder / name, size)  # takes no space on disk
    with pytest.raises(BundleError, match=f"{name} is larger than"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a\nrill: listening on 127.0.0.1:1"}, "cannot be the 'name' of a bundle: it contains '\\\\n'"),
        ({"name": "\x1b[2J"}, r"it contains '\\x1b' \(U\+001B\)"),
        ({"name": "\ud800"}, r"it contains '\\ud800'"),
        ({"name": "a" * 256}, "it has 256 bytes in UTF-8, more than 249"),
        ({"hidden": 10**12}, "hidden must be at most 100000"),
        ({"layers": 10**6}, "layers must be at most 1000"),
        ({"vocabulary": [*string.printable, *map(str, range(2_000_000))]}, "at most 2000000 symbols"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_impossible_names_and_sizes_are_refused(folder, change, message):
    manifest = manifest_of(read_bundle(folder), {}, {})
    for key, value in change.items():
        (manifest if key in manifest else manifest["model"])[key] = value
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        read_bundle(folder)


def test_message_classes_are_not_garbage_collected(tiny):
    """A class that is collected at the moment another thread finds it crashes the process (SIGSEGV)."""

    def kept():
        classes = [found.DESCRIPTOR for found in gc.get_objects() if type(found) is type(TensorProto)]
        return {one.name for one in classes if one.full_name.startswith("rill.graphs.")}

    require_self_contained(tiny.graphs["decode"], "tiny")
    seen = kept()
    gc.collect()
    assert kept() == seen >= {"Model", "Graph", "Node", "Attribute", "Tensor"}
