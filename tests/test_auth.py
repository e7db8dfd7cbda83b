"""Who may ask: real sr25519 keys, every way a request can be wrong, and a chain that comes and goes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import sr25519  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from firsttouch.auth import (
    Gate,
    Key,
    Nonces,
    blake2b_message,
    decode_ss58,
    encode_ss58,
    fiber_message,
    make_nonce,
)
from firsttouch.errors import (
    Busy,
    RequestRefused,
    RequestUnauthorized,
    RuntimeUnavailable,
    SettingsError,
    SourceError,
    SourceRefused,
)
from firsttouch.metagraph import Metagraph, Stakes, chain_url, read_in_child, stakes_of

NOW = 1_790_000_000_000_000_000
SECOND = 1_000_000_000
OURS = Key.from_seed(b"\1" * 32).hotkey
CALLER = Key.from_seed(b"\2" * 32)
BODY = (
    b'{"challenge_id": "7", "type": "gsr", "video_url": "https://cdn.example.com/a.mp4", '
    b'"created_at": "2026-11-23T00:00:00Z"}'
)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(clock: Clock) -> Gate:
    return Gate(OURS, {CALLER.hotkey: 5000.0}.get, min_stake=1000.0, nonces=Nonces(clock=clock))


def signed(body: bytes = BODY, *, key: Key = CALLER, miner: str = OURS, at: int = NOW, **more: str) -> dict[str, str]:
    return key.headers(body, miner, nonce=make_nonce(at), **more)  # type: ignore[arg-type]


def test_a_good_request_names_its_caller(gate: Gate) -> None:
    assert gate.check(signed(), BODY) == CALLER.hotkey


def test_the_signed_text_is_nonce_miner_and_digest_of_the_body() -> None:
    text = f"17_abcdefghij:{OURS}:{hashlib.sha256(BODY).hexdigest()}".encode()
    assert fiber_message("17_abcdefghij", OURS, BODY) == text
    assert blake2b_message("17", BODY) == b"17" + hashlib.blake2b(BODY, digest_size=32).digest()


def test_a_replayed_request_is_refused_and_another_is_not(gate: Gate) -> None:
    first = signed()
    gate.check(first, BODY)
    with pytest.raises(RequestUnauthorized, match="used before"):
        gate.check(first, BODY)
    gate.check(signed(), BODY)


def test_a_request_cannot_be_replayed_at_any_moment_of_its_window(gate: Gate, clock: Clock) -> None:
    early = signed(at=NOW + 119 * SECOND)  # from a clock that runs ahead: it stays in the window for 239 s
    gate.check(early, BODY)
    for later in range(0, 260, 7):
        clock.now = NOW + later * SECOND
        gate.nonces.forget_expired()
        with pytest.raises(RequestUnauthorized):
            gate.check(early, BODY)


@pytest.mark.parametrize(("seconds", "word"), [(-121, "old"), (121, "future"), (-(10**9), "old"), (10**9, "future")])
def test_a_late_or_early_request_is_refused(gate: Gate, seconds: int, word: str) -> None:
    with pytest.raises(RequestUnauthorized, match=word):
        gate.check(signed(at=NOW + seconds * SECOND), BODY)


@pytest.mark.parametrize("seconds", [-119, 119])
def test_a_clock_that_is_a_little_off_is_accepted(gate: Gate, seconds: int) -> None:
    assert gate.check(signed(at=NOW + seconds * SECOND), BODY)


def test_a_request_for_another_miner_is_refused(gate: Gate) -> None:
    other = Key.throw_away().hotkey
    with pytest.raises(RequestUnauthorized, match="another miner"):
        gate.check(signed(miner=other), BODY)
    with pytest.raises(RequestUnauthorized, match="does not hold"):
        gate.check(signed(miner=other) | {"miner-hotkey": OURS}, BODY)


def test_a_changed_body_is_refused(gate: Gate) -> None:
    with pytest.raises(RequestUnauthorized):
        gate.check(signed(), BODY.replace(b"a.mp4", b"b.mp4"))


def test_a_re_encoded_body_is_refused_because_the_bytes_that_arrived_are_verified(gate: Gate) -> None:
    compact = json.dumps(json.loads(BODY), separators=(",", ":")).encode()
    assert json.loads(compact) == json.loads(BODY)
    with pytest.raises(RequestUnauthorized):
        gate.check(signed(BODY), compact)
    assert gate.check(signed(compact), compact)


def test_a_body_that_is_not_utf8_is_verified_as_it_is(gate: Gate) -> None:
    assert gate.check(signed(b"\xff\xfe\0"), b"\xff\xfe\0")


def test_somebody_elses_signature_is_refused(gate: Gate) -> None:
    forged = signed(key=Key.throw_away()) | {"validator-hotkey": CALLER.hotkey}
    with pytest.raises(RequestUnauthorized, match="does not hold"):
        gate.check(forged, BODY)


def test_an_unknown_caller_and_a_poor_one_may_not(gate: Gate) -> None:
    with pytest.raises(RequestRefused, match="not in the metagraph") as unknown:
        gate.check(signed(key=Key.throw_away()), BODY)
    gate.stakes = {CALLER.hotkey: 999.9}.get
    with pytest.raises(RequestRefused, match="below 1000") as poor:
        gate.check(signed(), BODY)
    assert unknown.value.http_status == poor.value.http_status == 403


def test_the_order_of_checks_is_the_contracts(gate: Gate) -> None:
    """Each request is wrong in everything from some check on; the first of these is named."""
    stranger, other = Key.throw_away(), Key.throw_away().hotkey
    old = signed(key=stranger, miner=other, at=NOW - 999 * SECOND)
    with pytest.raises(RequestUnauthorized, match="missing header: signature"):
        gate.check({k: v for k, v in old.items() if k != "signature"}, BODY)
    with pytest.raises(RequestUnauthorized, match="old"):
        gate.check(old | {"signature": "0x" + "0" * 128}, BODY)
    with pytest.raises(RequestUnauthorized, match="does not hold"):
        gate.check(signed(key=stranger, miner=other) | {"signature": "0x" + "0" * 128}, BODY)
    with pytest.raises(RequestUnauthorized, match="another miner"):
        gate.check(signed(key=stranger, miner=other), BODY)
    with pytest.raises(RequestRefused, match="metagraph"):
        gate.check(signed(key=stranger), BODY)


@pytest.mark.parametrize("missing", ["validator-hotkey", "miner-hotkey", "nonce", "signature"])
def test_every_header_is_needed(gate: Gate, missing: str) -> None:
    with pytest.raises(RequestUnauthorized):
        gate.check({k: v for k, v in signed().items() if k != missing}, BODY)


@pytest.mark.parametrize(
    "nonce",
    [
        "",
        "1",
        "abc",
        "1_abc",
        "-1_abcdefghij",
        "1.5_abcdefghij",
        "１_abcdefghij",
        "9" * 40 + "_abcdefghij",
        "1_abcdefghij\n",
        "1_abcdefghi:",
    ],
)
def test_a_malformed_nonce_is_refused(gate: Gate, nonce: str) -> None:
    headers = CALLER.headers(BODY, OURS, nonce=nonce) if nonce else signed() | {"nonce": ""}
    with pytest.raises(RequestUnauthorized):
        gate.check(headers, BODY)


@given(st.text(max_size=200), st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_header_makes_anything_but_a_refusal(signature: str, nonce: str, caller: str, miner: str) -> None:
    gate = Gate(OURS, None)
    for headers in (
        {"signature": signature, "nonce": nonce, "validator-hotkey": caller, "miner-hotkey": miner},
        {
            "signature": signature,
            "nonce": make_nonce(),
            "validator-hotkey": CALLER.hotkey,
            "miner-hotkey": miner,
        },
    ):
        with pytest.raises(RequestUnauthorized):
            gate.check(headers, BODY)


def test_a_key_or_signature_that_is_no_curve_point_is_refused(gate: Gate) -> None:
    no_point = encode_ss58(b"\xff" * 32)
    with pytest.raises(RequestUnauthorized):
        gate.check(signed() | {"validator-hotkey": no_point}, BODY)
    with pytest.raises(RequestUnauthorized):
        gate.check(signed() | {"signature": "0x" + "f" * 128}, BODY)


# --- the BLAKE2b scheme


def test_the_private_tracks_signature_is_accepted(gate: Gate) -> None:
    assert gate.check(signed(scheme="blake2b"), BODY) == CALLER.hotkey


def test_its_digest_in_hex_and_its_bare_nonce_and_x_headers_are_accepted_too(gate: Gate) -> None:
    nonce = str(NOW)
    message = (nonce + hashlib.blake2b(BODY, digest_size=32).hexdigest()).encode()
    headers = {"x-validator-hotkey": CALLER.hotkey, "x-nonce": nonce, "x-signature": CALLER.sign(message)}
    assert gate.check(headers, BODY) == CALLER.hotkey
    with pytest.raises(RequestUnauthorized, match="used before"):
        gate.check(headers, BODY)


def test_configuration_chooses_the_scheme(clock: Clock) -> None:
    fiber_only = Gate(OURS, None, schemes=("fiber",), nonces=Nonces(clock=clock))
    with pytest.raises(RequestUnauthorized):
        fiber_only.check(signed(scheme="blake2b"), BODY)
    blake_only = Gate(OURS, None, schemes=("blake2b",), nonces=Nonces(clock=clock))
    with pytest.raises(RequestUnauthorized):
        blake_only.check(signed(), BODY)


def test_a_bare_nonce_is_not_accepted_by_fibers_scheme(clock: Clock) -> None:
    gate = Gate(OURS, None, schemes=("fiber",), nonces=Nonces(clock=clock))
    with pytest.raises(RequestUnauthorized, match="10 letters"):
        gate.check(CALLER.headers(BODY, OURS, nonce=str(NOW)), BODY)


# --- bounded memory


def test_nonces_are_forgotten_when_they_expire(gate: Gate, clock: Clock) -> None:
    for step in range(50):
        gate.check(signed(at=NOW + step), BODY)
    assert len(gate.nonces) == 50
    clock.now = NOW + 121 * SECOND
    gate.nonces.forget_expired()
    assert len(gate.nonces) == 0


def test_nonces_are_bounded_and_strangers_cannot_fill_them(clock: Clock) -> None:
    gate = Gate(OURS, {CALLER.hotkey: 1.0}.get, nonces=Nonces(clock=clock, limit=10, limit_of_one_caller=5))
    for _ in range(30):
        with pytest.raises(RequestRefused):
            gate.check(signed(key=Key.throw_away()), BODY)
    assert len(gate.nonces) == 0
    for _ in range(5):
        gate.check(signed(), BODY)
    with pytest.raises(Busy):
        gate.check(signed(), BODY)
    clock.now += 121 * SECOND
    assert gate.check(signed(at=clock.now), BODY)


def test_a_gate_that_verifies_must_know_its_own_hotkey() -> None:
    with pytest.raises(ValueError, match="own hotkey"):
        Gate(None, None)


def test_with_verify_off_only_the_stake_is_asked() -> None:
    assert Gate(None, None, verify=False).check({}, b"") is None
    with pytest.raises(RequestRefused):
        Gate(None, lambda _: None, verify=False).check({}, b"")


# --- addresses


def test_a_well_known_address_is_read_and_written() -> None:
    """Substrate's development account Alice, as every chain's documentation prints it."""
    alice = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
    public = bytes.fromhex("d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d")
    assert decode_ss58(alice) == public
    assert encode_ss58(public) == alice


@given(st.binary(min_size=32, max_size=32))
def test_every_key_survives_its_address(public: bytes) -> None:
    assert decode_ss58(encode_ss58(public)) == public


@given(st.integers(0, 47), st.sampled_from("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"))
def test_one_wrong_letter_is_noticed(at: int, letter: str) -> None:
    wrong = CALLER.hotkey[:at] + letter + CALLER.hotkey[at + 1 :]
    if wrong != CALLER.hotkey:
        with pytest.raises(RequestUnauthorized):
            decode_ss58(wrong)


def test_addresses_of_other_chains_are_refused() -> None:
    for address in (
        "15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5",
        "",
        "5",
        "0" * 48,
        CALLER.hotkey + "1",
        "1" + CALLER.hotkey,
    ):
        with pytest.raises(RequestUnauthorized):
            decode_ss58(address)


def test_our_signatures_are_the_librarys() -> None:
    key = Key.from_seed(b"\3" * 32)
    assert sr25519.verify(bytes.fromhex(key.sign(b"abc")[2:]), b"abc", key.public)
    assert "secret" not in repr(key)


# --- the chain


async def _down() -> Mapping[str, float]:
    raise SourceRefused("connection refused")


def test_a_chain_that_is_down_at_start_leaves_the_metagraph_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "metagraph.json"
    path.write_bytes(Metagraph({CALLER.hotkey: 4000.0}, read_at=1.0).to_json())
    stakes = Stakes(_down, path)
    assert stakes.load()
    assert asyncio.run(stakes.refresh()) is False
    gate = Gate(OURS, stakes, min_stake=1000.0)
    assert gate.check(CALLER.headers(BODY, OURS), BODY) == CALLER.hotkey


def test_a_chain_that_is_down_with_nothing_on_disk_refuses_and_does_not_fail(tmp_path: Path) -> None:
    stakes = Stakes(_down, tmp_path / "none.json")
    assert not stakes.load()
    assert asyncio.run(stakes.refresh()) is False
    with pytest.raises(RequestRefused) as refused:
        Gate(OURS, stakes).check(CALLER.headers(BODY, OURS), BODY)
    assert refused.value.http_status == 403


def test_a_chain_that_goes_down_later_leaves_what_was_read(tmp_path: Path) -> None:
    up = True

    async def read() -> Mapping[str, float]:
        return {CALLER.hotkey: 4000.0} if up else await _down()

    stakes = Stakes(read, tmp_path / "kept" / "metagraph.json")
    assert asyncio.run(stakes.refresh())
    up = False
    assert asyncio.run(stakes.refresh()) is False
    assert stakes(CALLER.hotkey) == 4000.0
    assert stakes.failures == 1
    again = Stakes(_down, stakes.path)
    assert again.load()
    assert again(CALLER.hotkey) == 4000.0
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["metagraph.json"]


def test_a_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "metagraph.json"
    for text in (b"", b"{", b"[]", b'{"stakes": 3, "read_at": 1}', b'{"stakes": {"a": "x"}, "read_at": 1}'):
        path.write_bytes(text)
        assert not Stakes(_down, path).load()


def test_the_chain_is_read_again_and_again() -> None:
    read_times = 0
    done = asyncio.Event()

    async def read() -> Mapping[str, float]:
        nonlocal read_times
        read_times += 1
        if read_times == 2:
            raise SourceRefused("down for a moment")
        if read_times == 4:
            done.set()
        return {}

    async def run() -> None:
        task = asyncio.create_task(Stakes(read, None, refresh_seconds=0, retry_seconds=0).keep_fresh())
        await asyncio.wait_for(done.wait(), 5)
        task.cancel()

    asyncio.run(run())
    assert read_times >= 4


def test_the_metagraphs_answer_is_read_whatever_the_client_makes_of_account_ids() -> None:
    key, address = CALLER.public, CALLER.hotkey
    for form in (address, "0x" + key.hex(), tuple(key), (tuple(key),), list(key), key):
        assert stakes_of({"hotkeys": [form], "total_stake": [2_500_000_000_000]}) == {address: 2500.0}
    with pytest.raises(ValueError, match="columns"):
        stakes_of({"hotkeys": [address], "total_stake": []})


FAKE_CLIENT = """
import os, time
class SubstrateInterface:
    def __init__(self, url, **options):
        if url == "ws://down": raise ConnectionError("refused")
        if url == "ws://hangs": time.sleep(60)
    def __enter__(self): return self
    def __exit__(self, *exc): pass
    def runtime_call(self, api, method, params):
        assert (api, method, params) == ("SubnetInfoRuntimeApi", "get_metagraph", [44])
        return {"hotkeys": ["%s"], "total_stake": [7_000_000_000]}
