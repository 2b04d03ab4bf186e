"""`doctor`."""

from __future__ import annotations

from greedynas_fast import doctor
from greedynas_fast.commands import Command

COMMANDS = {"doctor": Command(lambda _: None, lambda _: doctor.examine(), doctor.show)}
