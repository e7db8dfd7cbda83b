"""Who may ask: signed requests, nonces, stake.

Checks run in the order of the wire contract: size (the server's), headers, nonce window, signature, replay,
own hotkey, stake. Each failure is an error with its HTTP status: 401 for who, 403 for may not. Nothing here
awaits or touches the network; stakes come from a metagraph that `metagraph` keeps fresh in the background.

sr25519 is `py-sr25519-bindings` (Apache-2.0, one 0.8 MB extension over the schnorrkel crate, no dependencies,
a release for each new Python). `bittensor-wallet` (MIT) brings 2.8 MB and a whole wallet for the same call;
`substrate-interface` brings a dozen packages, and these very bindings.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import sr25519  # type: ignore[import-untyped]

from firsttouch.clock import wall_ns
from firsttouch.errors import Busy, RequestRefused, RequestUnauthorized

Scheme = Literal["fiber", "blake2b"]
Clock = Callable[[], int]
"""Nanoseconds since 1970: nonces are made on another machine, so this one clock is not monotonic."""

SS58_FORMAT = 42
NONCE_WINDOW_SECONDS = 120
MAX_NONCES = 65_536
MAX_NONCES_OF_ONE_CALLER = 4_096

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_NONCE = re.compile(r"([0-9]{1,20})_[A-Za-z0-9]{10}", re.ASCII)
_BARE_NONCE = re.compile(r"([0-9]{1,20})", re.ASCII)
_SIGNATURE = re.compile(r"0x[0-9a-fA-F]{128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Signed:
    """The four headers of a signed request, as they came; `miner_hotkey` is None when it was not sent."""

    validator_hotkey: str
    nonce: str
    signature: str
    miner_hotkey: str | None

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> Signed:
        """Both spellings: fiber's plain names, the newer track's `x-` names. Raises RequestUnauthorized."""
        found = {
            name: headers.get(name) or headers.get(f"x-{name}") for name in ("validator-hotkey", "nonce", "signature")
        }
        missing = [name for name, value in found.items() if not value]
        if missing:
            raise RequestUnauthorized(f"missing header: {', '.join(missing)}")
        miner = headers.get("miner-hotkey") or headers.get("x-miner-hotkey")
        return cls(str(found["validator-hotkey"]), str(found["nonce"]), str(found["signature"]), miner)


@dataclass(slots=True)
class Nonces:
    """Nonces seen, until they would be refused by their age anyway; bounded in number."""

    window_seconds: int = NONCE_WINDOW_SECONDS
    clock: Clock = wall_ns
    limit: int = MAX_NONCES
    limit_of_one_caller: int = MAX_NONCES_OF_ONE_CALLER
    _seen: dict[str, dict[str, int]] = field(default_factory=dict)  # caller -> nonce -> moment to forget, in ns
    _count: int = 0

    def check_window(self, nonce: str, *, bare: bool = False) -> int:
        """The nonce's own moment in ns. `bare`: the form without the ten letters is allowed too."""
        match = _NONCE.fullmatch(nonce) or (_BARE_NONCE.fullmatch(nonce) if bare else None)
        if match is None:
            raise RequestUnauthorized("the nonce must be nanoseconds, an underscore and 10 letters or digits")
        made = int(match[1])
        age = (self.clock() - made) / 1e9
        if abs(age) > self.window_seconds:
            when = "old" if age > 0 else "far in the future"
            raise RequestUnauthorized(f"the nonce is too {when}: {abs(age):.0f} s", hint="check both clocks (NTP)")
        return made

    def check_new(self, caller: str, nonce: str) -> None:
        """Raises RequestUnauthorized when this caller has used the nonce."""
        if nonce in self._seen.get(caller, ()):
            raise RequestUnauthorized("the nonce was used before", hint="make a new nonce for each request")

    def remember(self, caller: str, nonce: str, made: int) -> None:
        """Keep the nonce as long as its age would be accepted. Raises Busy when there is no room."""
        if self._count >= self.limit or len(self._seen.get(caller, ())) >= self.limit_of_one_caller:
            self.forget_expired()
        of_caller = self._seen.get(caller, {})
        if self._count >= self.limit or len(of_caller) >= self.limit_of_one_caller:
            raise Busy("too many requests within the nonce window")
        of_caller[nonce] = made + self.window_seconds * 1_000_000_000
        self._seen[caller] = of_caller
        self._count += 1

    def forget_expired(self) -> None:
        now = self.clock()
        kept = {c: {n: until for n, until in nonces.items() if until >= now} for c, nonces in self._seen.items()}
        self._seen = {caller: nonces for caller, nonces in kept.items() if nonces}
        self._count = sum(map(len, self._seen.values()))

    def __len__(self) -> int:
        return self._count


