"""Stands where Keylime imports `gpg` (gpgme's binding, which PyPI cannot build without gpgme's headers).

Keylime uses it for allowlists signed with PGP alone. Nothing here signs one, and a use says so loudly.
"""


def Context(*_args, **_kwargs):
    raise NotImplementedError("PGP-signed allowlists need the real gpg module: apt install python3-gpg")
