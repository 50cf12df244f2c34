"""Random changes to training images, against pixels moved by hand."""

import pytest
import torch
from torch import Tensor

from compress.train.augment import Mix, distort, draw_grid, draw_mix, draw_seeds, mix, vary
from compress.train.settings import AugmentConfig

CPU = torch.device("cpu")


def images(count: int = 3, height: int = 9, width: int = 7) -> Tensor:
    return torch.rand(count, 2, height, width, generator=torch.Generator().manual_seed(0)) * 255


def grid(config: AugmentConfig, count: int = 3, height: int = 9, width: int = 7, rows: slice = slice(None)) -> Tensor:
    torch.manual_seed(4)
    return draw_grid(config, count, height, width, CPU, rows)


def in_pixels(grid: Tensor) -> Tensor:
    """Sampling points as pixels from the centre, as the module's head defines them."""
    height, width = grid.shape[1:3]
    return grid * torch.tensor([width / 2, height / 2])


def test_no_change_asked_for_is_no_change() -> None:
    x = images()
    torch.testing.assert_close(distort(x, grid(AugmentConfig())), x, rtol=0, atol=1e-3)


def test_a_shift_by_whole_pixels_moves_them() -> None:
    x = images(1)
    shifted = grid(AugmentConfig(), 1) + torch.tensor([2 * 2 / 7, 0.0])  # each pixel is taken from two further to the right
    torch.testing.assert_close(distort(x, shifted)[..., :-2], x[..., 2:], rtol=0, atol=1e-3)
    assert not distort(x, shifted)[..., -2:].any()  # what comes from outside is 0


def test_rotation_keeps_the_centre_and_all_distances() -> None:
    plain, turned = in_pixels(grid(AugmentConfig())), in_pixels(grid(AugmentConfig(rotate=90)))
    torch.testing.assert_close(turned.norm(dim=-1), plain.norm(dim=-1))
    torch.testing.assert_close(turned[:, 4, 3], torch.zeros(3, 2))
    angles = torch.atan2(turned[:, 4, 6, 1], turned[:, 4, 6, 0]).rad2deg()  # of the point (3, 0)
    assert angles.abs().max() <= 90
    assert angles.unique().numel() == 3


def test_changes_stay_within_what_was_asked() -> None:
    plain = in_pixels(grid(AugmentConfig(), 500))
    sizes = in_pixels(grid(AugmentConfig(scale=0.2), 500))[:, 0] / plain[:, 0]
    assert ((1 / sizes[:, 0]).min() - 0.8).abs() < 0.01 and ((1 / sizes[:, 0]).max() - 1.2).abs() < 0.01
    moved = in_pixels(grid(AugmentConfig(shift=2.0), 500)) - plain
    assert 1.95 < moved.abs().max() <= 2.0
    slanted = in_pixels(grid(AugmentConfig(shear=45), 500)) - plain
    torch.testing.assert_close(slanted[..., 1], torch.zeros_like(slanted[..., 1]), rtol=0, atol=1e-5)  # rows slide, none moves up
    assert 3.9 < slanted[:, 0].abs().max() <= 4.0 + 1e-5  # 4 pixels above the centre, tan 45 degrees


def test_elastic_noise_is_smooth_and_as_large_as_asked() -> None:
    moved = in_pixels(grid(AugmentConfig(elastic=1.5, grid=4), 2000, 28, 28)) - in_pixels(grid(AugmentConfig(), 2000, 28, 28))
    corner = moved[:, 0, 0]  # a control point itself
    assert abs(float(corner.std()) - 1.5) < 0.05 and abs(float(corner.mean())) < 0.1
    assert float(moved.diff(dim=1).std()) < float(moved.std()) / 5  # from one row to the next


def test_rows_are_the_same_whoever_draws_them() -> None:
    config = AugmentConfig(rotate=10, shear=5, scale=0.1, shift=1, elastic=1)
    assert torch.equal(grid(config, 6)[2:4], grid(config, 6, rows=slice(2, 4)))


def test_mixup_blends_and_cutmix_covers_the_share_it_says() -> None:
    x = images(4)
    partner = torch.tensor([1, 0, 3, 2])
    torch.testing.assert_close(mix(x, x[partner], Mix(partner, 0.75)), 0.75 * x + 0.25 * x[partner])
    torch.manual_seed(0)
    ones, zeros = torch.ones(4, 1, 20, 10), torch.zeros(4, 1, 20, 10)
    shares = []
    for _ in range(50):
        how = draw_mix(AugmentConfig(cutmix=1.0), 4, 20, 10)
        assert how is not None and how.box is not None
        assert float(mix(ones, zeros, how).mean()) == pytest.approx(how.share)
        shares.append(how.share)
    assert min(shares) < 0.3 and max(shares) > 0.9


