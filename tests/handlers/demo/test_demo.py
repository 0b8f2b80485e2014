"""The demo reports what happened; every figure that it claims is worked out here by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra.servers.embedded_postgres import temporary_directory
from tests.support.showing import Showing


def test_the_first_order_carves_20_ultimate_out_of_100_extensions(showing: Showing) -> None:
    assert showing.figures["package_extensions"] == 100
    assert showing.figures["enterprise_after_first_order"] == 80
    assert showing.figures["ultimate_after_first_order"] == 20
    assert showing.figures["first_order"]["total_minor"] == 20 * 18_00 + 68_40


def test_amounts_mid_term_are_for_the_days_that_are_left(showing: Showing) -> None:
    """From 1 September 2026 to 2 March 2027 there are 182 of 365 days; half up to the cent, line by line."""
    lines = showing.figures["second_order"]["lines"]

    assert {(line["days_remaining"], line["days_of_term"]) for line in lines.values()} == {(182, 365)}
    assert {service: line["amount_minor"] for service, line in lines.items()} == {
        "extensions": 149_59,  # 25 x 12.00 x 182 / 365 = 149.589
        "recording_minutes": 99_73,  # 10,000 x 0.02 x 182 / 365 = 99.726
        "transcription_minutes": 30_00,  # one-time, so whole
        "high_availability": 239_34,  # 2 x 240.00 x 182 / 365 = 239.342
        "ycm_white_label": 299_18,  # 600.00 x 182 / 365 = 299.178
        "custom_domain": 59_84,  # 120.00 x 182 / 365 = 59.836
    }
    assert showing.figures["second_order"]["net_minor"] == 877_68
    assert showing.figures["second_order"]["tax_minor"] == 166_76  # 19 % of 877.68 = 166.7592
    assert showing.figures["second_order"]["total_minor"] == 1044_44


def test_a_capture_reported_26_times_is_recorded_once(showing: Showing) -> None:
    assert showing.figures["webhooks_redelivered"] == 25
    assert showing.figures["webhook_answers"] == [204]
    assert showing.figures["captures_recorded_of_the_first_order"] == 1


def test_the_link_works_once_and_for_a_day(showing: Showing) -> None:
    assert showing.figures["link_get_status"] == 200
    assert showing.figures["link_first_use_status"] == 200
    assert showing.figures["link_second_use_status"] == 404
    assert showing.figures["expired_link_status"] == 404
    assert showing.figures["renewed_link_status"] == 200


def test_a_payment_after_cancellation_is_set_aside(showing: Showing) -> None:
    assert showing.figures["set_aside_reason"] == "cancelled"
    assert showing.figures["set_aside_minor"] == 7_12
    [aside] = [payment for payment in showing.end["billing"]["payments"] if payment["set_aside"]]
    assert aside["amount_minor"] == 7_12


def test_refusals_say_why(showing: Showing) -> None:
    assert "12 left in the pool" in showing.figures["refused_one_too_many"]
    assert "account_manager, distributor" in showing.figures["refused_confirmed_by_the_customer"]
    assert "was already used" in showing.figures["refused_pi_number_again"]
    assert "declined" in showing.figures["decline_reason"]


def test_every_figure_in_the_text_is_in_the_json(showing: Showing) -> None:
    figures = showing.figures

    for told in [
        f"a PDF of {figures['invoice_bytes']:,} bytes",
        f"The new link: 200, {figures['renewed_link_bytes']:,} bytes",
        f"before the second order (position {figures['position_before_the_second_order']})",
        f"against proforma invoice {figures['pi_number']}.",
        f"Subject: {figures['mail_subject']}",
        f"The distributor's mail: {figures['distributors_mail']}",
        f"refused: {figures['refused_ultimate_above_extensions']}",
        f"refused: {figures['lost_answer']}",
        f"second use: 404, {figures['link_second_use_answer']}",
        f"refused: 404, {figures['expired_link_answer']}",
        f"Proof: {figures['events']} events",
    ]:
        assert told in showing.told
    assert figures["second_order"]["taxes"] == [{"rate_bp": 19_00, "tax_minor": 166_76}]


def test_entitlements_are_also_shown_as_of_before_the_second_order(showing: Showing) -> None:
    assert showing.figures["entitlements_before_the_second_order"] == {
        "extensions": {"total": 100, "allocated": 80},
        "enterprise_plan": {"total": 80, "allocated": 60},
        "ultimate_plan": {"total": 20, "allocated": 20},
    }


def test_the_end_state_is_what_was_bought_and_allocated(showing: Showing) -> None:
    entitlements = {
        line["service"]: (line["total"], line["allocated"], line["available"]) for line in showing.end["entitlements"]
    }

    assert entitlements == {
        "extensions": (135, 80, 55),
        "enterprise_plan": (115, 60, 55),
        "ultimate_plan": (20, 20, 0),
        "recording_minutes": (10_000, 200, 9_800),
        "transcription_minutes": (3_000, 0, 3_000),
        "high_availability": (2, 1, 1),
        "ycm_white_label": (1, 0, 1),
        "pce_white_label": (1, 0, 1),
        "custom_domain": (1, 0, 1),
    }
    assert [line["number"] for line in showing.end["billing"]["documents"]] == [
        "YT-2026-000001",
        "YT-2026-000002",
        "YT-2026-000003",
    ]
    assert showing.end["billing"]["owed"] == []
    assert [
        (line["pbx_id"], line["plan"], line["service"], line["assigned"], line["drawn"])
        for line in showing.end["allocations"]
    ] == [
        ("head-office", "enterprise", "extensions", 60, 60),
        ("head-office", "enterprise", "high_availability", 1, 1),
        ("head-office", "enterprise", "recording_minutes", 700, 200),
        ("lab", "ultimate", "extensions", 8, 8),
        ("sales", "ultimate", "extensions", 12, 12),
    ]
    assert sorted(link["state"] for link in showing.end["invoice_links"]) == [
        "consumed",
        "consumed",
        "issued",
        "revoked",
    ]
    assert sorted(attempt["outcome"] for attempt in showing.end["invoice_link_attempts"]) == [
        "consumed",
        "consumed",
        "expired",
        "used",
    ]
    assert showing.figures["replay_equals_read_models"] is True


@pytest.mark.parametrize(
    "told",
    [
        "80 Enterprise + 20 Ultimate",
        "Subject: Invoice YT-2026-000001",
        "x 182 of 365 days",
        "OrderFulfilled",
        "InvoiceNumberAssigned",
        "read.entitlements pkg-acme extensions: total 100 -> 125",
        "Entitlements of ACME",
        "Billing of ACME",
    ],
)
def test_the_demo_prints_text_events_and_rows(showing: Showing, told: str) -> None:
    assert told in showing.told


@pytest.mark.slow
def test_one_command_runs_the_demo_on_its_own_servers_and_leaves_none_running() -> None:
    """`trunkline demo --json --keep DIR` prints one JSON document, keeps the data, and stops its servers.

    It mentions a link that is valid for 24 hours, whatever the environment says.
    """
    with temporary_directory() as directory:
        keep = directory / "kept"
        shown = subprocess.run(
            [str(Path(sys.executable).with_name("trunkline")), "demo", "--json", "--keep", str(keep)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=os.environ | {"TRUNKLINE_LINK_HOURS": "48"},
        )

        assert shown.stderr == ""
        assert shown.returncode == 0
        assert json.loads(shown.stdout)["figures"]["replay_equals_read_models"] is True
        assert (keep / "postgres" / "pgdata" / "PG_VERSION").exists()
        assert not [
            process for process in psutil.process_iter(["cmdline"]) if str(keep) in str(process.info["cmdline"])
        ]
