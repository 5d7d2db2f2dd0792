"""The functions of `nki.language`: each call is one or more instructions on new tiles.

Importing this package fills `simulator.operators.FUNCTIONS`, so that the operators can be
called. Source: nki_facts.md §2.2, §2.11.
"""

from simulator.language import elementwise as elementwise
from simulator.language import rounding as rounding
