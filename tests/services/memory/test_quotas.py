"""Quotas: an owner's own goes over everybody's, live goes over the settings, shares are of the device's account."""

from __future__ import annotations

import pytest

from microkernel.errors import Invalid
from services.memory.messages import EVERYBODY
from services.memory.quotas import OwnerQuotas


def test_an_owner_without_a_quota_may_have_as_much_as_there_is():
    assert OwnerQuotas({"ann": 10}, None).bytes("bob", 1000) is None


def test_an_owner_s_own_quota_goes_over_everybody_s():
    quotas = OwnerQuotas({"ann": 10}, 0.5)
    assert (quotas.bytes("ann", 1000), quotas.bytes("bob", 1000)) == (10, 500)


def test_what_is_set_live_goes_over_the_settings_until_it_is_taken_back():
    quotas = OwnerQuotas({"ann": 10}, None)
    quotas.set("ann", 0.25)
    assert quotas.bytes("ann", 1000) == 250
    quotas.set("ann", None)
    assert quotas.bytes("ann", 1000) == 10


def test_everybody_s_quota_can_be_set_live():
    quotas = OwnerQuotas({}, None)
    quotas.set(EVERYBODY, 7)
    assert quotas.bytes("bob", 1000) == 7


def test_nothing_is_a_quota_too():
    assert OwnerQuotas({"ann": 0}, None).bytes("ann", 1000) == 0


def test_all_are_listed_for_each_device_with_everybody_s_last():
    quotas = OwnerQuotas({"bob": 0.5}, 0.1)
    quotas.set("ann", 3)
    listed = [(each.device, each.owner, each.bytes, each.set) for each in quotas.all([("cpu0", 100), ("gpu0", 1000)])]
    assert listed == [
        ("cpu0", "ann", 3, "live"),
        ("cpu0", "bob", 50, "settings"),
        ("cpu0", "*", 10, "settings"),
        ("gpu0", "ann", 3, "live"),
        ("gpu0", "bob", 500, "settings"),
        ("gpu0", "*", 100, "settings"),
    ]


@pytest.mark.parametrize("quota", [-1, 0.0, 1.5, -0.1])
def test_what_is_neither_bytes_nor_a_share_is_refused_by_setting_and_live(quota):
    with pytest.raises(Invalid, match="'ann'"):
        OwnerQuotas({"ann": quota}, None)
    quotas = OwnerQuotas({"ann": 5}, None)
    with pytest.raises(Invalid, match="'ann'"):
        quotas.set("ann", quota)
    assert quotas.bytes("ann", 100) == 5