"""


@pytest.fixture
def fake_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "async_substrate_interface.py").write_text(FAKE_CLIENT % CALLER.hotkey)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.usefixtures("fake_client")
def test_the_child_reads_the_chain() -> None:
    assert asyncio.run(read_in_child("ws://up", 44)) == {CALLER.hotkey: 7.0}
    with pytest.raises(SourceRefused, match="refused"):
        asyncio.run(read_in_child("ws://down", 44))


@pytest.mark.usefixtures("fake_client")
def test_a_chain_that_hangs_is_given_up() -> None:
    with pytest.raises(SourceError, match="did not answer"):
        asyncio.run(read_in_child("ws://hangs", 44, timeout_seconds=1.0))


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "async_substrate_interface.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeUnavailable) as error:
        asyncio.run(read_in_child("ws://up", 44))
    assert "firsttouch[chain]" in str(error.value.hint)


def test_networks_have_addresses() -> None:
    assert chain_url("finney", None).startswith("wss://")
    assert chain_url("anything", "ws://127.0.0.1:9944") == "ws://127.0.0.1:9944"
    with pytest.raises(SettingsError, match="finney"):
        chain_url("finey", None)


def test_the_server_process_never_imports_the_chain_client() -> None:
    assert "async_substrate_interface" not in sys.modules
