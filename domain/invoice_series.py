"""The invoice numbers of one seller and year: gapless, assigned at issue, never reused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from domain.messages import Command, Decider, Event, Identifier
from domain.price_list import SellerCode


class InvoiceNumberAssigned(Event):
    """The next number of the series was assigned to this document."""

    TOPIC: ClassVar[str] = "invoice_series.InvoiceNumberAssigned.v1"
    seller: SellerCode
    year: int
    sequence: int
    document_id: Identifier

    @property
    def number(self) -> str:
        """The number as printed, for example ``YT-2026-000042``."""
        return invoice_number(self.seller, self.year, self.sequence)


class AssignInvoiceNumber(Command):
    """Assign the next number to an invoice or a credit note."""

    seller: SellerCode
    year: int
    document_id: Identifier


InvoiceSeriesCommand = AssignInvoiceNumber
InvoiceSeriesEvent = InvoiceNumberAssigned


@dataclass(frozen=True)
class InvoiceSeries:
    """The last number of the series and the document that has it."""

    last: int = 0
    document_id: str | None = None


def invoice_number(seller: str, year: int, sequence: int) -> str:
    """A number as printed."""
    return f"{seller}-{year}-{sequence:06d}"


def series_id(seller: str, year: int) -> str:
    """The stream id of one seller's numbers of one year."""
    return f"{seller}-{year}"


def decide(command: InvoiceSeriesCommand, series: InvoiceSeries) -> list[InvoiceSeriesEvent]:
    """Assign the next number; no event if the document already has the last one.

    It is committed together with the document, whose own stream refuses a second issue, so no number is lost or reused.
    """
    if series.document_id == command.document_id:
        return []
    return [InvoiceNumberAssigned(**command.model_dump(exclude={"at"}), sequence=series.last + 1)]


def evolve(_series: InvoiceSeries, event: InvoiceSeriesEvent) -> InvoiceSeries:
    """The series after one more number."""
    return InvoiceSeries(last=event.sequence, document_id=event.document_id)


INVOICE_SERIES: Decider[InvoiceSeriesCommand, InvoiceSeries, InvoiceSeriesEvent] = Decider(
    "invoice_series", InvoiceSeries(), decide, evolve
)
