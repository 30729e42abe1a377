"""The settings, grouped by purpose."""

from typing import Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from app.settings import Settings
from docs.generate.markdown import cell, table

GROUPS: dict[str, tuple[str, ...]] = {
    "The eight that most people need": (
        *("host", "port", "data_dir", "checkpoint"),
        *("database_url", "keep_images", "allow_no_keys", "workers"),
    ),
    "Verdicts": ("inconclusive_fmr",),
    "Who may call": ("allowed_hosts", "cors_origins", "trusted_proxies", "root_path", "rate", "at_once"),
    "Size of requests": ("max_images", "max_request_bytes", "max_held_bytes", "upload_seconds"),
    "Images and their decoding": ("max_image_bytes", "max_image_pixels", "decode_seconds", "decode_mib", "heic"),
    "Speed and queueing": ("runtime", "concurrency", "encoder_threads", "queue_length", "queue_seconds"),
    "Health and stopping": ("min_free_bytes", "drain_seconds", "drain_delay_seconds"),
    "Logs and traces": ("log_format", "log_level", "access_log", "tracing"),
}


def default_of(field: FieldInfo) -> str:
    """The default as it is written in the environment; empty where there is none."""
    if field.default_factory is not None:
        return "number of cores"
    default = field.default
    if default in (None, []):
        return ""
    if isinstance(default, bool):
        return str(int(default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def limits_of(field: FieldInfo) -> str:
    """The values allowed, such as `1 to 64`, where there are limits or a list."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    least = most = ""
    for limit in field.metadata:
        if isinstance(limit, Ge):
            least = f"{limit.ge:,}"
        elif isinstance(limit, Gt):
            least = f"above {limit.gt:,}"
        elif isinstance(limit, Le):
            most = f"to {limit.le:,}" if least else f"up to {limit.le:,}"
        elif isinstance(limit, Lt):
            most = f"and below {limit.lt:,}" if least else f"below {limit.lt:,}"
    if least and not most:
        return least if least.startswith("above") else f"at least {least}"
    return f"{least} {most}".strip()


def settings() -> str:
    """A table for each group."""
    grouped = [name for names in GROUPS.values() for name in names]
    if sorted(grouped) != sorted(Settings.model_fields):
        odd = set(grouped) ^ set(Settings.model_fields)
        raise SystemExit(f"docs/generate/settings.py: each setting belongs in exactly one group; see {sorted(odd)}")
    parts = []
    for title, names in GROUPS.items():
        rows = []
        for name in names:
            field = Settings.model_fields[name]
            default = default_of(field)
            shown = default if field.default_factory is not None else f"`{default}`" if default else ""
            rows.append((f"`DIPTYCH_{name.upper()}`", shown, cell(field.description or ""), limits_of(field)))
        parts.append(f"## {title}\n\n{table(('setting', 'default', 'meaning', 'allowed'), rows)}")
    return "\n".join(parts)
