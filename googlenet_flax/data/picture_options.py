"""Options for reading pictures from disk."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PictureOptions:
    """Options for pictures that are read while the network trains."""

    storage_size: int  # Longer side in pixels to which pictures are reduced.
    eval_fraction: float = 0.0  # Fraction of a folder for the test split; 0: no split.
    on_bad_image: str = "stop"  # "stop" at an unreadable picture, or "skip" it.
    decode_workers: int = 0  # Number of decoding processes; 0 decodes in threads.
    class_names: tuple[str, ...] = ()  # Classes in label order; (): those of train.
