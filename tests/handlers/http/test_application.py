"""HTTP over a real socket: the invoice link, the provider's webhook, health, and malformed requests."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from threading import Barrier
from urllib.parse import quote, urlsplit

import httpx
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.invoice import InvoiceEmailed, InvoiceIssued
from domain.invoice_link import LinkConsumed, LinkIssued, LinkRefused
from domain.order import PaymentCaptured
from handlers.http.problems import SAFE_HEADERS
from handlers.requests import RenewInvoiceLink
from infra.event_log.log import LogUnavailable
from infra.payments.paypal import WEBHOOK_BYTES_MAX
from infra.simulators.payment_simulator import Faults
from tests.support.at_work import AtWork, eventually, link_in
from tests.support.databases import ServerAddresses, as_owner
from tests.support.in_memory import ADA, SECRET, token_of

BROWSER = {"Accept": "text/html,application/xhtml+xml"}
ABSENT = token_of("an order that nobody ever placed")


@pytest.fixture(name="http")
def _http(shop: AtWork) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shop.url, trust_env=False, timeout=30) as client:
        yield client


@dataclass(frozen=True)
class Link:
    """A link that was mailed."""

    url: str
    invoice: InvoiceIssued

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def token(self) -> str:
        return self.path.rpartition("/")[2]


@pytest.fixture(name="link")
def _link(shop: AtWork) -> Link:
    """A fresh link to a new invoice."""
    return bought_link(shop)


def bought_link(shop: AtWork) -> Link:
    order_id = shop.buy()
    shop.until(InvoiceEmailed, order_id)
    (invoice,) = shop.all(InvoiceIssued, order_id)
    return Link(shop.link(invoice.number), invoice)


def attempts(shop: AtWork, link: Link) -> Counter[str]:
    """The outcome of every use of an invoice's links: consumed, or the reason for the refusal."""
    ours = {event.link_id for event in shop.all(LinkIssued) if event.invoice_id == link.invoice.invoice_id}
    consumed = ["consumed" for event in shop.all(LinkConsumed) if event.link_id in ours]
    return Counter(consumed + [event.reason for event in shop.all(LinkRefused) if event.link_id in ours])


def look(answer: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """Everything that a stranger sees of an answer, except the time."""
    return answer.status_code, answer.content, {name: answer.headers[name] for name in answer.headers if name != "date"}


# --- the link ------------------------------------------------------------------------------------------------------


def test_a_mail_scanner_that_opens_the_link_does_not_spend_it(shop: AtWork, http: httpx.Client, link: Link) -> None:
    for verb in ("GET", "HEAD", "GET", "HEAD"):
        assert http.request(verb, link.path).status_code == 200
    assert attempts(shop, link) == {}

    assert http.post(link.path).status_code == 200


def test_the_page_is_the_same_to_the_byte_for_any_token(shop: AtWork, http: httpx.Client, link: Link) -> None:
    spent = bought_link(shop).path
    assert http.post(spent).status_code == 200
    head = shop.dependencies.log.head()
    for verb in ("GET", "HEAD"):
        pages = {
            str(look(http.request(verb, path))) for path in (link.path, spent, f"/invoices/{ABSENT}", "/invoices/x")
        }
        assert len(pages) == 1
    assert shop.dependencies.log.head() == head


def test_the_page_of_the_link_has_a_button_and_loads_nothing(http: httpx.Client, link: Link) -> None:
    page = http.get(link.path)

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert '<form method="post"><button type="submit">View the invoice</button></form>' in page.text
    assert link.token not in page.text
    for loads in ("<script", "src=", "href=", "url(", "@import"):
        assert loads not in page.text


def test_the_button_serves_the_document_as_issued(http: httpx.Client, link: Link) -> None:
    answer = http.post(link.path)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/pdf"
    assert hashlib.sha256(answer.content).hexdigest() == link.invoice.document.sha256
    assert len(answer.content) == link.invoice.document.size_bytes


def test_exactly_one_of_100_uses_at_once_wins_and_each_is_recorded(
    shop: AtWork, http: httpx.Client, link: Link
) -> None:
    barrier = Barrier(100)

    def use(_number: int) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=60, verify=False) as client:  # noqa: S501 - plain HTTP
            barrier.wait()
            return client.post(link.url)

    with ThreadPoolExecutor(100) as crowd:
        answers = list(crowd.map(use, range(100)))

    assert Counter(answer.status_code for answer in answers) == {200: 1, 404: 99}
    assert len({str(look(answer)) for answer in answers if answer.status_code == 404}) == 1
    assert attempts(shop, link) == {"consumed": 1, "used": 99}


