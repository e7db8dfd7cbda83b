"""One typed configuration: the guide's environment names, the deployed service's, and ours; and the profiles.

    default  <  profile  <  .env file  <  environment  <  command line

`load()` reads all of them once; `Settings()` alone is the defaults and reads nothing. Names are those of the
environment in small letters (`FRAME_STRIDE` is `settings.frame_stride`). A wrong value is a SettingsError
that names the variable, the value, where it came from and what is allowed.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from annotated_types import Ge, Le
from dotenv import dotenv_values
from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from firsttouch.errors import SettingsError
from firsttouch.predict import BUDGETS, Choice, Clip, Fetch, best_deadline, predict
from firsttouch.ranges import MEGABYTE

Origin = Literal["default", "profile", ".env", "environment", "command line"]
ProfileName = Literal["guide", "extreme", "balanced", "complete", "accurate"]
AUTO = "auto"


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _split(value: object) -> object:
    """`a, b` from an environment variable as a tuple."""
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


def _none_is_none(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() in ("", "none", "off") else value


Auto = Annotated[Literal["auto"], BeforeValidator(_lower)]
Texts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


def setting(default: Any, description: str, *, unit: str = "") -> Any:
    return Field(default, description=description, json_schema_extra={"unit": unit})


class Settings(BaseSettings):
    """Every setting, validated. Fields in the order of the guide, then ours, then the service's."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True, protected_namespaces=())

    profile: Annotated[ProfileName, BeforeValidator(_lower)] = setting(
        "complete", "a named set of the values below; each can still be set on its own"
    )

    # The guide: what is fetched
    partial_download: bool = setting(False, "fetch only the first PARTIAL_DOWNLOAD_MB, as the guide does")
    partial_download_mb: Annotated[float, Ge(0.01), Le(1000)] = setting(
        4.0, "how much of the start to fetch; fractions allowed", unit="MB"
    )
    direct_url_stream: bool = setting(False, "let the decoder read the URL in order while it decodes")
    streaming_download: bool = setting(False, "download from the start and decode in order as bytes come")
    fetch: Annotated[Literal["auto", "sparse", "head", "stream", "direct", "full"], BeforeValidator(_lower)] = setting(
        AUTO, "how bytes are fetched; auto follows the three switches above, and is sparse when all are off"
    )

    # The guide: how it is processed
    device: Annotated[Literal["auto", "cuda", "cpu", "mps"], BeforeValidator(_lower)] = setting(
        AUTO, "where the networks run; auto takes the best that works"
    )
    img_size: Auto | Annotated[int, Ge(128), Le(1920)] = setting(
        AUTO, "width of the detector's input; auto is the size it was made for", unit="px"
    )
    batch_size: Annotated[int, Ge(1), Le(256)] = setting(8, "most frames in one call of the network", unit="frames")
    frame_stride: Auto | Annotated[int, Ge(1), Le(1000)] = setting(
        AUTO,
        "look at every k-th frame and carry to those between; auto plans it from the rates",
        unit="frames",
    )
    prefetch_frames: Annotated[int, Ge(1), Le(4096)] = setting(
        24, "most decoded frames that wait for the network, 1.4 MB each", unit="frames"
    )
    ramp_up: bool = setting(True, "begin with a small batch so that the first frame comes early")
    ramp_up_first_batch: Annotated[int, Ge(1), Le(256)] = setting(2, "size of that first batch", unit="frames")
    disable_tracking: bool = setting(False, "skip the tracker; identities are still given, but cheap ones")
    skip_pitch: bool = setting(False, "do not run the pitch key-point head")
    conf_threshold: Annotated[float, Ge(0.01), Le(0.99)] = setting(0.4, "least confidence of a detection")
    max_detections: Annotated[int, Ge(1), Le(1000)] = setting(100, "most detections in a frame", unit="boxes")
    time_budget_s: Auto | Annotated[float, Ge(0.05), Le(240)] | None = setting(
        2.0,
        "the deadline; auto: stop when another second costs more than it brings; none: no deadline",
        unit="s",
    )
    start_budget_after_first_frame: bool = setting(
        False, "begin the budget at the first frame (the guide's meaning) instead of at the request"
    )
    early_flush_first_frame: bool = setting(True, "send the first detected frame at once where answers are streamed")
    use_nvdec: bool = setting(True, "decode on the GPU where that works; software otherwise")

    # Ours: models
    model_player: Path | None = setting(None, "an operator's own ONNX detector instead of the bundled one")
    model_ball: Path | None = setting(None, "an operator's own ONNX ball detector")
    model_pitch: Path | None = setting(None, "an operator's own ONNX pitch key-point model")
    runtime: Annotated[
        Literal["auto", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "torch"], BeforeValidator(_lower)
    ] = setting("auto", "what runs the models; openvino, tensorrt, tensorrt-rtx and torch are extras")
    precision: Annotated[Literal["auto", "fp32", "int8", "bf16", "fp16"], BeforeValidator(_lower)] = setting(
        "auto", "of the model; auto takes the fastest that works here, by a short test"
    )
    tensorrt: bool = setting(False, "run TensorRT FP16 engines, built once and kept in CACHE_DIR; CUDA until then")
    cache_dir: Path = setting(Path("~/.cache/firsttouch"), "engines, timings and the metagraph are kept here")

    # The service
    warm_origins: Texts = setting((), "origins to keep a connection open to, as https://host, comma between")
    max_clip_mb: Annotated[float, Ge(0.1), Le(100_000)] = setting(300.0, "refuse larger clips", unit="MB")
    allow_private_origins: bool = setting(False, "let requests name private addresses: tests and closed networks")
    allowed_origins: Texts = setting((), "when given, the only hosts that requests may name")
    engine_memory_mb: Annotated[int, Ge(256), Le(1_000_000)] = setting(
        1500, "memory cap of the child process that reads media", unit="MB"
    )
    queue_length: Annotated[int, Ge(0), Le(10_000)] = setting(8, "challenges that may wait", unit="requests")
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = setting(
        "info", "how much is logged"
    )

    # Who may ask (PROTOCOL.md)
    verify_enabled: bool = setting(True, "check the signature of every challenge")
    blacklist_enabled: bool = setting(True, "check that the caller is registered and has MIN_STAKE_THRESHOLD")
    signature_scheme: Annotated[Literal["fiber", "blake2b", "both"], BeforeValidator(_lower)] = setting(
        "both", "which way of signing is accepted"
    )
    netuid: Annotated[int, Ge(0), Le(65535)] = setting(44, "the subnet's number")
    subtensor_network: str = setting("finney", "the chain to read stakes from")
    subtensor_address: str | None = setting(None, "the chain's address, when it is not the network's own")
    wallet_name: str = setting("default", "the wallet whose hotkey we are")
    hotkey_name: str = setting("default", "the hotkey of that wallet that callers sign for")
    miner_hotkey: str | None = setting(None, "our hotkey's address, where the wallet itself is not on this machine")
    min_stake_threshold: Annotated[float, Ge(0)] = setting(1000.0, "least stake of a caller")
    refresh_nodes: bool = setting(True, "read the metagraph again in the background")
    load_old_nodes: bool = setting(True, "begin with the metagraph kept on disk")

    _origins: dict[str, Origin] = PrivateAttr(default_factory=dict)
    _unknown: tuple[tuple[str, str, str], ...] = PrivateAttr(default=())

    TOGGLES: ClassVar[tuple[tuple[str, Fetch], ...]] = (
        ("partial_download", "head"),
        ("direct_url_stream", "direct"),
        ("streaming_download", "stream"),
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is handed in: `load` reads the world layer by layer, to know where values came from."""
        return (init_settings,)

    def origin(self, name: str) -> Origin:
        """Where the value of field `name` came from."""
        return self._origins.get(name, "default")

    @property
    def fetch_mode(self) -> Fetch:
        """FETCH, or what the guide's three switches say; the prefix wins, as in the guide."""
        if self.fetch != "auto":
            return self.fetch
        return next((mode for name, mode in self.TOGGLES if getattr(self, name)), "sparse")

    @property
    def stride(self) -> int | None:
        """FRAME_STRIDE, None when it is to be planned."""
        return self.frame_stride if isinstance(self.frame_stride, int) else None

    @property
    def input_width(self) -> int | None:
        """IMG_SIZE, None for the model's own."""
        return self.img_size if isinstance(self.img_size, int) else None

    @property
    def deadline_seconds(self) -> float | None:
        """TIME_BUDGET_S as a number, None without a deadline; for auto the longest that it may choose for a clip."""
        return BUDGETS[-1] if self.time_budget_s == "auto" else self.time_budget_s

    @property
    def deadline_if_set(self) -> float | None:
        """The same for a command, where nobody waits: none unless somebody set TIME_BUDGET_S or a profile."""
        return None if self.origin("time_budget_s") == "default" else self.deadline_seconds

    @property
    def deadline_is_auto(self) -> bool:
        return self.time_budget_s == AUTO

    @property
    def max_clip_bytes(self) -> int:
        return round(self.max_clip_mb * 1_000_000)

    @property
    def partial_bytes(self) -> int:
        return round(self.partial_download_mb * MEGABYTE)

    @property
    def choice(self) -> Choice:
        """What `predict` wants to know."""
        return Choice(
            fetch=self.fetch_mode,
            megabytes=self.partial_bytes / 1e6,
            stride=self.stride,
            budget_seconds=best_deadline(pitch=not self.skip_pitch) if self.deadline_is_auto else self.deadline_seconds,
            budget_after_first_frame=self.start_budget_after_first_frame,
            pitch=not self.skip_pitch,
            tracking=not self.disable_tracking,
            width=self.input_width,
            confidence=self.conf_threshold,
        )

    def notes(self, clip: Clip | None = None) -> list[Note]:
        """What a start-up should say: misspelt names, contradictions, and settings that cost score."""
        return [*_unknown_names(self), *_contradictions(self), *_costs(self, clip or Clip())]

    def rows(self) -> list[Row]:
        """Every setting for `firsttouch config`."""
        return [
            Row(
                name=name.upper(),
                value=shown(getattr(self, name)),
                origin=self.origin(name),
                unit=unit_of(field),
                allowed=allowed(field),
                description=field.description or "",
            )
            for name, field in Settings.model_fields.items()
        ]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of `firsttouch config`."""

    name: str
    value: str
    origin: Origin
    unit: str
    allowed: str
    description: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something the start-up says; `change` is the one thing to do about it."""

    kind: Literal["unknown", "contradiction", "cost"]
    names: tuple[str, ...]
    message: str
    change: str

    def __str__(self) -> str:
        return f"{self.message}; {self.change}"


@dataclass(frozen=True, slots=True)
class Profile:
    """A named set of values, as text in the environment's form."""

    name: ProfileName
    description: str
    values: Mapping[str, Any]


_GUIDE = {
    "partial_download": "1",
    "partial_download_mb": "4",
    "img_size": "416",
    "batch_size": "32",
    "frame_stride": "5",
    "prefetch_frames": "128",
    "ramp_up": "1",
    "ramp_up_first_batch": "2",
    "disable_tracking": "1",
    "skip_pitch": "1",
    "conf_threshold": "0.5",
    "max_detections": "80",
    "time_budget_s": "2.0",
    "start_budget_after_first_frame": "1",
    "early_flush_first_frame": "1",
    "direct_url_stream": "0",
    "streaming_download": "0",
    "use_nvdec": "1",
}
_EXTREME = {
    "img_size": "384",
    "frame_stride": "6",
    "partial_download_mb": "2",
    "conf_threshold": "0.6",
    "max_detections": "60",
}
_BALANCED = {"img_size": "512", "frame_stride": "3", "partial_download_mb": "6", "disable_tracking": "0"}
_ACCURATE = {"frame_stride": "1", "time_budget_s": "12"}

# The guide's block says DEVICE=cuda; as a profile it must also run without a GPU, so DEVICE stays auto.
PROFILES: dict[ProfileName, Profile] = {
    profile.name: profile
    for profile in (
        Profile("guide", "the guide's production block: the first 4 MB, every 5th frame", _GUIDE),
        Profile("extreme", "the guide's extreme mode: the first 2 MB, every 6th frame", _GUIDE | _EXTREME),
        Profile("balanced", "the guide's advice on accuracy: 6 MB, every 3rd, tracking", _GUIDE | _BALANCED),
        Profile("complete", "ours: every frame answered, sparse bytes, planned stride, 2 s", {}),
        Profile("accurate", "every frame looked at, as long as it takes up to 12 s", _ACCURATE),
    )
}


def load(
    overrides: Mapping[str, object] | None = None,
    *,
    profile: str | None = None,
    env_file: Path | str | None = ".env",
) -> Settings:
    """The configuration of this process; in `overrides` (the command line's) None means "not given".

    Raises SettingsError with every wrong variable, its value, where it came from and what is allowed.
    """
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    if profile is not None:
        given["profile"] = profile
    layers: list[tuple[Origin, dict[str, Any]]] = [
        (".env", _from_env_file(env_file)),
        ("environment", _from_environment()),
        ("command line", given),
    ]
    name = next((layer["profile"] for _, layer in reversed(layers) if "profile" in layer), "complete")
    chosen = PROFILES.get(str(name).strip().lower())  # type: ignore[call-overload]
    layers.insert(0, ("profile", dict(chosen.values) if chosen else {}))
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for origin, layer in layers:
        values |= layer
        origins |= dict.fromkeys(layer, origin)
    settings = _validated(values, origins)
    settings._origins = origins
    settings._unknown = tuple(_close_names(env_file))
    return settings


def _validated(values: dict[str, Any], origins: Mapping[str, Origin]) -> Settings:
    if unknown := values.keys() - Settings.model_fields.keys():
        raise SettingsError(f"no such setting: {', '.join(sorted(unknown)).upper()}")
    for name in ("time_budget_s", "subtensor_address", "miner_hotkey", "model_player", "model_ball", "model_pitch"):
        if name in values:
            values[name] = _none_is_none(values[name])
    try:
        return Settings(**values)
    except ValidationError as exc:
        wrong = dict.fromkeys(str(error["loc"][0]) for error in exc.errors())
        lines = [
            f"{name.upper()}={values[name]!r} (from the {origins[name]}): "
            f"must be {allowed(Settings.model_fields[name])}"
            for name in wrong
        ]
        raise SettingsError("\n".join(lines)) from exc


def _from_environment() -> dict[str, Any]:
    return {k: v for k, v in EnvSettingsSource(Settings)().items() if k in Settings.model_fields}


def _from_env_file(env_file: Path | str | None) -> dict[str, Any]:
    if env_file is None or not Path(env_file).is_file():
        return {}
    found = {k.lower(): v for k, v in dotenv_values(env_file).items() if v}
    return {k: v for k, v in found.items() if k in Settings.model_fields}


def _close_names(env_file: Path | str | None) -> list[tuple[str, str, str]]:
    """(name, where, the known name) of misspelt variables; a .env file is ours, so look harder there."""
    known = [name.upper() for name in Settings.model_fields]
    places = [("environment", list(os.environ), 0.87)]
    if env_file is not None and Path(env_file).is_file():
        places.append((".env", list(dotenv_values(env_file)), 0.72))
    close = []
    for where, names, cutoff in places:
        for name in names:
            if name.upper() not in known:
                close += [(name, where, k) for k in difflib.get_close_matches(name.upper(), known, 1, cutoff)]
    return close


def allowed(field: FieldInfo) -> str:
    """What a setting may be, in words, from its type."""
    kinds = _kinds(field.annotation, field.metadata)
    return kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"


def _kinds(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> list[str]:
    if get_origin(annotation) is Annotated:
        inner, *extra = get_args(annotation)
        return _kinds(inner, [*extra, *metadata])
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if annotation in (bool, int, float, str, Path, NoneType):
        return [_words(annotation, metadata)]
    if get_origin(annotation) is tuple:
        return ["a list with commas between"]
    return [kind for part in get_args(annotation) for kind in _kinds(part)]


def _words(kind: type, metadata: list[Any] | tuple[Any, ...]) -> str:
    if kind is bool:
        return "1 or 0 (true, false, yes, no, on, off)"
    if kind in (int, float):
        low = next((m.ge for m in metadata if isinstance(m, Ge)), None)
        high = next((m.le for m in metadata if isinstance(m, Le)), None)
        number = "a whole number" if kind is int else "a number"
        return f"{number} from {low} to {high}" if high is not None else f"{number} from {low}"
    return {str: "text", Path: "a path", NoneType: "none"}[kind]


def unit_of(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def shown(value: object) -> str:
    """A value in the form that an environment variable takes."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def env_text(values: Mapping[str, object], comment: str = "") -> str:
    """A ready .env file."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + "".join(f"{name.upper()}={shown(value)}\n" for name, value in values.items())


def _unknown_names(settings: Settings) -> list[Note]:
    return [
        Note("unknown", (name,), f"{name} ({where}) is no setting and has no effect", f"did you mean {close}?")
        for name, where, close in settings._unknown
    ]


def _contradictions(s: Settings) -> list[Note]:
    """Settings that fight each other. Only what somebody set counts as a wish."""
    set_by_hand = {name for name, origin in s._origins.items() if origin not in ("default", "profile")}
    rules = (
        (
            sum(bool(getattr(s, name)) for name, _ in s.TOGGLES) > 1,
            tuple(name for name, _ in s.TOGGLES if getattr(s, name)),
            f"more than one way to fetch is switched on; {s.fetch_mode} is used",
            "switch all but one off",
        ),
        (
            s.fetch != AUTO and any(getattr(s, name) and mode != s.fetch for name, mode in s.TOGGLES),
            ("fetch", *(name for name, mode in s.TOGGLES if getattr(s, name) and mode != s.fetch)),
            f"FETCH={s.fetch} overrules the guide's switches",
            "set FETCH=auto or switch them off",
        ),
        (
            "partial_download_mb" in set_by_hand and s.fetch_mode != "head",
            ("partial_download_mb", "partial_download"),
            f"PARTIAL_DOWNLOAD_MB has no effect: the fetch is {s.fetch_mode}",
            "set PARTIAL_DOWNLOAD=1, or leave it out",
        ),
        (
            s.fetch_mode == "head" and s.partial_download_mb > s.max_clip_mb,
            ("partial_download_mb", "max_clip_mb"),
            "PARTIAL_DOWNLOAD_MB is more than MAX_CLIP_MB",
            "lower PARTIAL_DOWNLOAD_MB",
        ),
        (
            s.ramp_up and s.ramp_up_first_batch > s.batch_size,
            ("ramp_up_first_batch", "batch_size"),
            "RAMP_UP_FIRST_BATCH is larger than BATCH_SIZE",
            "lower RAMP_UP_FIRST_BATCH",
        ),
        (
            not s.ramp_up and "ramp_up_first_batch" in set_by_hand,
            ("ramp_up_first_batch", "ramp_up"),
            "RAMP_UP_FIRST_BATCH has no effect while RAMP_UP=0",
            "set RAMP_UP=1, or leave it out",
        ),
        (
            s.prefetch_frames < s.batch_size,
            ("prefetch_frames", "batch_size"),
            "PREFETCH_FRAMES is less than BATCH_SIZE: no batch is ever full",
            "raise PREFETCH_FRAMES",
        ),
        (
            s.device == "cpu" and s.use_nvdec and "use_nvdec" in set_by_hand,
            ("use_nvdec", "device"),
            "USE_NVDEC=1 with DEVICE=cpu: frames would cross from the GPU for nothing, so software decodes",
            "set DEVICE=auto or USE_NVDEC=0",
        ),
        (
            s.device in ("cpu", "mps") and s.tensorrt,
            ("tensorrt", "device"),
            f"TENSORRT=1 with DEVICE={s.device}",
            "set DEVICE=cuda or TENSORRT=0",
        ),
        (
            s.blacklist_enabled and not s.verify_enabled,
            ("blacklist_enabled", "verify_enabled"),
            "the stake of a caller is checked but not who the caller is",
            "set VERIFY_ENABLED=1, or BLACKLIST_ENABLED=0 too",
        ),
        (
            s.start_budget_after_first_frame and s.time_budget_s is None,
            ("start_budget_after_first_frame", "time_budget_s"),
            "START_BUDGET_AFTER_FIRST_FRAME=1 without a budget",
            "set TIME_BUDGET_S",
        ),
    )
    return [
        Note("contradiction", tuple(name.upper() for name in names), message, change)
        for wrong, names, message, change in rules
        if wrong
    ]


def _costs(settings: Settings, clip: Clip) -> list[Note]:
    """One note for each choice that would score more the other way, on nominal rates (see `predict`)."""
    choice, ours = settings.choice, Choice()
    fetch = next((name for name, mode in settings.TOGGLES if getattr(settings, name)), "fetch")
    fetch = fetch if settings.fetch == AUTO else "fetch"
    others: tuple[tuple[str, str, Choice], ...] = (
        (
            f"{fetch.upper()}={shown(getattr(settings, fetch))}",
            f"set {fetch.upper()}=0" if fetch != "fetch" else "set FETCH=sparse",
            replace(choice, fetch="sparse"),
        ),
        ("SKIP_PITCH=1", "set SKIP_PITCH=0", replace(choice, pitch=True)),
        ("DISABLE_TRACKING=1", "set DISABLE_TRACKING=0", replace(choice, tracking=True)),
        (f"IMG_SIZE={settings.img_size}", "set IMG_SIZE=auto", replace(choice, width=None)),
        (
            f"CONF_THRESHOLD={settings.conf_threshold:g}",
            f"set CONF_THRESHOLD={ours.confidence:g}",
            replace(choice, confidence=ours.confidence),
        ),
        (
            f"FRAME_STRIDE={settings.frame_stride}",
            "set FRAME_STRIDE=auto",
            replace(choice, stride=None),
        ),
        (
            f"TIME_BUDGET_S={shown(settings.time_budget_s)}",
            f"set TIME_BUDGET_S={ours.budget_seconds:g}",
            replace(choice, budget_seconds=ours.budget_seconds),
        ),
        (
            "START_BUDGET_AFTER_FIRST_FRAME=1",
            "set START_BUDGET_AFTER_FIRST_FRAME=0: the caller's clock runs from the request",
            replace(choice, budget_after_first_frame=False),
        ),
    )
    now = predict(choice, clip)
    notes = []
    for what, change, other in others:
        better = predict(other, clip)
        if other != choice and better.final - now.final >= 0.02:
            message = (
                f"{what} costs score: predicted {now.final:.2f} ({now.coverage:.0%} of the frames answered), "
                f"{better.final:.2f} without it, for {clip} on nominal rates"
            )
            notes.append(Note("cost", (what.partition("=")[0].upper(),), message, change))
    return notes
