"""How pictures on disk are split and read."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PictureOptions:
    """What a config says of pictures that are read while the network trains."""

    storage_size: int  # Longer side in pixels that pictures are reduced to.
    eval_fraction: float = 0.0  # Of one folder of classes, for its test split; 0: none.
    on_bad_image: str = "stop"  # Or "skip": what one that cannot be read does.
    decode_workers: int = 0  # Processes that decode; 0 decodes in threads.
    class_names: tuple[str, ...] = ()  # A network's; () are those of the train split.
