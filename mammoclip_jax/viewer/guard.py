"""Who may ask the server what: one origin, by a name of its own, with the token where others can reach it."""

import hmac
import ipaddress
import socket
from collections.abc import Iterable
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, quote, urlencode

LOOPBACK = ("localhost", "127.0.0.1", "::1")
COOKIE = "mammoclip_view"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",  # images of patients stay out of the browser's cache
}
METHODS = ("GET", "HEAD")  # nothing that a page elsewhere could change


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_of(host: str) -> frozenset[str]:
    """The names by which a browser may call the server that listens at `host`; "*": any address, but no other name.

    A name that somebody else makes point here (DNS rebinding) is none of them.
    """
    if is_loopback(host):
        return frozenset((*LOOPBACK, host))
    anywhere = host in ("", "0.0.0.0", "::")
    own = (*LOOPBACK, socket.gethostname(), socket.getfqdn()) + (("*",) if anywhere else (host,))
    return frozenset(name.lower() for name in own)


class Guard:
    """ASGI middleware: refuses foreign Host headers, other sites' requests, other methods and, with a token, strangers."""

    def __init__(self, app, *, hosts: Iterable[str], token: str = ""):
        """`token` "": none is asked for. It comes as ?token= once, which sets a cookie, or as "Authorization: Bearer"."""
        self.app, self.hosts, self.token = app, frozenset(hosts), token

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused:
            await _answer(send, *refused)
            return
        given = parse_qs(scope["query_string"].decode("latin-1"))
        if self.token and "token" in given and self._same(given["token"][0]):
            rest = {name: values for name, values in given.items() if name != "token"}
            query = f"?{urlencode(rest, doseq=True)}" if rest else ""
            cookie = f"{COOKIE}={self.token}; Path=/; HttpOnly; SameSite=Strict"
            await _answer(
                send, 303, "", {"Location": f"/{quote(scope['path'].lstrip('/'))}{query}", "Set-Cookie": cookie}
            )
            return

        async def guarded(message):
            if message["type"] == "http.response.start":
                names = {key.lower() for key, _ in message.get("headers", ())}
                more = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items() if k.lower().encode() not in names]
                message = message | {"headers": [*message.get("headers", ()), *more]}
            await send(message)

        await self.app(scope, receive, guarded)

    def _refused(self, scope, headers) -> tuple[int, str] | None:
        if not self._known_host(headers.get("host", "")):
            return 421, "this server does not go by that name"
        if scope["method"] not in METHODS:
            return 405, "only GET"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return 403, "asked by another site"
        if "origin" in headers and headers["origin"].partition("://")[2] != headers.get("host"):
            return 403, "asked by another site"
        if not self.token:
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        if any(map(self._same, (given, bearer, cookie.value if cookie else ""))):
            return None
        return 401, "open the address with ?token=..., as the command printed it"

    def _same(self, given: str) -> bool:
        return bool(given) and hmac.compare_digest(given.encode(), self.token.encode())

    def _known_host(self, host: str) -> bool:
        name = host.lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.rpartition(":")[0] or name
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return "*" in self.hosts


async def _answer(send, status: int, text: str, headers: dict[str, str] = {}) -> None:
    said = {"Content-Type": "text/plain; charset=utf-8", **HEADERS, **headers}
    raw = [(key.lower().encode(), value.encode()) for key, value in said.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": text.encode()})