def test_absent_used_expired_and_revoked_links_get_the_same_answer_to_the_byte(
    shop: AtWork, http: httpx.Client
) -> None:
    """A different answer would reveal which tokens exist."""
    used, revoked, expired = [bought_link(shop) for _ in range(3)]
    assert http.post(used.path).status_code == 200
    shop.ask(RenewInvoiceLink(invoice_id=revoked.invoice.invoice_id), ADA)
    half_right = expired.token[:22] + ABSENT[22:]
    shop.around.clock.advance(timedelta(hours=24))

    paths = [link.path for link in (used, revoked, expired)]
    paths += [f"/invoices/{token}" for token in (ABSENT, half_right, "x", "x" * 64, "%00", expired.token + "=")]
    for headers in ({}, BROWSER):
        answers = [http.post(path, headers=headers) for path in paths]
        assert len({str(look(answer)) for answer in answers}) == 1
        assert answers[0].status_code == 404

    assert attempts(shop, used) == {"consumed": 1, "used": 2}
    assert attempts(shop, revoked) == {"revoked": 2}
    assert attempts(shop, expired) == {"expired": 2}


def test_a_browser_gets_a_page_and_a_program_a_problem(http: httpx.Client) -> None:
    page = http.post(f"/invoices/{ABSENT}", headers=BROWSER)
    problem = http.post(f"/invoices/{ABSENT}", headers={"Accept": "application/json"})

    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "This link is not valid, or was used already; ask for a new one." in page.text
    assert problem.headers["content-type"] == "application/problem+json"
    assert problem.json() == {
        "type": "urn:trunkline:problem:unknown_link",
        "title": "unknown link",
        "status": 404,
        "detail": "This link is not valid, or was used already; ask for a new one.",
    }


def test_a_new_link_works_and_the_previous_one_does_not(shop: AtWork, http: httpx.Client, link: Link) -> None:
    shop.ask(RenewInvoiceLink(invoice_id=link.invoice.invoice_id), ADA)
    mails = eventually(lambda: len(found := shop.mails(link.invoice.number)) == 2 and found, "the second mail")
    assert isinstance(mails, list)
    (new,) = {link_in(mail) for mail in mails} - {link.url}

    assert http.post(link.path).status_code == 404
    assert http.post(new).status_code == 200


