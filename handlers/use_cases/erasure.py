"""The erasure of a person: the event that says so, and the end of the person's key."""

from __future__ import annotations

from domain.account import ACCOUNT, EraseBillingReceiver
from domain.personal import person_id
from handlers.context import RequestContext


def erase_billing_receiver(command: EraseBillingReceiver, context: RequestContext) -> None:
    """Erase a billing receiver. Asked again, it finishes what was begun, and otherwise changes nothing.

    The event comes first: from then on nobody chooses the receiver any more, and whatever happens, it stands in the log
    what is to be done. PostgreSQL destroys the key in the commit of the event. That it is destroyed here once more is
    for a log in memory, for the cache of this process, and for a table of keys that came back out of a backup.
    """
    work = context.work()
    work.do(ACCOUNT, command.account_id, command)
    context.commit(work, command.account_id)
    context.dependencies.log.destroy_key(person_id(command.account_id, command.receiver_id))
