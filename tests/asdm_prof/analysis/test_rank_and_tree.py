"""The rank is arithmetic, and the tree is the profile added up."""

import pytest

from asdm.records.measurement import Estimate
from asdm_prof.analysis.rank import rank
from asdm_prof.analysis.tree import shallow_blocks, tree_of
from asdm_prof.records import Profile
from tests.asdm_prof import synthetic


def with_shares(*shares: tuple[float, float, float]) -> Profile:
    """The synthetic profile's first units, each with 1 % of the parameters and the given share of the time."""
    profile = synthetic.profile()
    one_percent = profile.whole.params / 100
    units = tuple(
        unit.model_copy(update={"params": one_percent, "share": Estimate(median=median, low=low, high=high)})
        for unit, (low, median, high) in zip(profile.units, shares, strict=False)
    )
    return profile.model_copy(update={"units": units})


def test_redundancy_is_share_of_time_over_share_of_parameters():
    profile = synthetic.profile()
    for row in rank(profile):
        unit = profile.part(row.fqn)
        assert row.params_share == unit.params / 859_520_964
        assert row.redundancy.median == pytest.approx(unit.share.median / (unit.params / 859_520_964))
    # dn0.t0: 4.8 % of the time with 2.546 M of 859.5 M parameters
    assert {row.label: row.redundancy.median for row in rank(profile)}["dn0.t0"] == pytest.approx(
        0.0482 / (2.546240 / 859.520964), rel=0.01
    )


def test_the_interval_of_the_redundancy_is_the_scaled_interval_of_the_share():
    (row,) = rank(with_shares((0.09, 0.10, 0.12)))
    assert (row.redundancy.low, row.redundancy.median, row.redundancy.high) == pytest.approx((9, 10, 12))


def test_rank_runs_from_most_to_least_redundant():
    ranked = rank(synthetic.profile())
    assert [row.rank for row in ranked] == list(range(1, 39))
    medians = [row.redundancy.median for row in ranked]
    assert medians == sorted(medians, reverse=True)
    shallow = {"dn0.t0", "dn0.t1", "up3.t0", "up3.t1", "up3.t2"}
    assert {row.label for row in ranked[:5]} == shallow  # what the paper's Fig. 2 shows


def test_units_whose_intervals_overlap_their_groups_first_share_a_tie_group():
    profile = with_shares((0.19, 0.20, 0.21), (0.17, 0.185, 0.195), (0.15, 0.165, 0.18), (0.01, 0.02, 0.03))
    # 19.5 reaches up to 19; 18 does not, though it overlaps its neighbour, and begins a group; 3 is far off
    assert [row.tie_group for row in rank(profile)] == [1, 1, 2, 3]


def test_equal_units_are_ordered_by_name_so_that_ranks_repeat():
    ranked = rank(with_shares(*[(0.09, 0.1, 0.11)] * 4))
    assert [row.fqn for row in ranked] == sorted(row.fqn for row in ranked)
    assert {row.tie_group for row in ranked} == {1}


def test_the_root_of_the_tree_is_the_whole_unet():
    profile = synthetic.profile()
    root = tree_of(profile)
    assert root.params == profile.whole.params == 859_520_964
    assert root.macs == profile.whole.macs == 401_636_720_640
    assert root.share == pytest.approx(1, abs=0.01)
    assert len(root.parts) == 38 + 10


def test_every_node_is_the_sum_of_its_children():
    for _, node in tree_of(synthetic.profile()).walk():
        if not node.children:
            assert node.level == "part"
            continue
        assert node.params == sum(child.params for child in node.children)
        assert node.macs == sum(child.macs for child in node.children)
        assert node.latency_s == pytest.approx(sum(child.latency_s for child in node.children))
        assert node.peak_memory_bytes == max(child.peak_memory_bytes for child in node.children)


def test_the_tree_walks_in_the_order_in_which_data_flows():
    profile = synthetic.profile()
    nodes = [node for _, node in tree_of(profile).walk()]
    leaves = [node.name for node in nodes if node.level == "part"]
    assert leaves == [part.fqn for part in profile.parts]
    assert leaves[0] == "conv_in"
    assert leaves[-2:] == ["conv_out", "other"]
    blocks = [node.label for node in nodes if node.level == "block"]
    assert blocks == ["dn0", "dn1", "dn2", "dn3", "mid", "up0", "up1", "up2", "up3"]


def test_a_sampler_hangs_on_its_block_after_the_layers():
    root = tree_of(synthetic.profile())
    dn0 = next(child for child in root.children if child.label == "dn0")
    assert [child.label for child in dn0.children] == ["layer 0", "layer 1", "dn0.down"]
    assert [child.label for child in dn0.children[0].children] == ["dn0.r0", "dn0.t0"]


def test_the_shallow_blocks_are_the_first_down_and_the_last_up_block():
    assert shallow_blocks(synthetic.profile()) == ("down_blocks.0", "up_blocks.3")
