"""Views on kvd, opened beside vLLM's threads: a daemon that stands still or refuses one costs misses, and nothing else."""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Literal

import kvd

if TYPE_CHECKING:
    from .identity import Form, Name
    from .settings import Settings

logger = logging.getLogger("vllm.kvd")


class Views:
    """The view of the namespace that vLLM's weights are in now."""

    def __init__(self, form: "Form", settings: "Settings", role: Literal["scheduler", "worker"]) -> None:
        self._form, self._settings, self._role = form, settings, role
        self.engine = settings.engine(role)
        self._layout: kvd.Layout | None = None
        #: Guards the fields below. Nothing is waited for while it is held.
        self._lock = threading.Lock()
        self._name: Name | None = None
        self._view: Future[kvd.View | None] | None = None
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="kvd-view")

    def of(self, name: "Name", within: float) -> "kvd.View | None":
        """The view; `None` where the daemon refuses it, or it is not open `within` seconds."""
        with self._lock:
            if self._view is None or name != self._name:
                if self._name is not None:
                    # A session keeps its views: one for each update of the weights would fill it.
                    self.engine = self._settings.engine(self._role)
                    self._pin()
                self._name, self._view = name, self._opener.submit(self._open, name, self.engine)
            opening = self._view
        try:
            return opening.result(timeout=within)
        except FutureTimeout:
            return None

    def tell_pace(self, tokens_per_second: float) -> None:
        """Tells the daemon what a hit has to beat. Never waits."""
        with self._lock:
            opening = self._view
        if opening is not None and opening.done() and (view := opening.result()) is not None:
            self._opener.submit(view.set_prefill_rate, tokens_per_second)

    def pin_ahead(self, layout: "kvd.Layout") -> None:
        """Has kvd's memory pinned for a GPU before it is used."""
        self._layout = layout
        self._pin()

    def _pin(self) -> None:
        if self._layout is not None:
            self.engine.pin_ahead(self._layout)

    def close(self) -> None:
        self._opener.shutdown(wait=True, cancel_futures=True)

    def _open(self, name: "Name", engine: kvd.Engine) -> "kvd.View | None":
        try:
            return engine.open_view(name.namespace(self._form), shard=self._form.shard, hash_bytes=name.hash_bytes)
        except kvd.KvdError as error:
            logger.warning("kvd does not take this model's blocks: %s. Everything is computed.", error)
            return None
