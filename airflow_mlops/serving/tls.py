"""TLS towards a model server: whose certificate we believe, and by which one it may know us."""

from __future__ import annotations

import ssl
import tempfile
from dataclasses import dataclass, field

import grpc
import httpx

from airflow_mlops.exceptions import ServingError, SpecError

_DISTRUST = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")  # OpenSSL's and gRPC's words; neither has a code for it


@dataclass(frozen=True)
class Tls:
    """Certificates as PEM text, for gRPC and REST alike.

    `ca_cert` is the authority that signed the server's certificate (None: the public ones), `client_cert` (with what lies between it and the
    authority) and `client_key` say who we are where the server wants to know, and `server_name` is the name in the server's certificate where
    that is not the host of its address. Raises `SpecError` if one cannot be read, or the key is not the certificate's.
    """

    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.client_cert is None) != (self.client_key is None):
            missing, given = ("client_cert", "client_key") if self.client_cert is None else ("client_key", "client_cert")
            raise SpecError(f"{given} is set without {missing}; a client proves who it is by both. Set both or none.")
        self.context()

    def context(self) -> ssl.SSLContext:
        """Return what `ssl` needs to connect."""
        try:
            context = ssl.create_default_context(cadata=self.ca_cert) if self.ca_cert else httpx.create_ssl_context(trust_env=False)
        except (ssl.SSLError, ValueError) as error:
            raise SpecError(f"ca_cert is no certificate: {error}. Give the authority's certificate as PEM.") from error
        if self.client_cert and self.client_key:
            self._identify(context, f"{self.client_cert}\n{self.client_key}\n")
        return context

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what gRPC needs to connect."""
        pem = [text.encode() if text else None for text in (self.ca_cert, self.client_key, self.client_cert)]
        return grpc.ssl_channel_credentials(*pem)

    @staticmethod
    def _identify(context: ssl.SSLContext, chain: str) -> None:
        # `ssl` reads nothing but files; only this user may read this one, and it is gone at once.
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(chain)
            file.flush()
            try:
                context.load_cert_chain(file.name, password="")  # an encrypted key shall fail, not ask the terminal
            except (ssl.SSLError, ValueError) as error:
                raise SpecError(
                    f"client_cert and client_key do not go together: {error}. Give a certificate and its own key as PEM, the key unencrypted."
                ) from error


def distrusted(detail: str) -> bool:
    """Return whether a connection failed because the server's certificate does not hold."""
    return any(words in detail for words in _DISTRUST)


def untrusted(address: str, detail: str) -> ServingError:
    """Return the error for a server whose certificate does not hold: to ask again would not help."""
    return ServingError(
        f"The certificate of the model server at {address} is not to be trusted: {detail}. It must be signed by ca_cert and made for the "
        "address's host or for tls_server_name; correct whichever is wrong."
    )