Stakes = Callable[[str], float | None]
"""Hotkey to stake; None for one that is not in the metagraph."""


@dataclass(slots=True)
class Gate:
    """The whole check of one request; `verify` False and `stakes` None switch parts of it off."""

    own_hotkey: str | None
    stakes: Stakes | None
    min_stake: float = 0.0
    schemes: tuple[Scheme, ...] = ("fiber", "blake2b")
    verify: bool = True
    nonces: Nonces = field(default_factory=Nonces)

    def __post_init__(self) -> None:
        if self.verify and not self.own_hotkey:
            raise ValueError("signatures can only be verified by a miner that knows its own hotkey")

    def check(self, headers: Mapping[str, str], body: bytes) -> str | None:
        """The caller's hotkey, None when not given. `headers` by lower-case name; `body` as it arrived.

        Raises RequestUnauthorized (401), RequestRefused (403) or Busy (503).
        """
        if not self.verify:
            caller = headers.get("validator-hotkey") or headers.get("x-validator-hotkey")
            if self.stakes is not None:
                self._check_stake(caller or "")
            return caller
        signed = Signed.from_headers(headers)
        made = self.nonces.check_window(signed.nonce, bare="blake2b" in self.schemes)
        scheme = verify_signature(signed, body, self.schemes)
        caller = signed.validator_hotkey
        self.nonces.check_new(caller, signed.nonce)
        self._check_own_hotkey(signed, scheme)
        self._check_stake(caller)
        # Only now, and without a wait since check_new: anyone can make keys, so a nonce kept for every good
        # signature would let strangers fill the memory. What was refused above would be refused again.
        self.nonces.remember(caller, signed.nonce, made)
        return caller

    def _check_own_hotkey(self, signed: Signed, scheme: Scheme) -> None:
        # The BLAKE2b scheme does not sign the miner's name and its callers may leave it out.
        if signed.miner_hotkey is None and scheme == "blake2b":
            return
        if signed.miner_hotkey != self.own_hotkey:
            raise RequestUnauthorized(
                "the request is signed for another miner", hint="send our own hotkey as miner-hotkey"
            )

    def _check_stake(self, caller: str) -> None:
        if self.stakes is None:
            return
        stake = self.stakes(caller)
        if stake is None:
            raise RequestRefused("the hotkey is not in the metagraph")
        if stake < self.min_stake:
            raise RequestRefused(f"the stake {stake:.0f} is below {self.min_stake:.0f}")


def verify_signature(signed: Signed, body: bytes, schemes: tuple[Scheme, ...]) -> Scheme:
    """The scheme whose signature holds over the bytes that arrived. Raises RequestUnauthorized."""
    public_key = decode_ss58(signed.validator_hotkey)
    if not _SIGNATURE.fullmatch(signed.signature):
        raise RequestUnauthorized("the signature must be 0x and 128 hex digits")
    signature = bytes.fromhex(signed.signature[2:])
    for scheme in schemes:
        for message in _messages(scheme, signed, body):
            if _holds(signature, message, public_key):
                return scheme
    raise RequestUnauthorized("the signature does not hold for this body, nonce and miner")


