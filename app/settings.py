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

from app.checkpoint.runtimes import RuntimeName
from app.errors import UsageError
from app.http.limits import rate
from app.image.policy import HEIF, MAX_BYTES, MAX_PIXELS, SERVED_FORMATS

log = logging.getLogger("uvicorn.error")


class Settings(BaseSettings):
    """The service's settings. Names in the environment are these in capitals, after `DIPTYCH_`."""

    model_config = SettingsConfigDict(env_prefix="DIPTYCH_", extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    data_dir: Path = Field(Path("data"), description="Directory of the gallery's database.")
    database_url: str | None = Field(
        None,
        repr=False,
        description="Where the gallery is: postgresql+psycopg://USER:PASSWORD@HOST/DB, or sqlite:///FILE; by default a "
        "file in the data directory.",
    )
    keep_images: str = Field(
        "no",
        description="Keep the images of references: `no`, `yes` (in the data directory) or s3://BUCKET/PREFIX.",
    )
    checkpoint: str = Field("default", description="Directory of a checkpoint, or the name of a bundled one.")
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        [], description="Without keys: names by which the service may be asked, with commas between."
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        [], description="Web pages that may use the service from a browser, as https://shop.example, commas between."
    )
    allow_no_keys: bool = Field(
        False,
        description="Listen beyond loopback although there are no API keys: whoever reaches it may use it.",
    )
    workers: int = Field(1, ge=1, le=64, description="Processes; they share the data directory.")
    concurrency: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="Requests a process decodes and embeds at once; the others wait. By default one a core.",
    )
    queue_length: int = Field(
        24, ge=0, le=1000, description="Requests of a process that may wait for their turn; more are refused with 503."
    )
    queue_seconds: float = Field(
        10.0,
        gt=0,
        le=600,
        allow_inf_nan=False,
        description="How long a request waits for its turn before it is refused with 503.",
    )
    encoder_threads: int = Field(1, ge=1, description="Threads of one embedding.")
    runtime: RuntimeName = Field(
        "onnxruntime", description="What computes embeddings: onnxruntime, openvino or openvino-bf16."
    )
    max_image_bytes: int = Field(MAX_BYTES, ge=1024, description="Bytes of one image.")
    max_image_pixels: int = Field(MAX_PIXELS, ge=1024, description="Pixels of one image, width times height.")
    decode_seconds: float = Field(
        1.5,
        gt=0,
        le=600,
        allow_inf_nan=False,
        description="Processor time of a decoder process for one image; by the clock four times as long, or 2 s.",
    )
    decode_mib: int = Field(640, ge=16, description="Memory of a decoder process for one image, in MiB.")
    heic: bool = Field(False, description="Open HEIC, which needs the extra `heic`.")
    max_images: int = Field(32, ge=1, le=1000, description="Images in one request to enroll.")
    max_request_bytes: int = Field(128 * 2**20, ge=4096, description="Bytes of a request's whole body.")
    max_held_bytes: int = Field(
        512 * 2**20, ge=4096, description="Bytes of all bodies that a process holds at once; more is refused with 503."
    )

    upload_seconds: float = Field(
        120.0, gt=0, le=3600, allow_inf_nan=False, description="How long a request's body may take to arrive."
    )
    rate: str = Field("", description="How often a key, or an address without one, may ask: `20/second`, `1000/hour`.")
    at_once: int = Field(0, ge=0, description="Requests of one key or address at once; 0: as many as it likes.")
    trusted_proxies: str = Field(
        "", description="Addresses of proxies whose X-Forwarded-For and -Proto are believed, with commas between."
    )
    root_path: str = Field("", pattern="^(/[^/?#]+)*$", description="The path under which a proxy serves this.")
    inconclusive_fmr: float | None = Field(
        None,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="Verify answers `inconclusive` between the threshold and that of this larger false-match rate.",
    )

    drain_seconds: int = Field(
        8, ge=1, le=3600, description="Told to stop: how long requests under way may take before they are refused."
    )
    drain_delay_seconds: float = Field(
        0.0,
        ge=0,
        le=600,
        allow_inf_nan=False,
        description="Told to stop: how long it says that it is not ready and still answers, before it takes no more.",
    )
    # A commit needs room in the log, and later in the file.
    min_free_bytes: int = Field(16 * 2**20, ge=0, description="Room on the gallery's disk below which it is not ready.")
    log_format: Literal["text", "json"] = Field("text", description="Lines of the log: for people, or JSON.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is logged.")
    access_log: bool = Field(True, description="Log a line for each request.")

    tracing: bool = Field(
        False, description="Send OpenTelemetry traces to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names."
    )

    @field_validator("allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return [one.strip().lower() for one in value.split(",") if one.strip()] if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        if any(":" in one or "/" in one for one in value):
            raise ValueError("must be names such as diptych.example, without a port")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        if not all(re.fullmatch(r"https?://[^/*]+", one) for one in value):
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
            try:
                rate(value)
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
        """What images are opened, by Pillow's names."""
        return (*SERVED_FORMATS, HEIF) if self.heic else SERVED_FORMATS

    @property
    def is_postgresql(self) -> bool:
        return self.database_url is not None and self.database_url.startswith("postgresql+psycopg://")

    @property
    def sqlite_path(self) -> Path:
        """The database file. Raises `UsageError` for another kind of database."""
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
        """Where snapshots of the index are, beside the database that they were made of."""
        return self.sqlite_path.with_name("index")

    @property
    def is_open(self) -> bool:
        """Whether the service may be used without a key, as long as there are none."""
        try:
            loopback = self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            loopback = False
        return loopback or self.allow_no_keys

    def check_exposure(self, *, has_keys: bool) -> None:
        """Raises `UsageError` where the service would listen beyond loopback without API keys."""
        if not has_keys and not self.is_open:
            raise UsageError(
                f"There are no API keys, so anybody who reaches {self.host} could use the service: it listens on "
                "loopback only. Make a key (diptych keys create NAME), or set DIPTYCH_ALLOW_NO_KEYS=1 if something "
                "else guards it."
            )


def read_settings(**given: object) -> Settings:
    """Settings from the environment, overridden by what is given. Raises `UsageError` naming the wrong one."""
    known = {f"DIPTYCH_{name.upper()}" for name in Settings.model_fields}
    for name in sorted(os.environ):
        if name.startswith("DIPTYCH_") and name.upper() not in known:
            log.warning("%s is no setting of this version, and ignored", name)
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as problem:
        first = problem.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        got = "" if name == "DATABASE_URL" else f" (got {first.get('input')!r})"
        raise UsageError(f"DIPTYCH_{name}: {first['msg']}{got}.") from None
