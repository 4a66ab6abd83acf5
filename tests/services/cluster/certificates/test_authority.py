"""The authority: its folder, what it signs, what it refuses, and how its root is replaced."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Callable

import pytest
from certified import DAY, NOW
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microkernel.errors import Invalid, PreconditionFailed
from services.cluster.certificates.authority import FILE, ROOT_LIFETIME, Authority
from services.cluster.certificates.certificate import BACKDATE, LIFETIME, LONGEST_LIFETIME, fingerprint_of
from services.cluster.certificates.names import ADMITTING, host_of
from services.cluster.certificates.pem import certificate_from
from services.cluster.certificates.request import NodeKey


@pytest.fixture
def authority(tmp_path) -> Authority:
    return Authority(tmp_path / "authority", now=NOW)


def signed(authority: Authority, *, now: float = NOW, **more) -> x509.Certificate:
    return certificate_from(authority.sign(NodeKey().request("n1"), "n1", now=now, **more).certificate)


def extension(certificate: x509.Certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


# The folder


def test_an_authority_is_made_once_and_found_again(authority, tmp_path):
    again = Authority(tmp_path / "authority", now=NOW + 60)
    assert again.fingerprint(NOW) == authority.fingerprint(NOW)
    assert again.roots(NOW) == authority.roots(NOW)


def test_nobody_else_can_read_its_key(authority, tmp_path):
    folder = tmp_path / "authority"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [(each.name, stat.S_IMODE(each.stat().st_mode)) for each in folder.iterdir()] == [(FILE, 0o600)]


def test_no_two_authorities_have_the_same_name_or_fingerprint(authority, tmp_path):
    other = Authority(tmp_path / "other", now=NOW)
    names = {certificate_from(each.roots(NOW)[0]).subject for each in (authority, other)}
    assert len(names) == 2
    assert authority.fingerprint(NOW) != other.fingerprint(NOW)


def of_version_66(text: bytes) -> bytes:
    """The library has an error of its own for it."""
    return with_root(text, lambda root: root.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020141"), 1))


def unsigned(text: bytes) -> bytes:
    """The root fits its key, but somebody has changed what stands in it."""
    return with_root(text, lambda root: root.replace(b"microkernel cluster", b"microkernel clystem", 2))


def with_root(text: bytes, change: Callable[[bytes], bytes]) -> bytes:
    key, _, _ = text.partition(b"-----BEGIN CERTIFICATE")
    root = certificate_from(text.decode()).public_bytes(Encoding.DER)
    assert change(root) != root
    return key + ssl.DER_cert_to_PEM_cert(change(root)).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: b"\xff\xfe",
        lambda text: text[: len(text) // 2],
        lambda text: text[text.index(b"-----BEGIN CERTIFICATE") :],
        lambda text: text[: text.index(b"-----BEGIN CERTIFICATE")],
        lambda text: text + b"and more\n",
        lambda text: text * 20,
        of_version_66,
        unsigned,
    ],
    ids=[
        "empty",
        "no text",
        "cut off",
        "without a key",
        "without a certificate",
        "with more",
        "many",
        "version 66",
        "unsigned",
    ],
)
def test_a_damaged_file_is_named_and_left_as_it_is(authority, tmp_path, damage):
    path = tmp_path / "authority" / FILE
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(PreconditionFailed, match=r"authority\.pem is damaged: .+every node joins again"):
        Authority(tmp_path / "authority", now=NOW)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_one_of_ours_is_not_read_to_its_end(authority, tmp_path):
    path = tmp_path / "authority" / FILE
    path.write_bytes(path.read_bytes() * 100)
    with pytest.raises(PreconditionFailed, match="more than 65,536 bytes"):
        Authority(tmp_path / "authority", now=NOW)


def test_the_key_of_one_authority_with_the_root_of_another_is_damage(authority, tmp_path):
    Authority(tmp_path / "other", now=NOW)
    ours, theirs = ((tmp_path / name / FILE) for name in ("authority", "other"))
    mark = "-----BEGIN CERTIFICATE"
    ours.write_text(ours.read_text().split(mark)[0] + mark + theirs.read_text().split(mark)[1])
    with pytest.raises(PreconditionFailed, match="do not fit each other"):
        Authority(tmp_path / "authority", now=NOW)


@given(st.integers(0, 1200), st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_changed_byte_is_found_or_changes_nothing(authority, tmp_path, place, value):
    whole = (tmp_path / "authority" / FILE).read_bytes()
    folder = tmp_path / "changed"
    folder.mkdir(exist_ok=True)
    raw = bytearray(whole)
    raw[place % len(raw)] = value
    (folder / FILE).write_bytes(raw)
    try:
        changed = Authority(folder, now=NOW)
    except PreconditionFailed:
        return
    assert changed.roots(NOW) == authority.roots(NOW)
    assert certificate_from(changed.roots(NOW)[0]).public_key() == changed._roots[0].key.public_key()


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreconditionFailed, match="cannot use the authority"):
        Authority(tmp_path / "file", now=NOW)


def test_what_a_killed_process_has_left_half_written_is_nothing(tmp_path):
    folder = tmp_path / "authority"
    folder.mkdir()
    (folder / (FILE + ".new")).write_text("-----BEGIN PRIV")
    first = Authority(folder, now=NOW)
    assert Authority(folder, now=NOW).fingerprint(NOW) == first.fingerprint(NOW)
    assert [each.name for each in folder.iterdir()] == [FILE]


# The root


def test_the_root_may_sign_certificates_of_nodes_and_no_authorities(authority):
    root = certificate_from(authority.roots(NOW)[0])
    constraints, usage = extension(root, x509.BasicConstraints), extension(root, x509.KeyUsage)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
    assert isinstance(root.public_key().curve, ec.SECP256R1)
    assert root.not_valid_after_utc.timestamp() == int(NOW + ROOT_LIFETIME)


def test_the_fingerprint_is_that_of_the_root(authority):
    assert authority.fingerprint(NOW) == fingerprint_of(certificate_from(authority.roots(NOW)[0]))


# Certificates


def test_a_certificate_is_for_the_node_and_for_nothing_that_the_request_wishes(authority):
    wish = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("www.example.com"), x509.DNSName(ADMITTING)]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=9), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    given = authority.sign(wish.public_bytes(Encoding.PEM), "n1", now=NOW)
    certificate = certificate_from(given.certificate)
    assert [each.value for each in certificate.subject] == ["n1"]
    names = extension(certificate, x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName(host_of("n1"))]
    assert not extension(certificate, x509.BasicConstraints).value.ca
    assert set(extension(certificate, x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    usage = extension(certificate, x509.KeyUsage)
    assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, True, False)
    assert certificate.public_key() == wish.public_key()


def test_what_is_told_of_a_certificate_is_what_stands_in_it(authority):
    key = NodeKey()
    given = authority.sign(key.request("n1"), "n1", now=NOW)
    certificate = certificate_from(given.certificate)
    certificate.verify_directly_issued_by(certificate_from(given.roots[0]))
    assert certificate.public_key() == key.private.public_key()
    assert given.roots == authority.roots(NOW)
    assert (given.node, given.serial) == ("n1", format(certificate.serial_number, "x"))
    assert (given.issued, given.expires) == (int(NOW), int(NOW + LIFETIME))


def test_a_certificate_begins_a_little_earlier_and_ends_when_it_is_told_to(authority):
    certificate = signed(authority, lifetime=3600.0)
    assert certificate.not_valid_before_utc.timestamp() == int(NOW - BACKDATE)
    assert certificate.not_valid_after_utc.timestamp() == int(NOW + 3600)


def test_no_two_certificates_have_the_same_serial_number(authority):
    serials = {signed(authority).serial_number for _ in range(20)}
    assert len(serials) == 20
    assert min(serial.bit_length() for serial in serials) > 64


def test_only_a_node_that_admits_others_gets_the_name_for_that(authority):
    names = extension(signed(authority, admits=True), x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName(host_of("n1")), x509.DNSName(ADMITTING)]


@pytest.mark.parametrize("lifetime", [0.0, 59.9, LONGEST_LIFETIME + 1, -1.0, float("nan"), float("inf")])
def test_a_life_that_is_too_short_or_too_long_is_refused(authority, lifetime):
    with pytest.raises(Invalid, match="seconds"):
        signed(authority, lifetime=lifetime)


@pytest.mark.parametrize("node", ["", "N1", "n1.example.com", "a" * 64, "*"])
def test_a_name_that_no_node_can_have_is_refused(authority, node):
    with pytest.raises(Invalid, match="name of a node"):
        authority.sign(NodeKey().request("n1"), node, now=NOW)


def test_a_request_that_is_none_is_refused(authority):
    with pytest.raises(Invalid, match="no request"):
        authority.sign(b"please", "n1", now=NOW)


def test_no_certificate_outlives_its_root(authority):
    end = authority.expires(NOW)
    assert signed(authority, now=end - 3600).not_valid_after_utc.timestamp() == end
    with pytest.raises(PreconditionFailed, match="come to its end"):
        signed(authority, now=end - 30)


# The next root


def test_the_next_root_is_trusted_at_once_and_signs_when_everybody_knows_it(authority):
    first = authority.fingerprint(NOW)
    authority.roll_over(now=NOW)
    switch = int(NOW) + LONGEST_LIFETIME
    assert authority.fingerprint(switch - 1) == first
    assert authority.fingerprint(switch) != first
    assert len(authority.roots(NOW)) == 2
    for moment, root in ((switch - 1, authority.roots(NOW)[0]), (switch, authority.roots(NOW)[1])):
        signed(authority, now=moment).verify_directly_issued_by(certificate_from(root))


def test_the_old_root_is_trusted_as_long_as_a_certificate_of_it_can_be_valid(authority):
    authority.roll_over(now=NOW)
    old, new = authority.roots(NOW)
    end = int(NOW) + 2 * LONGEST_LIFETIME
    assert authority.roots(end - 1) == (old, new)
    assert authority.roots(end) == (new,)


@given(st.floats(0, 3 * LONGEST_LIFETIME), st.floats(60, LONGEST_LIFETIME), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_whenever_two_certificates_are_valid_each_node_trusts_the_others_root(tmp_path_factory, at, life, share, later):
    """One made `at` some time of a roll-over, the other at any time of the first one's life."""
    authority = Authority(tmp_path_factory.mktemp("authority"), now=NOW - DAY)
    authority.roll_over(now=NOW)
    one = authority.sign(NodeKey().request("n1"), "n1", life, now=NOW + at)
    moment = NOW + at + share * life
    two = authority.sign(NodeKey().request("n2"), "n2", 60 + later * (LONGEST_LIFETIME - 60), now=moment)
    for mine, its in ((one, two), (two, one)):
        assert any(_has_issued(root, its.certificate) for root in mine.roots)


