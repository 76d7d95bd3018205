"""TLS for the broker's door: 1.2 or later, with client certificates if wanted."""

from __future__ import annotations

import ssl


def make_context(certificate: str, key: str, client_authorities: str) -> ssl.SSLContext:
    """A server's context from PEM files. OSError or ssl.SSLError when one cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certificate, key)
    if client_authorities:
        context.load_verify_locations(client_authorities)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
