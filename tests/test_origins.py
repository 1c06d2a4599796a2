"""Web pages of strangers, which run in browsers that reach this server."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import websocket
import yaml

from app.keys import Keyring
from app.origins import Origins
from tasks.settings import Settings, SettingsError
from tests.stack import ROOT, Stack, wait_for

APP = "https://app.example.com"
EVIL = "http://evil.example.net"


def origins(**settings: Any) -> Origins:
    made = Settings(**settings)
    return Origins(made, Keyring(made))


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Redis and a web without keys that lets one page in."""
    stack = Stack(
        tmp_path_factory.mktemp("origins"),
        SUPERTONIC_CORS_ORIGINS=APP,
        SUPERTONIC_WEB_PROCESSES="1",
        SUPERTONIC_WEB_THREADS="20",
    )
    stack.start_redis()
    stack.start_web()
    wait_for(lambda: stack.get("/livez").status_code == 200)
    yield stack
    stack.stop_all()


def ask(stack: Stack, method: str, path: str, **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.request(method, stack.url + path, headers=named, timeout=10)


# -- the name in Host ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["", "127.0.0.1:8002", "localhost", "[::1]:8002", "192.168.1.20:8002", "nas", "tts.local:80"],
)
def test_addresses_and_names_of_ones_own_network_are_known(host: str) -> None:
    assert origins().knows_host(host)


@pytest.mark.parametrize(
    "host", ["evil.example.net", "evil.example.net:8002", "127.0.0.1.evil.net", "local.evil.net"]
)
def test_a_name_a_stranger_can_own_is_not(host: str) -> None:
    assert not origins().knows_host(host)
    assert origins(allowed_hosts="*").knows_host(host)
    assert origins(api_keys="some").knows_host(host), "without a key the page gets nowhere"


def test_listed_hosts_are_the_only_public_ones_with_keys_or_without() -> None:
    for keys in ("", "some"):
        listed = origins(allowed_hosts="tts.example.com, .example.org", api_keys=keys)
        for host in ("tts.example.com:443", "TTS.example.com", "a.b.example.org"):
            assert listed.knows_host(host), host
        for host in ("example.com", "example.org", "nottts.example.com", "xexample.org"):
            assert not listed.knows_host(host), host


@pytest.mark.parametrize("host", ["127.0.0.1:8002", "192.168.1.20:8002", "[::1]", "nas.lan"])
def test_a_listed_host_shuts_out_none_that_a_stranger_cannot_own(host: str) -> None:
    """Probes and load balancers ask by address."""
    assert origins(allowed_hosts="tts.example.com").knows_host(host)
    assert origins(allowed_hosts="tts.example.com", api_keys="some").knows_host(host)


