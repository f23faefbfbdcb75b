"""What goes with a turn beside what is said: what the camera shows, and what sensors and programs know."""

from collections.abc import Callable

from omni_ros.dialogue.clock import Clock
from omni_ros.dialogue.face import Face
from omni_ros.dialogue.perception import Perception
from omni_ros.dialogue.settings import Settings
from omni_ros.dialogue.sight import Frame, Picture, Sight
from omni_ros.dialogue.turn import Look, Part


class Surroundings:
    """What cannot be used is told to `face`, and is missing; the turn goes on without it."""

    def __init__(self, settings: Callable[[], Settings], face: Face, clock: Clock) -> None:
        self._settings = settings
        self._face = face
        self._clock = clock
        self.perception = Perception(clock)
        self._sight = Sight()
        self._seen: Look | None = None  # when the user began to speak

    def see(self, picture: Picture | Callable[[], Picture], size: int) -> None:
        """As Dialogue.see."""
        decode, size = (picture, size) if callable(picture) else (lambda: picture, picture.nbytes)
        settings = self._settings()
        self._sight.see(Frame(decode, size, self._clock.now()), settings.video_frames, settings.video_fps)

    def look(self) -> Look | None:
        """What the camera shows now; None without a picture that is young enough."""
        settings = self._settings()
        if not settings.use_camera:
            return None
        return self._sight.look(
            self._clock.now(),
            max_age=settings.image_max_age,
            max_pixels=settings.image_max_pixels,
            frames=settings.video_frames,
            fps=settings.video_fps,
            on_bad=lambda error: self._face.bad_input("camera", error),
        )

    def glance(self) -> Look | None:
        """What the camera showed when the user began to speak; if that was nothing, what it shows now."""
        self._seen = self._seen or self.look()
        return self._seen

    def forget_glance(self) -> None:
        """The user has spoken."""
        self._seen = None

    def forget_picture(self) -> None:
        """As when the camera goes."""
        self._sight.forget()

    def known(self) -> Callable[[], Part | None]:
        """What is known goes with a turn as a text part, which is made as late as possible; `facts_max_age` is today's."""
        max_age = self._settings().facts_max_age
        return lambda: self.perception.part(max_age, lambda error: self._face.bad_input("facts", error))

    def facts(self) -> dict[str, object]:
        """For a diagnostic."""
        return {"picture age s": self._sight.age(self._clock.now()), "facts known": len(self.perception)}