def test_while_the_document_cannot_be_read_the_link_is_not_spent(
    shop: AtWork, http: httpx.Client, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_sha256: str) -> None:
        raise LogUnavailable("The log does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(shop.dependencies.log, "document", away)
        answer = http.post(link.path)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:trunkline:problem:unavailable")
    assert answer.headers["Connection"] == "close"
    assert attempts(shop, link) == {}

    assert http.post(link.path).status_code == 200


# --- secrecy -------------------------------------------------------------------------------------------------------


def test_a_token_is_in_no_log_and_nowhere_in_the_database(
    shop: AtWork, servers: ServerAddresses, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        link = bought_link(shop)
        for verb in ("GET", "POST", "POST", "PUT"):
            http.request(verb, link.path)
        http.post(f"/invoices/{link.token[:-4]}AAAA")
        http.get(f"/nowhere/{link.token}")

    theirs = ("httpx", "httpcore", "mail")  # the test's own client, and the recipient's mail server
    ours = "\n".join(
        f"{record.getMessage()} {record.exc_text}" for record in caplog.records if not record.name.startswith(theirs)
    )
    assert "Received" in ours
    assert link.token not in ours

    assert link.invoice.number in everything_stored(shop, servers)
    assert link.token not in everything_stored(shop, servers)
    assert link.token[22:] not in everything_stored(shop, servers)
    assert SECRET.decode() not in everything_stored(shop, servers)


def everything_stored(shop: AtWork, servers: ServerAddresses) -> str:
    """Every row of our tables as text; bytes are decoded as far as possible."""
    rows = []
    with psycopg.connect(as_owner(servers, shop.running.database_url)) as conn:
        tables = conn.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('log', 'read', 'public')"
        ).fetchall()
        assert len(tables) > 10
        for (table,) in tables:
            for row in conn.execute(f"SELECT * FROM {table}".encode()):
                rows += [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in row]
    return "\n".join(rows)


def test_every_answer_about_a_link_forbids_caching_and_referrers(http: httpx.Client, link: Link) -> None:
    answers = [
        http.get(link.path),
        http.head(link.path),
        http.post(link.path),
        http.post(link.path),
        http.post(link.path, headers=BROWSER),
        http.put(link.path),
        http.get("/nowhere"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 404, 405, 404]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in SAFE_HEADERS} == SAFE_HEADERS
    assert "default-src 'none'" in SAFE_HEADERS["Content-Security-Policy"]
    assert SAFE_HEADERS["Referrer-Policy"] == "no-referrer"


# --- the provider's webhook ----------------------------------------------------------------------------------------


def webhook(capture_id: str) -> dict[str, object]:
    return {"id": "WH-1", "event_type": "PAYMENT.CAPTURE.COMPLETED", "resource": {"id": capture_id}}


def test_a_webhook_25_times_at_once_and_three_days_later_records_one_capture(shop: AtWork) -> None:
    order_id, capture_id = shop.taken()
    shop.around.simulator.send_webhooks_to(f"{shop.url}/webhooks/paypal")
    assert shop.all(PaymentCaptured, order_id) == []

    assert shop.around.simulator.redeliver(capture_id, times=25) == [204] * 25
    shop.until(InvoiceEmailed, order_id)
    head = shop.dependencies.log.head()
    shop.around.clock.advance(timedelta(days=3))
    assert shop.around.simulator.redeliver(capture_id, times=3) == [204] * 3

    assert len(shop.all(PaymentCaptured, order_id)) == 1
    assert shop.dependencies.log.head() == head


def test_a_forged_webhook_is_refused_and_writes_nothing(shop: AtWork, http: httpx.Client) -> None:
    head = shop.dependencies.log.head()
    answer = http.post("/webhooks/paypal", json=webhook("0FORGED0CAPTURE00"))

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == "The provider knows no such payment."
    assert shop.dependencies.log.head() == head


def test_a_webhook_of_any_other_type_is_accepted_and_writes_nothing(shop: AtWork, http: httpx.Client) -> None:
    head = shop.dependencies.log.head()
    answer = http.post("/webhooks/paypal", json={"id": "WH-2", "event_type": "CHECKOUT.ORDER.APPROVED"})

    assert (answer.status_code, answer.content) == (204, b"")
    assert shop.dependencies.log.head() == head


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b'"PAYMENT.CAPTURE.COMPLETED"',
        b"{}",
        b'{"event_type": 5}',
        b'{"event_type": "PAYMENT.CAPTURE.COMPLETED"}',
        b'{"event_type": "PAYMENT.CAPTURE.COMPLETED", "resource": {"id": "../../v2/anything"}}',
        b'{"event_type": "PAYMENT.CAPTURE.COMPLETED", "resource": {"id": "\\u0000"}}',
        b'{"event_type": "PAYMENT.CAPTURE.COMPLETED", "resource": {"id": "\\ud800"}}',
        b'{"event_type": "PAYMENT.CAPTURE.COMPLETED", "resource": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"event_type": "PAYMENT.CAPTURE.COMPLETED", "resource": {"id": "' + b"A" * 200 + b'"}}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_an_invalid_webhook_is_refused_and_writes_nothing(shop: AtWork, http: httpx.Client, body: bytes) -> None:
    head = shop.dependencies.log.head()
    answer = http.post("/webhooks/paypal", content=body)

    assert answer.status_code == 400
    assert answer.json()["type"] == "urn:trunkline:problem:unreadable_webhook"
    assert shop.dependencies.log.head() == head


def test_a_webhook_that_is_too_large_is_refused_before_it_is_read(http: httpx.Client) -> None:
    whole = http.post("/webhooks/paypal", content=b" " * (WEBHOOK_BYTES_MAX + 1))
    piecemeal = http.post("/webhooks/paypal", content=iter([b" " * 1024] * 65))

    for answer in (whole, piecemeal):
        assert answer.status_code == 413
        assert answer.json()["type"] == "urn:trunkline:problem:too_large"
    assert http.post("/webhooks/paypal", content=b" " * WEBHOOK_BYTES_MAX).status_code == 400


def test_while_the_provider_does_not_answer_a_webhook_asks_for_a_retry(shop: AtWork, http: httpx.Client) -> None:
    shop.around.simulator.inject(Faults(unavailable=100))
    answer = http.post("/webhooks/paypal", json=webhook("0ANYTHING00000000"))
    shop.around.simulator.inject(Faults())

    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:trunkline:problem:payment_provider_unavailable"


# --- everything else -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/invoices/", 404),
        ("GET", "/invoices/a/b", 404),
        ("DELETE", "/invoices/x", 405),
        ("GET", "/webhooks/paypal", 405),
        ("POST", "/health", 405),
    ],
)
def test_an_unknown_path_is_a_problem_in_json(http: httpx.Client, verb: str, path: str, status: int) -> None:
    answer = http.request(verb, path)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status


