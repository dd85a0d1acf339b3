"""The page's texts are the server's, by the real onnxruntime-web in Node."""

import pytest
from node import run_node
from random_models import make_run
from reference_texts import reference

from rill.cli.main import main
from rill.export.graphs.build import build_bundle
from rill.export.write import manifest_of, write_bundle

pytestmark = pytest.mark.long

COUNT, FORK = 200, 50
SETTINGS = [
    ("", 0, {}),
    ("abc", 7, {"temperature": 0.7}),
    ("a", 2**64 - 1, {"temperature": 0.0}),
    ("ab", 2**53 + 1, {"temperature": 1.3, "top_p": 0.8}),
    ("", 11, {"top_k": 5, "min_p": 0.05}),
]

# Streams as worker.js makes them, of many sites. A fork continues from the state before a character, as in the page.
PROGRAM = """
import * as ort from "./onnxruntime/ort.js";
import { Description, Model } from "./model.js";
import { Stream } from "./stream.js";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = readFileSync("onnxruntime/ort-wasm-simd-threaded.wasm");

async function generate(model, { prompt, seed, sampling, count, fork }) {
  const stream = new Stream(model);
  const ids = model.description.encode(prompt);
  await stream.begin(ids.length > 0);
  for (const id of ids) await stream.read(id);
  const [made, states] = [[], []];
  const grown = async (stream, made, states) => {
    while (made.length < count) {
      const before = stream.state.slice();
      const shown = await stream.next(sampling, BigInt(seed));
      if (!shown) return;
      made.push(shown.id);
      states.push(before);
    }
  };
  await grown(stream, made, states);
  const again = new Stream(model);
  const at = Math.min(fork, made.length - 1);
  const forked = made.slice(0, at + 1);
  if (at >= 0) {
    await again.restore(states[at], made[at], at + 1);
    await grown(again, forked, []);
  }
  return [made, forked].map((list) => list.map((id) => model.description.vocabulary[id]).join(""));
}

const results = {};
for (const [name, { site, requests }] of Object.entries(data)) {
  const description = new Description(JSON.parse(readFileSync(`${site}/model/model.json`, "utf8")));
  const model = await Model.load(ort, readFileSync(`${site}/model/model.onnx`), description);
  results[name] = [];
  for (const request of requests) results[name].push(await generate(model, request));
}
report(results);
"""


def request(prompt, seed, parameters, count=COUNT):
    names = {"temperature": "temperature", "top_k": "topK", "top_p": "topP", "min_p": "minP"}
    plain = {"temperature": 1, "topK": 0, "topP": 1, "minP": 0, "banned": []}
    sampling = plain | {names[key]: value for key, value in parameters.items()}
    return {"prompt": prompt, "seed": str(seed), "sampling": sampling, "count": count, "fork": FORK}


def generated(sites, requests):
    """Texts, and the same with a fork, by model and request."""
    data = {name: {"site": str(site), "requests": requests} for name, site in sites.items()}
    return run_node(next(iter(sites.values())), PROGRAM, data)


# Of molecules: more short texts, which the model ends.
MOLECULE_SETTINGS = [(prompt, seed, {}) for seed in range(6) for prompt in ("", "CCl[nH]")]
MOLECULE_SETTINGS += [
    ("C%10", 7, {"temperature": 0.7}),
    ("", 3, {"top_k": 5, "top_p": 0.9}),
    ("N", 1, {"temperature": 0.0}),
]


def settings_of(name):
    return MOLECULE_SETTINGS if "molecules" in name else SETTINGS


@pytest.fixture(scope="module")
def texts(sites):
    found = {}
    for some in ({name for name in sites if "molecules" in name}, {name for name in sites if "molecules" not in name}):
        settings = settings_of(next(iter(some)))
        found |= generated({name: sites[name] for name in some}, [request(*one) for one in settings])
    return found


@pytest.mark.parametrize(
    "name", ["gru", "gru-before", "lstm", "rnn", "deep", "ngrams", "molecules", "ngrams-molecules"]
)
def test_texts_are_the_servers(name, models, texts):
    bundle, _ = models[name]
    for (prompt, seed, parameters), (text, forked) in zip(settings_of(name), texts[name], strict=True):
        assert text == reference(bundle, prompt, seed, COUNT, **parameters), (prompt, seed, parameters)
        assert forked == text
        assert "<unk>" not in text


def _site(bundle, folder, onnxruntime_web):
    write_bundle(bundle, manifest_of(bundle, {}, {}), folder / bundle.name)
    out = folder / "site"
    command = ["page", str(folder / bundle.name), "--out", str(out), "--onnxruntime-web", str(onnxruntime_web)]
    assert main(command) == 0
    (out / "package.json").write_text('{"type": "module"}')
    return {bundle.name: out}


def test_an_int8_bundle_runs(tiny_run, onnxruntime_web, tmp_path, capsys):
    """Its texts may differ from a server's, and the command says so."""
    site = _site(build_bundle(tiny_run, "tiny-int8", "int8"), tmp_path, onnxruntime_web)
    assert "their texts differ" in capsys.readouterr().out
    found = generated(site, [request(*SETTINGS[1])])
    assert len(found["tiny-int8"][0][0]) == COUNT


def test_long_texts(onnxruntime_web, tmp_path):
    """Numerics may part the texts at last, where u is next to a boundary: not in thousands of characters."""
    bundle = build_bundle(make_run(hidden=64), "model")
    found = generated(_site(bundle, tmp_path, onnxruntime_web), [request("ab", seed, {}, 5000) for seed in range(4)])
    for seed, (text, _) in enumerate(found["model"]):
        assert text == reference(bundle, "ab", seed, 5000)