def fiber_message(nonce: str, miner_hotkey: str, body: bytes) -> bytes:
    """What fiber's callers sign."""
    return f"{nonce}:{miner_hotkey}:{hashlib.sha256(body).hexdigest()}".encode()


def blake2b_message(nonce: str, body: bytes) -> bytes:
    """What the private track's callers sign."""
    return nonce.encode() + hashlib.blake2b(body, digest_size=32).digest()


def _messages(scheme: Scheme, signed: Signed, body: bytes) -> list[bytes]:
    if scheme == "fiber":
        return [] if signed.miner_hotkey is None else [fiber_message(signed.nonce, signed.miner_hotkey, body)]
    # Public callers have written the digest both as 32 bytes and as their hex; both bind the same body.
    hexadecimal = signed.nonce + hashlib.blake2b(body, digest_size=32).hexdigest()
    return [blake2b_message(signed.nonce, body), hexadecimal.encode()]


def _holds(signature: bytes, message: bytes, public_key: bytes) -> bool:
    try:
        return bool(sr25519.verify(signature, message, public_key))
    except ValueError:  # 32 or 64 bytes that are no point or scalar
        return False


@dataclass(frozen=True, slots=True)
class Key:
    """An sr25519 key pair, for `firsttouch sign` and the tests. The secret is not shown."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> Key:
        """From 32 bytes."""
        public, secret = sr25519.pair_from_seed(seed)
        return cls(public, secret)

    @classmethod
    def throw_away(cls) -> Key:
        return cls.from_seed(secrets.token_bytes(32))

    @property
    def hotkey(self) -> str:
        """The SS58 address."""
        return encode_ss58(self.public)

    def sign(self, message: bytes) -> str:
        """`0x` and the signature in hex."""
        return "0x" + bytes(sr25519.sign((self.public, self.secret), message)).hex()

    def headers(
        self, body: bytes, miner_hotkey: str, *, scheme: Scheme = "fiber", nonce: str | None = None
    ) -> dict[str, str]:
        """The headers of a request with this body, signed now unless a nonce is given."""
        nonce = nonce if nonce is not None else make_nonce()
        message = fiber_message(nonce, miner_hotkey, body) if scheme == "fiber" else blake2b_message(nonce, body)
        return {
            "validator-hotkey": self.hotkey,
            "miner-hotkey": miner_hotkey,
            "nonce": nonce,
            "signature": self.sign(message),
        }


def make_nonce(now_ns: int | None = None) -> str:
    letters = string.ascii_letters + string.digits
    return f"{wall_ns() if now_ns is None else now_ns}_" + "".join(secrets.choice(letters) for _ in range(10))


def encode_ss58(public_key: bytes) -> str:
    """The address of a 32-byte public key, in the chain's format 42."""
    payload = bytes([SS58_FORMAT]) + public_key
    return _to_base58(payload + _ss58_checksum(payload))


def decode_ss58(address: str) -> bytes:
    """The 32-byte public key of an address in format 42. Raises RequestUnauthorized.

    One format byte, 32 bytes of key, 2 of checksum (the first of BLAKE2b-512 of `SS58PRE` and the rest).
    """
    if len(address) != 48 or not set(address) <= set(_ALPHABET):  # what 35 bytes from 42 on always come to
        raise RequestUnauthorized("a hotkey must be an SS58 address")
    number = 0
    for letter in address:
        number = number * 58 + _ALPHABET.index(letter)
    raw = number.to_bytes(36, "big")  # 48 letters may come to a little more than 35 bytes
    if raw[:2] != bytes([0, SS58_FORMAT]) or raw[34:] != _ss58_checksum(raw[1:34]):
        raise RequestUnauthorized("a hotkey must be an SS58 address of format 42 with a right checksum")
    return raw[2:34]


def _ss58_checksum(payload: bytes) -> bytes:
    return hashlib.blake2b(b"SS58PRE" + payload, digest_size=64).digest()[:2]


def _to_base58(data: bytes) -> str:
    number, letters = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        letters = _ALPHABET[digit] + letters
    return letters
