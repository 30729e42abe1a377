"""Every setting, read from the environment with the prefix `DIPTYCH_`."""

import ipaddress
import logging
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.checkpoint.format import RuntimeName
from app.errors import UsageError
from app.image.policy import HEIF, MAX_BYTES, MAX_PIXELS, SERVED_FORMATS

log = logging.getLogger(__name__)


class Settings(BaseSettings):
    """The service's settings. In the environment each is in capitals, after `DIPTYCH_`."""

    model_config = SettingsConfigDict(env_prefix="DIPTYCH_", extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    data_dir: Path = Field(Path("data"), description="Directory of the gallery.")
    checkpoint: str = Field("default", description="Directory of a checkpoint, or the name of a bundled one.")
    database_url: str | None = Field(
        None,
        repr=False,
        description="Database of the gallery: postgresql+psycopg://USER:PASSWORD@HOST/DB or sqlite:///FILE. By default "
        "an SQLite file in the data directory.",
    )
    keep_images: str = Field(
        "no",
        description="Where to keep the images of references: `no` (nowhere), `yes` (in the data directory) or "
        "s3://BUCKET/PREFIX.",
    )
    allow_no_keys: bool = Field(
        False,
        description="Listen beyond loopback without API keys. Everybody who reaches the service may then use it.",
    )
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        [], description="Comma-separated host names that clients may use. Only checked while there are no API keys."
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        [],
        description="Comma-separated origins of web pages that may call the service, such as https://shop.example.",
    )
    inconclusive_fmr: float | None = Field(
        None,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="A second false-match rate, larger than that of the verdict. /verify answers `inconclusive` "
        "between the two thresholds.",
    )
    workers: int = Field(1, ge=1, le=64, description="Number of processes. They share the data directory.")
    concurrency: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="Requests that a process decodes and embeds at the same time. By default one per core.",
    )
    queue_length: int = Field(
        24, ge=0, le=1000, description="Requests of a process that may wait for the encoder. More are refused with 503."
    )
    queue_seconds: float = Field(
        10.0,
        gt=0,
        le=600,
        allow_inf_nan=False,
        description="Longest time that a request waits for the encoder, in seconds. After that it is refused with 503.",
    )
    encoder_threads: int = Field(1, ge=1, description="Threads that work on one embedding.")
    runtime: RuntimeName = Field(
        "onnxruntime", description="Runtime of the encoder: onnxruntime, openvino or openvino-bf16."
    )
    max_image_bytes: int = Field(MAX_BYTES, ge=1024, description="Largest image, in bytes.")
    max_image_pixels: int = Field(MAX_PIXELS, ge=1024, description="Largest image, in pixels (width times height).")
    decode_seconds: float = Field(
        1.5,
        gt=0,
        le=600,
        allow_inf_nan=False,
        description="Processor time that a decoder process may spend on one image, in seconds. Elapsed time is limited "
        "to four times that, but at least 2 s.",
    )
    decode_mib: int = Field(640, ge=16, description="Memory that a decoder process may use for one image, in MiB.")
    heic: bool = Field(False, description="Open HEIC images. Needs the extra `heic`.")
    max_images: int = Field(32, ge=1, le=1000, description="Largest number of images in one request to /enroll.")
    max_request_bytes: int = Field(128 * 2**20, ge=4096, description="Largest body of a request, in bytes.")
    max_held_bytes: int = Field(
        512 * 2**20,
        ge=4096,
        description="Bytes of request bodies that each process holds at once. More are refused with 503.",
    )
    upload_seconds: float = Field(
        120.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Longest time for the body of a request to arrive, in seconds. After that it is refused with 408.",
    )
    rate: str = Field(
        "",
        description="Limit on the requests of each API key, and of each address that sends no key, such as `20/second` "
        "or `1000/hour`. Each process counts separately. Further requests are refused with 429.",
    )
    at_once: int = Field(
        0, ge=0, description="Largest number of simultaneous requests of one API key or address. 0: no limit."
    )
    trusted_proxies: str = Field(
        "", description="Comma-separated addresses of proxies whose X-Forwarded-For and -Proto headers are trusted."
    )
    root_path: str = Field(
        "", pattern="^(/[^/?#]+)*$", description="Path under which a proxy serves this service, such as /diptych."
    )
    drain_seconds: int = Field(
        8, ge=1, le=3600, description="On SIGTERM: longest time to finish requests, in seconds. The rest get 503."
    )
    drain_delay_seconds: float = Field(
        0.0,
        ge=0,
        le=600,
        allow_inf_nan=False,
        description="On SIGTERM: seconds to go on serving while /readyz already answers 503, so that a load balancer "
        "notices in time.",
    )
    # A commit needs space in the write-ahead log, and later in the file.
    min_free_bytes: int = Field(
        16 * 2**20, ge=0, description="Free bytes on the gallery's disk below which the service is not ready."
    )
    log_format: Literal["text", "json"] = Field("text", description="Format of the log: text or json.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    access_log: bool = Field(True, description="Log a line for each request.")
    tracing: bool = Field(
        False, description="Send OpenTelemetry traces to the collector in OTEL_EXPORTER_OTLP_ENDPOINT."
    )

    @field_validator("allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [entry.strip().lower() for entry in value.split(",") if entry.strip()]

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        if any(":" in name or "/" in name for name in value):
            raise ValueError("must be names such as diptych.example, without a port")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        if not all(re.fullmatch(r"https?://[^/*]+", origin) for origin in value):
            raise ValueError("must be origins such as https://shop.example, without a path and without *")
        return value

    @field_validator("heic")
    @classmethod
    def _has_heic(cls, value: bool) -> bool:
        if value and find_spec("pillow_heif") is None:
            raise ValueError("needs pillow-heif, which is not installed: make env EXTRAS=heic")
        return value

    @field_validator("rate")
    @classmethod
    def _known_rate(cls, value: str) -> str:
        if value:
            from limits import parse  # takes 50 ms to import, and few set a rate

            try:
                parse(value)
            except ValueError:
                raise ValueError("must be a rate such as 20/second or 1000/hour") from None
        return value

    @field_validator("keep_images")
    @classmethod
    def _known_place(cls, value: str) -> str:
        place = {"0": "no", "false": "no", "": "no", "1": "yes", "true": "yes"}.get(value.lower(), value)
        if place not in ("no", "yes") and not re.fullmatch(r"s3://[^/]+/.*[^/].*", place):
            raise ValueError("must be `no`, `yes` or s3://BUCKET/PREFIX")
        return place

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of images that are opened, by Pillow's names."""
        return (*SERVED_FORMATS, HEIF) if self.heic else SERVED_FORMATS

    @property
    def is_postgresql(self) -> bool:
        return self.database_url is not None and self.database_url.startswith("postgresql+psycopg://")

    @property
    def sqlite_path(self) -> Path:
        """The SQLite file of the gallery. Raises `UsageError` where `database_url` is neither SQLite nor PostgreSQL."""
        if self.database_url is None:
            return self.data_dir / "diptych.db"
        scheme, separator, path = self.database_url.partition(":///")
        if not separator or scheme not in ("sqlite", "sqlite+pysqlite") or path in ("", ":memory:"):
            raise UsageError(
                "DIPTYCH_DATABASE_URL must be postgresql+psycopg://USER:PASSWORD@HOST/DB or sqlite:///FILE."
            )
        return Path(path)

    @property
    def index_dir(self) -> Path:
        """Directory of the index snapshots, beside the database that they were made from."""
        return self.sqlite_path.with_name("index")

    @property
    def is_open(self) -> bool:
        """Whether the service may be used without a key while there are none."""
        try:
            loopback = self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            loopback = False
        return loopback or self.allow_no_keys

    def check_exposure(self, *, has_keys: bool) -> None:
        """Raises `UsageError` where the service would listen beyond loopback without API keys."""
        if not has_keys and not self.is_open:
            raise UsageError(
                f"There are no API keys, so everybody who reaches {self.host} could use the service. Create a key "
                "(diptych keys create NAME), listen on 127.0.0.1, or set DIPTYCH_ALLOW_NO_KEYS=1 if something else "
                "guards it."
            )


def read_settings(**given: object) -> Settings:
    """Settings from the environment, overridden by what is given. Raises `UsageError` naming the first wrong one."""
    known = {f"DIPTYCH_{name.upper()}" for name in Settings.model_fields}
    for name in sorted(os.environ):
        if name.startswith("DIPTYCH_") and name.upper() not in known:
            log.warning("%s is not a setting of this version; it is ignored", name)
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as problem:
        first = problem.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        reason = (
            first["msg"].removeprefix("Value error, ").replace("Input should be", "must be").partition(", unable")[0]
        )
        got = "" if name == "DATABASE_URL" else f" (got {first.get('input')!r})"
        raise UsageError(f"DIPTYCH_{name} {reason}{got}.") from None
