"""temp -> fsync -> link -> fsync dir -> journal -> retire the source."""

from fluxwatchd.delivery.deliver import Delivery
from fluxwatchd.delivery.files import copy_of, supports_commit
from fluxwatchd.delivery.homes import Homes
from fluxwatchd.delivery.ledger import Ledger, Run
from fluxwatchd.delivery.leftovers import Action
from fluxwatchd.delivery.moves import Replaced
from fluxwatchd.delivery.outcomes import Delivered, Retired, SetAside, Staged
from fluxwatchd.delivery.records import already_delivered
from fluxwatchd.delivery.recovery import Recovered, Unsettled, recover

__all__ = [
    "Action",
    "Delivered",
    "Delivery",
    "Homes",
    "Ledger",
    "Recovered",
    "Replaced",
    "Retired",
    "Run",
    "SetAside",
    "Staged",
    "Unsettled",
    "already_delivered",
    "copy_of",
    "recover",
    "supports_commit",
]
