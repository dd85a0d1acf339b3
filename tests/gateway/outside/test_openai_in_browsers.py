"""OpenAI's package for JavaScript in a page of another origin, in a real browser."""

import outside
import pytest
from gateways import run_gateway
from playgrounds import chromium
from static_server import static_server

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

PAGE = """<!doctype html><title>Another site</title><script type="module">
import OpenAI from "./node_modules/openai/index.mjs";
window.stream = async (url, key) => {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, dangerouslyAllowBrowser: true, maxRetries: 0 });
  const [model] = (await client.models.list()).data;
  const chunks = await client.completions.create(
    { model: model.id, prompt: "a man ", temperature: 0.7, seed: 7, max_tokens: 100, stream: true });
  let text = "";
  for await (const chunk of chunks) text += chunk.choices[0].text;
  const whole = await client.completions.create({ model: model.id, prompt: "a man ", seed: 7 }).withResponse();
  const refused = await client.completions.create({ model: "none", prompt: "" }).catch((error) => error);
  return { text, id: whole.request_id, refused: `${refused.constructor.name} ${refused.param}` };
};
</script>"""
CALL = "([url, key]) => window.stream(url, key).catch((error) => `${error.constructor.name}: ${error.message}`)"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of another origin, and that origin."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "node_modules").symlink_to(outside.node_modules("openai-npm", outside.OPENAI_NPM))
    (folder / "index.html").write_text(PAGE)
    with static_server(folder) as address, chromium() as browser:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_function("() => Boolean(window.stream)")
        yield page, address.rstrip("/")


def test_an_origin_that_is_allowed_gets_texts_ids_and_errors(page, server):
    tab, origin = page
    with run_gateway(server.target, "--cors", origin) as gateway, server.client() as client:
        found = tab.evaluate(CALL, [gateway.url, "none"])
        assert found["text"] == "".join(client.generate("a man ", temperature=0.7, seed=7, max_chars=100))
        assert found["id"]
        assert found["refused"] == "NotFoundError model"


def test_another_origin_gets_nothing(page, gateway):
    tab, _ = page
    assert tab.evaluate(CALL, [gateway.url, "none"]) == "APIConnectionError: Connection error."