def _has_issued(root: str, certificate: str) -> bool:
    return certificate_from(certificate).issuer == certificate_from(root).subject


def test_a_roll_over_survives_a_restart_and_the_old_key_is_gone_in_the_end(authority, tmp_path):
    authority.roll_over(now=NOW)
    path = tmp_path / "authority" / FILE
    assert Authority(tmp_path / "authority", now=NOW).roots(NOW) == authority.roots(NOW)
    new = authority.roots(NOW)[1]
    assert path.read_text().count("PRIVATE KEY-----") == 4
    assert Authority(tmp_path / "authority", now=NOW + 2 * LONGEST_LIFETIME + 1).roots(NOW) == (new,)
    assert path.read_text().count("PRIVATE KEY-----") == 2


def test_there_is_one_roll_over_at_a_time(authority):
    authority.roll_over(now=NOW)
    with pytest.raises(PreconditionFailed, match="already"):
        authority.roll_over(now=NOW + LONGEST_LIFETIME)
    authority.roll_over(now=NOW + 2 * LONGEST_LIFETIME + 1)


def test_a_roll_over_that_is_not_on_the_disk_has_not_begun(authority, tmp_path):
    folder = tmp_path / "authority"
    before = authority.roots(NOW)
    folder.rename(tmp_path / "away")
    with pytest.raises(PreconditionFailed, match="cannot write"):
        authority.roll_over(now=NOW)
    assert authority.roots(NOW) == before
