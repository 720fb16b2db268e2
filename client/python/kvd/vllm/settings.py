"""What the connector was given, and what follows from it."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import kvd

if TYPE_CHECKING:
    from vllm.config import VllmConfig

#: Names in ``kv_connector_extra_config``.
NAMES = {"socket", "weights_digest", "match_deadline", "load_deadline"}
#: Seconds, the daemon's own defaults.
MATCH_DEADLINE = 0.05
LOAD_DEADLINE = 2.0


@dataclass(frozen=True)
class Settings:
    """How this engine meets the daemon."""

    socket: Path
    instance: bytes
    model: str
    match_deadline: float
    load_deadline: float

    @classmethod
    def of(cls, config: "VllmConfig") -> "Settings":
        transfer = config.kv_transfer_config
        extra = dict(transfer.kv_connector_extra_config)
        if unknown := sorted(set(extra) - NAMES):
            raise ValueError(f"kv_connector_extra_config knows {', '.join(sorted(NAMES))}, not {', '.join(unknown)}")
        return cls(
            socket=Path(extra["socket"]) if "socket" in extra else kvd.default_socket(),
            # All processes of an engine have its id.
            instance=hashlib.blake2b(str(transfer.engine_id).encode(), digest_size=16).digest(),
            model=os.path.basename(config.model_config.model.rstrip("/")),
            match_deadline=float(extra.get("match_deadline", MATCH_DEADLINE)),
            load_deadline=float(extra.get("load_deadline", LOAD_DEADLINE)),
        )

    def engine(self, role: Literal["scheduler", "worker"]) -> kvd.Engine:
        """Joins the daemon when it is there."""
        return kvd.Engine(
            self.socket,
            instance=self.instance,
            role=role,
            # What an operator sees of it; the daemon takes 64 bytes.
            name=f"vllm {role} {self.model}".encode()[:64].decode(errors="ignore"),
            match_deadline=self.match_deadline,
            load_deadline=self.load_deadline,
        )
