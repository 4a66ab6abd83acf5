"""Asking for a certificate: a node makes a key and a request for it (CSR, RFC 2986), the authority reads the request.

The key stays where it was made. Of a request nothing but its public key is used: whatever else it wishes for is not
even looked at.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from microkernel.errors import Invalid
from services.cluster.certificates.names import check_node
from services.cluster.certificates.pem import DAMAGED, NodePublicKey

__all__ = ["LARGEST_REQUEST", "NodeKey", "public_key_of"]

LARGEST_REQUEST = 4096  # bytes; one of ours has some 400


class NodeKey:
    """A new key of a node (ECDSA, P-256): one for each certificate."""

    __slots__ = ("private",)

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())

    def request(self, node: str) -> bytes:
        """The request for a certificate of `node`, as PEM. Raises `Invalid` for a name that no node can have."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_node(node))])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(self.private, hashes.SHA256())
        return request.public_bytes(Encoding.PEM)


def public_key_of(request: bytes) -> NodePublicKey:
    """The key that `request` asks a certificate for; who made it has the private one. Raises `Invalid`."""
    if len(request) > LARGEST_REQUEST:
        raise Invalid(
            f"a request for a certificate has at most {LARGEST_REQUEST:,} bytes, not {len(request):,}", field="request"
        )
    try:
        parsed = x509.load_pem_x509_csr(request)
        key = parsed.public_key()
        if not _is_allowed(key):
            raise Invalid("a node's key is of the kind P-256 or Ed25519, and this request has another", field="request")
        is_signed = parsed.is_signature_valid
    except DAMAGED as error:
        raise Invalid("this is no request for a certificate, or it is damaged", field="request") from error
    if not is_signed:
        raise Invalid("the request for a certificate is not signed with the key that it is for", field="request")
    assert isinstance(key, NodePublicKey)
    return key


def _is_allowed(key: object) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1)
    return isinstance(key, ed25519.Ed25519PublicKey)
