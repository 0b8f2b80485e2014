"""The erasure of a person: its event, and the destruction of the person's key."""

from __future__ import annotations

from domain.account import ACCOUNT, EraseBillingReceiver
from domain.personal import person_id
from handlers.context import RequestContext


def erase_billing_receiver(command: EraseBillingReceiver, context: RequestContext) -> None:
    """Erase a billing receiver. A repetition finishes an erasure that was interrupted, and otherwise changes nothing.

    The event comes first: after it the receiver cannot be chosen any more, and the log says what is to be done,
    whatever happens next. PostgreSQL destroys the key in the commit of the event. It is destroyed again here for a log
    in memory, for the cache of this process, and for a table of keys that was restored from a backup.
    """
    work = context.work()
    work.do(ACCOUNT, command.account_id, command)
    context.commit(work, command.account_id)
    context.dependencies.log.destroy_key(person_id(command.account_id, command.receiver_id))
