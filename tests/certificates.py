"""A self-signed certificate, as an operator would make one."""

from __future__ import annotations

import shutil
import subprocess

__all__ = ["make_certificate", "why_not"]


def why_not() -> str | None:
    return (
        None
        if shutil.which("openssl")
        else "needs openssl to make a certificate: apt install openssl"
    )


def make_certificate(certificate: str, key: str) -> None:
    """Two files, PEM."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=pegashm", "-days", "1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
