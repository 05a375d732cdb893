from __future__ import annotations

import html
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from q2export.runtime.server.app import OPERATIONS, create_app
from q2export.runtime.server.http import Endpoint
from q2export.runtime.server.pages import chat_page
from q2export.runtime.server.process import address, listen
from q2export.runtime.server.service import Service
from tests.compare.verify.test_report_browser import CHROMIUM, FLAGS
from tests.runtime.server.conftest import fake_engine, says, served


def test_the_description_has_every_address_and_every_field() -> None:
    with served(fake_engine()) as client:
        api = client.get("/openapi.json").json()
    described = {(method.upper(), path) for path, methods in api["paths"].items() for method in methods}
    assert described == {(each.method, each.path.replace(":path", "")) for each in OPERATIONS}
    schemas = api["components"]["schemas"]
    assert {"messages", "tools", "response_format", "top_k"} <= schemas["ChatRequest"]["properties"].keys()
    assert schemas["ChatRequest"]["required"] == ["messages"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', str(api).replace("'", '"')))
    assert references <= schemas.keys()
    chat = api["paths"]["/v1/chat/completions"]["post"]
    assert chat["summary"].startswith("Answer one conversation")
    assert chat["security"]


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere(page: str) -> None:
    with served(fake_engine()) as client:
        answer = client.get(page)
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"https?://|src=|@import|url\(", answer.text)


# Appended to the chat page: talks through its form, and leaves what came of it where --dump-dom shows it.
PROBE = """<script>
// The browser's virtual time stands still while a request runs: real time passes.
async function until(condition) { for (let i = 0; i < 5000 && !condition(); i++) await fetch("health/live"); }
async function say(text) {
  at("status").textContent = "";
  at("text").value = text;
  at("form").requestSubmit();
  await until(() => at("status").textContent && !running);
}
(async () => {
  await until(() => at("model").options.length);
  at("system").value = "Rules.";
  await say("Is 1 < 2?");
  await say("And <b>this</b>?");
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify({
    model: at("model").value,
    said: [...at("messages").children].map((each) => [each.dataset.role, each.textContent]),
    conversation,
    bold: document.querySelectorAll("main b").length,
    status: at("status").textContent,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  });
  document.body.append(out);
})();
</script>"""


@contextmanager
def listening(app: Starlette) -> Iterator[str]:
    """The address of an application on a port of this machine, for a browser."""
    with listen("127.0.0.1", 0) as bound:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            yield address(bound)
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH")
@pytest.mark.parametrize("width", [390, 1100])
def test_the_chat_page_in_a_browser(tmp_path: Path, width: int) -> None:
    async def probed(service: Service, request: Request) -> Response:
        answer = await chat_page(service, request)
        page = bytes(answer.body).replace(b"</html>", PROBE.encode() + b"</html>")
        policy = answer.headers["Content-Security-Policy"]
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})

    said = "Straße <i>é</i>"
    app = create_app({"<b>m</b>": fake_engine(says(said.encode()))})
    app.router.routes.insert(0, Route("/probe", Endpoint(probed, open_to_all=True)))
    with listening(app) as where:
        command = [CHROMIUM or "", *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
        command += [f"--window-size={width},800", "--virtual-time-budget=99999", "--dump-dom"]
        command.append(f"{where}/probe")
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stderr[-2000:] + done.stdout[-500:]
    probe = json.loads(html.unescape(found[1]))
    assert probe["model"] == "<b>m</b>"
    turns = [["user", "Is 1 < 2?"], ["assistant", said], ["user", "And <b>this</b>?"], ["assistant", said]]
    assert probe["said"] == turns
    assert [[each["role"], each["content"]] for each in probe["conversation"]] == turns
    assert probe["bold"] == 0
    assert re.fullmatch(r"\d+ tokens in \d+\.\d s", probe["status"])
    assert probe["overflow"] <= 0