def test_prometheus_of_the_compose_file_is_answered_beside_a_listed_host() -> None:
    config = yaml.safe_load((ROOT / "prometheus/prometheus.yml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    assert origins(allowed_hosts="tts.example.com").knows_host(target)


@pytest.mark.parametrize("text", ["*.example.com", "https://tts.example.com", "a,b*"])
def test_a_host_that_cannot_be_one_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="SUPERTONIC_ALLOWED_HOSTS"):
        origins(allowed_hosts=text)


@pytest.mark.parametrize("path", ["/", "/jobs", "/ui", "/synthesize", "/static/style.css"])
def test_a_rebound_page_reaches_nothing(web: Stack, path: str) -> None:
    """It counts as same-origin for the browser, so its own headers may all look right."""
    forged = {"Host": "evil.example.net:8002", "Origin": "http://evil.example.net:8002"}
    for method in ("GET", "POST", "OPTIONS", "DELETE"):
        for more in ({}, {"Sec_Fetch_Site": "same-origin"}, {"X_Forwarded_Host": "localhost"}):
            answer = ask(web, method, path, **forged, **more)
            assert answer.status_code == 403, (method, more)
            assert "SUPERTONIC_ALLOWED_HOSTS" in answer.json()["detail"]


# -- Origin ----------------------------------------------------------------------------------


CHANGING = [
    ("POST", "/synthesize"),
    ("POST", "/synthesize/stream"),
    ("POST", "/synthesize/long"),
    ("POST", "/config/batch?max_batch_size=1"),
    ("DELETE", "/jobs/" + "a" * 24),
]


@pytest.mark.parametrize(("method", "path"), CHANGING)
def test_another_sites_page_makes_and_changes_nothing(web: Stack, method: str, path: str) -> None:
    others = [
        EVIL,
        "null",
        "http://localhost:3000",
        web.url + "0",
        "https://app.example.com.evil.net",
    ]
    for origin in others:
        answer = ask(web, method, path, Origin=origin, Sec_Fetch_Site="cross-site")
        assert answer.status_code == 403 and "SUPERTONIC_CORS_ORIGINS" in answer.json()["detail"]
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_programs_our_own_page_and_proxies_are_let_through(web: Stack) -> None:
    own = [
        {},
        {"Origin": web.url},
        {"Host": "tts.lan", "Origin": "https://tts.lan"},  # TLS ends in front
        {"Origin": "https://tts.example.com", "Sec_Fetch_Site": "same-origin"},  # Host rewritten
        {"Origin": "http://tts.example.com", "X_Forwarded_Host": "tts.example.com"},
        {"Origin": APP, "Sec_Fetch_Site": "cross-site"},
    ]
    for headers in own:
        assert ask(web, "POST", "/synthesize", **headers).status_code == 415, headers


def socket_status(web: Stack, **options: Any) -> int:
    address = web.url.replace("http", "ws") + "/ws/synthesize"
    try:
        websocket.create_connection(address, timeout=10, **options).close()
    except websocket.WebSocketBadStatusException as refused:
        return refused.status_code
    return 101


def test_another_sites_page_opens_no_websocket(web: Stack) -> None:
    assert socket_status(web, origin=EVIL) == 403
    assert socket_status(web, origin="null") == 403
    assert socket_status(web, host="evil.example.net", origin="http://evil.example.net") == 403
    assert socket_status(web, origin=APP) == 101
    assert socket_status(web, origin=web.url) == 101
    assert socket_status(web, suppress_origin=True) == 101


def test_a_websocket_agrees_on_no_compression(web: Stack) -> None:
    offer = ["Sec-WebSocket-Extensions: permessage-deflate"]
    address = web.url.replace("http", "ws") + "/ws/synthesize"
    connection = websocket.create_connection(address, timeout=10, header=offer)
    assert "sec-websocket-extensions" not in connection.headers
    connection.close()


# -- CORS ------------------------------------------------------------------------------------


def test_a_preflight_of_a_listed_page_is_answered_without_a_key(web: Stack) -> None:
    wish = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "x-api-key"}
    answer = ask(web, "OPTIONS", "/synthesize/stream", Origin=APP, **wish)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == APP
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert "X-API-Key" in answer.headers["Access-Control-Allow-Headers"]
    own = {"Access_Control_Request_Headers": "authorization,x-stainless-os,x-stainless-lang"}
    answer = ask(web, "OPTIONS", "/v1/audio/speech", Origin=APP, **wish | own)
    assert "x-stainless-os" in answer.headers["Access-Control-Allow-Headers"]
    assert "Origin" in answer.headers["Vary"]
    assert "Access-Control-Allow-Credentials" not in answer.headers
    refused = ask(web, "OPTIONS", "/synthesize/stream", Origin=EVIL, **wish)
    assert not [name for name in refused.headers if name.startswith("Access-Control")]


def test_a_listed_page_can_read_answers_and_errors(web: Stack) -> None:
    for method, path in (("GET", "/jobs"), ("POST", "/synthesize"), ("GET", "/nowhere")):
        answer = ask(web, method, path, Origin=APP)
        assert answer.headers["Access-Control-Allow-Origin"] == APP
        assert "X-Job-Id" in answer.headers["Access-Control-Expose-Headers"]


def test_nothing_of_cors_is_said_unless_asked_for() -> None:
    assert not origins().listed
    for text in ("*", "null", "app.example.com", "https://app.example.com/page", "https://*.a.com"):
        with pytest.raises(SettingsError, match="SUPERTONIC_CORS_ORIGINS"):
            origins(cors_origins=text)
    listed = origins(cors_origins="https://A.example.com/, chrome-extension://abc").listed
    assert listed == {"https://a.example.com", "chrome-extension://abc"}


# -- headers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/ui", "/static/player.js", "/nowhere", "/synthesize"])
def test_every_answer_keeps_browsers_careful(web: Stack, path: str) -> None:
    headers = ask(web, "GET", path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "microphone=()" in headers["Permissions-Policy"]
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy if path == "/ui" else "default-src 'none'" in policy
    assert "frame-ancestors" in policy and "unsafe" not in policy
