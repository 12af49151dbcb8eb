"""Who may ask the server: its own name, its own site, GET, and the token where there is one."""

import pytest
from small_set import viewer
from starlette.testclient import TestClient

from mammoclip_jax.viewer import guard

TOKEN = "a-token-that-is-long"


@pytest.fixture(scope="module")
def page():
    return viewer()


@pytest.fixture
def client(page):
    return TestClient(page.app(guard.names_of("127.0.0.1")), base_url="http://127.0.0.1:8090")


@pytest.mark.parametrize("host", ["127.0.0.1:8090", "localhost:8090", "LOCALHOST", "[::1]:8090"])
def test_its_own_names_are_answered(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example", "", "192.168.1.9:8090", "localhost.evil"]
)
def test_foreign_names_are_refused(client, host):
    """A name that somebody points at this machine (DNS rebinding) gets nothing, not even an error of the page's."""
    for path in ("/", "/api/about", "/static/main.js", "/api/nothing"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == 421 and "phantom" not in answer.text


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_may_not_ask(client, site):
    assert client.get("/api/about", headers={"Sec-Fetch-Site": site}).status_code == 403
    assert client.get("/api/about", headers={"Origin": "http://evil.example"}).status_code == 403
    own = {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8090"}
    assert client.get("/api/about", headers=own).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_changed(client, method):
    assert client.request(method, "/api/about").status_code == 405


def test_every_answer_carries_the_policy(client):
    for path in ("/", "/api/about", "/api/exams/none", "/static/main.js", "/nothing"):
        headers = client.get(path).headers
        assert (
            "default-src 'none'" in headers["content-security-policy"]
            and "unsafe" not in headers["content-security-policy"]
        )
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in headers)


def test_without_the_token_nothing_is_answered(page):
    client = TestClient(
        page.app(guard.names_of("0.0.0.0"), TOKEN), base_url="http://192.168.1.9:8090", follow_redirects=False
    )
    for path in ("/", "/api/about", "/static/main.js", "/?token=wrong", "/?token="):
        assert client.get(path).status_code == 401
    assert client.get("/api/about", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/api/about", headers={"Cookie": f"{guard.COOKIE}=wrong"}).status_code == 401
    answer = client.get(f"/?token={TOKEN}&x=1")
    assert answer.status_code == 303 and answer.headers["location"] == "/?x=1"  # out of the address
    assert "HttpOnly" in answer.headers["set-cookie"] and "SameSite=Strict" in answer.headers["set-cookie"]
    assert client.get("/api/about").status_code == 200  # with the cookie
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
    for path in ("//evil.example/", "/%5c%5cevil.example/", "/%0d%0aSet-Cookie:x"):
        answer = client.get(f"http://192.168.1.9:8090{path}?token={TOKEN}")
        assert answer.headers["location"][:2] not in ("//", "/\\") and answer.headers["location"].isprintable()


def test_which_hosts_are_loopback():
    assert [guard.is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [guard.is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.9", "reader", "")] == [False] * 5
    assert guard.names_of("192.168.1.9") >= {"192.168.1.9", "localhost"} and "*" not in guard.names_of("192.168.1.9")