def test_both_mixings_take_turns_and_none_is_none() -> None:
    torch.manual_seed(0)
    drawn = [draw_mix(AugmentConfig(mixup=0.2, cutmix=1.0), 4, 8, 8) for _ in range(40)]
    assert 5 < sum(how is not None and how.box is None for how in drawn) < 35
    assert draw_mix(AugmentConfig(rotate=5), 4, 8, 8) is None


def test_the_box_of_cutmix_has_the_area_that_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of 3/4 kept is a quarter of the area covered: half of the height times half of the width, in the middle here."""
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.tensor(0.75))
    monkeypatch.setattr(torch, "rand", lambda size: torch.full((size,) if size else (), 0.5))
    how = draw_mix(AugmentConfig(cutmix=1.0), 4, 20, 12)
    assert how is not None and how.box == (5, 15, 3, 9) and how.share == 0.75


def varied(config: AugmentConfig, x: Tensor) -> Tensor:
    torch.manual_seed(4)
    seeds = draw_seeds(config, len(x))
    assert seeds is not None
    return vary(x, seeds, config)


def test_mirrored_are_as_many_as_was_asked_and_to_the_last_bit() -> None:
    x = images(400).to(torch.uint8)
    assert torch.equal(varied(AugmentConfig(hflip=1.0), x), x.flip(3))
    found = varied(AugmentConfig(hflip=0.25), x)
    mirrored = (found == x.flip(3)).flatten(1).all(1)
    assert 70 < mirrored.sum() < 130 and torch.equal(found[~mirrored], x[~mirrored])


def test_a_crop_has_the_share_and_the_shape_that_were_asked() -> None:
    """Each pixel says where it stands: two channels of rows and columns, of which a crop sees a part, made as large as before."""
    place = torch.arange(240, dtype=torch.uint8)
    x = torch.stack([place[:, None].expand(240, 240), place.expand(240, 240)]).expand(100, 2, 240, 240)
    found = varied(AugmentConfig(resized_crop=0.5), x)
    assert found.shape == x.shape and found.dtype == torch.uint8
    height, width = (found[:, channel].flatten(1).float().aminmax(dim=1) for channel in (0, 1))
    tall, wide = height.max - height.min + 1, width.max - width.min + 1
    share, ratio = tall * wide / 240**2, wide / tall
    assert 0.48 < share.min() < 0.6 and 0.9 < share.max() <= 1
    assert 0.73 < ratio.min() < 0.9 and 1.1 < ratio.max() < 1.36


@pytest.mark.parametrize("channels", [1, 2, 3, 16])
def test_each_image_is_varied_by_its_own_seed_whoever_stands_beside_it(channels: int) -> None:
    x = torch.randint(0, 256, (6, channels, 12, 10), dtype=torch.uint8)
    config = AugmentConfig(hflip=0.5, resized_crop=0.3, trivial_augment=channels in (1, 3))
    torch.manual_seed(4)
    seeds = draw_seeds(config, 6)
    before = torch.get_rng_state()
    assert seeds is not None
    whole = vary(x, seeds, config)
    assert torch.equal(vary(x[2:4], seeds[2:4], config), whole[2:4]) and not torch.equal(whole, x)
    assert torch.equal(torch.get_rng_state(), before), "what follows is drawn as if nothing had been"


def test_trivial_augment_changes_most_images_each_in_another_way() -> None:
    """Of its fourteen changes one is none, and many are that at their least."""
    x = images(1, 20, 20)[:, :1].to(torch.uint8).expand(200, 1, 20, 20)
    found = varied(AugmentConfig(trivial_augment=True), x)
    assert 100 < (found != x).flatten(1).any(1).sum() < 200
    assert len({one.numpy().tobytes() for one in found}) > 50


def test_nothing_is_drawn_where_no_image_is_varied() -> None:
    before = torch.get_rng_state()
    assert draw_seeds(AugmentConfig(rotate=10, mixup=0.2), 5) is None
    assert torch.equal(torch.get_rng_state(), before)
