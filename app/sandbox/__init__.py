"""Where code that nobody trusts is run, and what a client's pattern or schema may cost."""

from app.sandbox.limits import Limits as Limits
from app.sandbox.python import Outcome as Outcome
from app.sandbox.python import check as check
from app.sandbox.python import run_python as run_python
