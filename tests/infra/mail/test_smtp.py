"""Mail to a real server on this machine: accepted, refused for now or for good, and unreachable."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from email.policy import SMTP

import pytest

import infra.mail.smtp
from infra.mail.smtp import MailNotSent, SmtpMailer
from infra.settings import Security
from infra.simulators.mail_catcher import BANNER, Catcher, mail_catcher

PASSWORD = "correct horse"  # noqa: S105 - of a server that lives for one test


def mail(subject: str = "The invoice", to: str = "ada@analytical.example") -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message["From"] = "billing@seller.example"
    message["To"] = to
    message["Subject"] = subject
    message.set_content("Dear Ada Łovelace,\n.\nthat was a line with a dot.\n")
    return message


def without_certificate(side: int) -> ssl.SSLContext:
    """Return a TLS context that needs no certificate, so that the repository needs no key."""
    context = ssl.SSLContext(side)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("aNULL:@SECLEVEL=0")
    return context


@pytest.fixture(name="catcher")
def _catcher() -> Iterator[Catcher]:
    with mail_catcher() as catcher:
        yield catcher


@pytest.fixture(name="mailer")
def _mailer(catcher: Catcher) -> Iterator[SmtpMailer]:
    with SmtpMailer(catcher.host, catcher.port) as mailer:
        yield mailer


def test_a_message_arrives_as_it_was_sent(catcher: Catcher, mailer: SmtpMailer) -> None:
    mailer.send(mail())

    (received,) = catcher.wait_for(1, timeout_s=30)
    assert received["Subject"] == "The invoice"
    assert received.get_content().splitlines() == mail().get_content().splitlines()


def test_one_mailer_serves_many_threads(catcher: Catcher, mailer: SmtpMailer) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: mailer.send(mail(str(number))), range(12)))

    assert {int(message["Subject"]) for message in catcher.wait_for(12, timeout_s=30)} == set(range(12))


def test_a_recipient_refused_for_good_is_a_permanent_failure(catcher: Catcher, mailer: SmtpMailer) -> None:
    catcher.refusal = "550 5.1.1 <ada@analytical.example>: no such user"

    with pytest.raises(
        MailNotSent, match=r"did not accept the message: 550 5\.1\.1 <\[address\]>: no such user\.$"
    ) as refused:
        mailer.send(mail())

    assert refused.value.permanent
    assert catcher.messages == []


def test_a_recipient_refused_for_now_is_a_temporary_failure(catcher: Catcher, mailer: SmtpMailer) -> None:
    catcher.refusal = "451 4.3.0 greylisted, come back later"
    with pytest.raises(MailNotSent, match="451") as refused:
        mailer.send(mail())
    assert not refused.value.permanent

    catcher.refusal = None
    mailer.send(mail())
    assert len(catcher.wait_for(1, timeout_s=30)) == 1


def test_a_message_refused_for_good_is_a_permanent_failure(catcher: Catcher, mailer: SmtpMailer) -> None:
    message = mail()
    message.set_payload("x" * 2000)  # RFC 5322 permits lines of 998

    with pytest.raises(MailNotSent, match="500 Line too long") as refused:
        mailer.send(message)

    assert refused.value.permanent
    assert catcher.messages == []


def test_an_address_beyond_ascii_goes_by_smtputf8(catcher: Catcher, mailer: SmtpMailer) -> None:
    mailer.send(mail(to="łukasz@żółć.example"))

    (received,) = catcher.wait_for(1, timeout_s=30)
    assert received["To"] == "łukasz@żółć.example"


# --- kept connections -----------------------------------------------------------------------------------------------


def test_messages_one_after_another_go_over_one_connection(catcher: Catcher, mailer: SmtpMailer) -> None:
    for number in range(3):
        mailer.send(mail(str(number)))

    assert [message["Subject"] for message in catcher.wait_for(3, timeout_s=30)] == ["0", "1", "2"]
    assert len(catcher.sessions) == 1


def test_after_the_server_has_hung_up_a_message_goes_over_a_new_connection(
    catcher: Catcher, mailer: SmtpMailer
) -> None:
    """Servers hang up when they restart, or after an idle time."""
    mailer.send(mail("before"))
    (session,) = catcher.sessions
    assert session.transport
    session.loop.call_soon_threadsafe(session.transport.close)
    mailer.send(mail("afterwards"))

    assert [message["Subject"] for message in catcher.wait_for(2, timeout_s=30)] == ["before", "afterwards"]
    assert len(catcher.sessions) == 2


def test_a_connection_that_was_idle_for_long_is_not_reused(
    catcher: Catcher, mailer: SmtpMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailer.send(mail())
    monkeypatch.setattr(infra.mail.smtp, "KEPT_S", 0.0)
    mailer.send(mail())

    assert len(catcher.sessions) == 2


def test_after_a_refusal_the_connection_is_not_kept(catcher: Catcher, mailer: SmtpMailer) -> None:
    catcher.refusal = "451 4.3.0 greylisted, come back later"
    with pytest.raises(MailNotSent, match="451"):
        mailer.send(mail())
    catcher.refusal = None
    mailer.send(mail())

    assert len(catcher.sessions) == 2


# --- unusable servers -----------------------------------------------------------------------------------------------


def test_an_unreachable_server_is_a_temporary_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with pytest.raises(MailNotSent, match=f"127.0.0.1:{port} cannot be used") as failed:
        SmtpMailer("127.0.0.1", port).send(mail())

    assert not failed.value.permanent


def test_a_silent_server_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        mailer = SmtpMailer("127.0.0.1", listener.getsockname()[1], timeout_s=0.1)
        with pytest.raises(MailNotSent, match="timed out") as failed:
            mailer.send(mail())

    assert not failed.value.permanent


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
def test_a_message_goes_over_tls_with_a_login(security: Security) -> None:
    server, client = without_certificate(ssl.PROTOCOL_TLS_SERVER), without_certificate(ssl.PROTOCOL_TLS_CLIENT)
    tls, starttls = (server, None) if security is Security.TLS else (None, server)
    with mail_catcher(tls=tls, starttls=starttls, login=("trunkline", PASSWORD)) as catcher:
        with SmtpMailer(catcher.host, catcher.port, security, "trunkline", PASSWORD, context=client) as mailer:
            mailer.send(mail())
            mailer.send(mail())

        assert len(catcher.wait_for(2, timeout_s=30)) == 2
        assert PASSWORD not in repr(mailer)


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
def test_a_server_without_a_trusted_certificate_gets_nothing(security: Security) -> None:
    server = without_certificate(ssl.PROTOCOL_TLS_SERVER)
    tls, starttls = (server, None) if security is Security.TLS else (None, server)
    with mail_catcher(tls=tls, starttls=starttls) as catcher:
        with pytest.raises(MailNotSent, match="cannot be used") as failed:
            SmtpMailer(catcher.host, catcher.port, security).send(mail())

        assert not failed.value.permanent
        assert catcher.messages == []


def test_without_starttls_nothing_is_sent_in_the_clear(catcher: Catcher) -> None:
    with pytest.raises(MailNotSent, match="STARTTLS") as failed:
        SmtpMailer(catcher.host, catcher.port, Security.STARTTLS).send(mail())

    assert not failed.value.permanent


def test_a_wrong_password_is_a_temporary_failure() -> None:
    with mail_catcher(login=("trunkline", PASSWORD)) as catcher:
        with pytest.raises(MailNotSent, match="535") as failed:
            SmtpMailer(catcher.host, catcher.port, Security.NONE, "trunkline", "battery staple").send(mail())

        assert not failed.value.permanent


def test_the_catcher_says_what_it_is(catcher: Catcher) -> None:
    with socket.create_connection((catcher.host, catcher.port), timeout=30) as client, client.makefile() as lines:
        assert BANNER in lines.readline()


def test_the_catcher_stops_while_a_client_is_still_connected() -> None:
    with mail_catcher() as catcher:
        client = socket.create_connection((catcher.host, catcher.port), timeout=30)
        with client, client.makefile() as lines:
            assert lines.readline().startswith("220 ")


def test_waiting_for_mail_times_out(catcher: Catcher) -> None:
    with pytest.raises(TimeoutError, match="0 of 1 messages"):
        catcher.wait_for(1, timeout_s=0.01)
