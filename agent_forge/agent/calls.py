"""Tool calls as text, both ways: `data/call_dialects/` has the parsers and writers.

The conversations that the agent keeps write calls as Hermes does, whatever the model speaks; so
these names are Hermes's.
"""

from agent_forge.data.call_dialects.hermes import (
    TAGS,
    format_call,
    parse_calls,
    scan_calls,
    text_without_calls,
)
from agent_forge.data.calls import (
    CALL_CLOSE,
    CALL_OPEN,
    RESPONSE_CLOSE,
    RESPONSE_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    BrokenCall,
    Call,
    read_response,
    write_response,
)

__all__ = [
    "CALL_CLOSE", "CALL_OPEN", "RESPONSE_CLOSE", "RESPONSE_OPEN", "TAGS", "THINK_CLOSE",
    "THINK_OPEN", "BrokenCall", "Call", "format_call", "format_response", "parse_calls",
    "parse_response", "scan_calls", "text_without_calls",
]  # fmt: skip

format_response = write_response
parse_response = read_response
