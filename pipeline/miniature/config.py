"""What decides the content of the miniature world, and its three sizes."""

from dataclasses import asdict, dataclass

from pipeline.miniature.hazards import HAZARDS


@dataclass(frozen=True, kw_only=True)
class MiniatureConfig:
    """Everything that decides the content of the world."""

    num_objects365_train: int
    """Training pictures with boxes of all base nouns."""
    num_objects365_val: int
    """Validation pictures of the same kind."""
    num_gold: int
    """Pictures with human captions whose phrases are tied to boxes."""
    num_web: int
    """Ordinary rows of the web list, each with a picture that can be fetched."""
    num_hazards: int
    """Further rows of the web list, of all kinds of trouble in turn."""
    num_novel_test: int
    """Test pictures with boxes of base and novel nouns."""
    num_odinw_train: int
    """Training pictures of each ODinW set; Parcels has 19 at most."""
    num_odinw_valid: int
    """Validation pictures of each ODinW set."""
    num_odinw_test: int
    """Test pictures of each ODinW set."""
    num_lvis: int
    """Validation pictures of the LVIS set, which has 512 names."""
    num_flickr30k: int
    """Test pictures of the Flickr30k Entities set, with five sentences each."""
    generic_share: float = 0.0
    """Probability that a phrase of the human-labelled mix says "shape", "thing" or "object" for its noun, 0 to 1."""
    image_size_px: int = 128
    """Mean side of a picture; sides vary by an eighth either way."""
    seed: int = 0
    """Another seed is another world."""
    port: int = 18765
    """Where the web server listens; it is part of each URL in the list."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn or served."""
        for name, value in asdict(self).items():
            least = 0 if name in ("num_hazards", "seed", "generic_share") else 1
            if value < least:
                raise ValueError(f"{name} is {value}, allowed is {least} or more; start from test_size()")
        if self.generic_share > 1:
            raise ValueError(f"generic_share is {self.generic_share}, allowed is 0 to 1; 0 has no generic nouns")
        if not 64 <= self.image_size_px <= 1024:
            raise ValueError(
                f"image_size_px is {self.image_size_px}, allowed is 64 to 1024; 128 is what sizes are made for"
            )
        if not 1024 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}, allowed is 1024 to 65535; give another --world.port")


def test_size() -> MiniatureConfig:
    """Make everything once, in seconds: for tests."""
    return MiniatureConfig(
        num_objects365_train=48,
        num_objects365_val=16,
        num_gold=24,
        num_web=40,
        num_hazards=len(HAZARDS),
        num_novel_test=16,
        num_odinw_train=6,
        num_odinw_valid=4,
        num_odinw_test=4,
        num_lvis=6,
        num_flickr30k=6,
    )


def demo_size() -> MiniatureConfig:
    """Make enough to train and label on two cores in minutes."""
    return MiniatureConfig(
        num_objects365_train=1500,
        num_objects365_val=200,
        num_gold=400,
        num_web=1600,
        num_hazards=5 * len(HAZARDS),
        num_novel_test=200,
        num_odinw_train=24,
        num_odinw_valid=20,
        num_odinw_test=40,
        num_lvis=40,
        num_flickr30k=40,
    )


def full_size() -> MiniatureConfig:
    """Make enough for the paper's ablations: trainings of minutes each, and test sets that tell a few points apart.

    About 18,000 training pictures, of which 10,000 come with captions of the web.
    """
    return MiniatureConfig(
        num_objects365_train=6000,
        num_objects365_val=400,
        num_gold=2000,
        num_web=10_000,
        num_hazards=5 * len(HAZARDS),
        num_novel_test=400,
        num_odinw_train=40,
        num_odinw_valid=20,
        num_odinw_test=60,
        num_lvis=200,
        num_flickr30k=200,
    )