def test_a_wrong_method_is_answered_with_the_allowed_ones(http: httpx.Client) -> None:
    """RFC 9110, 15.5.6: a 405 names them."""
    assert http.put("/webhooks/paypal").headers["allow"] == "POST"
    assert set(http.put("/invoices/x").headers["allow"].split(", ")) <= {"GET", "HEAD", "POST"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(
    verb=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
    path=st.one_of(
        st.text(max_size=30),
        st.text(max_size=80).map(lambda text: f"invoices/{text}"),
        st.sampled_from(["webhooks/paypal", "health"]),
    ),
    body=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)),
)
def test_no_request_is_answered_with_500(shop: AtWork, http: httpx.Client, verb: str, path: str, body: bytes) -> None:
    head = shop.dependencies.log.head()
    answer = http.request(verb, f"/{quote(path, safe='/')}", content=body)

    assert answer.status_code < 500
    assert shop.dependencies.log.head() == head


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /invoices/%ff%fe HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /invoices/%00 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"POST /webhooks/paypal HTTP/1.1\r\nHost: x\r\nContent-Length: nonsense\r\n\r\n",
        b"GET /invoices/x HTTP/1.1\r\nHost: x\r\nAccept: \xff\xfe\r\n\r\n",
    ],
    ids=["bytes that are not text", "a NUL", "a parent path", "not HTTP", "an invalid length", "a header of bytes"],
)
def test_malformed_http_is_answered_below_500_too(shop: AtWork, request_bytes: bytes) -> None:
    where = urlsplit(shop.url)
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=10) as connection:
        connection.sendall(request_bytes)
        status = int(connection.makefile("rb").readline().split()[1])

    assert 200 <= status < 500


def test_a_client_that_disconnects_during_a_webhook_does_no_harm(shop: AtWork, http: httpx.Client) -> None:
    where = urlsplit(shop.url)
    for _ in range(3):
        with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=10) as connection:
            connection.sendall(b"POST /webhooks/paypal HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")

    assert http.get("/health").status_code == 200


def test_health_reports_the_progress_of_everything(shop: AtWork, http: httpx.Client) -> None:
    def current() -> bool:
        report = http.get("/health").json()
        return set(report["projections"].values()) == {report["head"]}

    eventually(current, "every projection at the head")
    answer = http.get("/health")
    assert answer.status_code == 200
    assert answer.json()["ok"] is True
    assert answer.json()["worker"] == "working"
    assert answer.json()["halted"] == {}
