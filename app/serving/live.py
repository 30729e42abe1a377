"""What answers at this moment: the checkpoint, the keys, and the reason if this process cannot answer."""

from collections.abc import Iterator

from app.errors import Unavailable
from app.gallery.keys import Keyring
from app.serving.loaded import LoadedCheckpoint
from app.serving.readiness import Check, make_check


class LiveState:
    """Read by requests, changed by jobs: each change replaces a whole value, so readers need no lock."""

    def __init__(self, checkpoint: LoadedCheckpoint, keyring: Keyring) -> None:
        self.checkpoint = checkpoint
        self.keyring = keyring
        # Why the checkpoint that the gallery has moved to cannot be loaded here.
        self.stranded: Unavailable | None = None
        # Whether the gallery was seen to belong to this encoder. If it then moves to another, this process follows.
        self.owns_gallery = False
        self._warm = False

    def warm_up(self) -> None:
        """Embed one image, so that the first request does not pay for the first allocation."""
        self.checkpoint.encoder.warm_up()
        self._warm = True

    def replace_checkpoint(self, checkpoint: LoadedCheckpoint) -> None:
        """Answer with another checkpoint, once it has embedded an image."""
        checkpoint.encoder.warm_up()
        self.checkpoint, self.stranded = checkpoint, None

    def cool_down(self) -> None:
        """The service ends: /readyz answers 503 from now on."""
        self._warm = False

    def check(self) -> Iterator[Check]:
        yield make_check("encoder", self._check_encoder)

    def _check_encoder(self) -> str:
        if not self._warm:
            raise Unavailable("The encoder is warming up.")
        return "has embedded an image"
