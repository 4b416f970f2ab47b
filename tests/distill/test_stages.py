"""Results of long stages are made once."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is part of the distill extra")

BASIS = {"backbone": "tiny", "seed": 0}
DEPENDS = {"labels": "abc"}


class Work:
    """Counts how often it was done."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        """Return how often it was done, in a corner."""
        self.times += 1
        return np.array([[1.0, 2.0], [3.0, self.times]], np.float32)


@pytest.fixture
def stages(tmp_path):
    from efficient_empathy.distill.stages import Stages

    return lambda basis=BASIS: Stages(tmp_path / "work", basis)


def test_a_stage_is_done_once_and_then_taken_from_its_file(stages, caplog):
    work = Work()
    first = stages().array("ratings", DEPENDS, work)
    with caplog.at_level("INFO"):
        second = stages().array("ratings", DEPENDS, work)
    assert work.times == 1
    assert first.tobytes() == second.tobytes()
    assert second.dtype == np.float32
    assert "ratings: already done" in caplog.text


@pytest.mark.parametrize(
    ("basis", "name", "depends"),
    [
        ({**BASIS, "seed": 1}, "ratings", DEPENDS),
        (BASIS, "other", DEPENDS),
        (BASIS, "ratings", {"labels": "abd"}),
    ],
)
def test_whatever_it_depends_on_makes_another_stage(stages, basis, name, depends):
    work = Work()
    stages().array("ratings", DEPENDS, work)
    assert stages(basis).array(name, depends, work)[1, 1] == 2
    assert stages().array("ratings", DEPENDS, work)[1, 1] == 1
    assert work.times == 2


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 64])
def test_a_damaged_file_is_done_again(stages, damage, caplog):
    work = Work()
    stages().array("ratings", DEPENDS, work)
    (path,) = stages().folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert stages().array("ratings", DEPENDS, work)[1, 1] == 2
    assert "cannot be read: this stage is done again" in caplog.text
    assert stages().array("ratings", DEPENDS, work)[1, 1] == 2


def test_work_that_fails_leaves_nothing(stages):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages().array("ratings", DEPENDS, fail)
    assert not stages().folder.exists()


def test_tensors_of_any_shape_and_place_are_kept(stages):
    made = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.zeros(0, 2), "c": torch.tensor(3)}
    stages().tensors("weights", {}, lambda: made)
    found = stages().tensors("weights", {}, lambda: {})
    assert all(torch.equal(found[name], made[name]) for name in made)
