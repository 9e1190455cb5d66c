"""What is in the image, and what is not."""

from image.containers import Containers


def test_train_says_what_it_is(containers: Containers) -> None:
    assert "what SageMaker starts" in containers.run("train", "--help").replace("What", "what")
